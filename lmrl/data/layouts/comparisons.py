"""From a row to a prompt with several answers in order of preference: pairs, implicit prompts, N-way, A/B, ratings.

Which columns make which shape is said in ``lmrl.data.layouts.shapes``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmrl.data.layouts import conversations as talk
from lmrl.data.layouts.readers import (
    asked_columns,
    instruction,
    read_answer,
    read_asked,
    read_conversation,
    read_prompt,
)
from lmrl.data.layouts.reading import (
    Answered,
    Found,
    Reader,
    Skip,
    cell,
    filled,
    list_of,
    native,
    number,
    numbers,
    text_of,
    two,
)
from lmrl.data.records import dense_ranks

Row = Mapping[str, Any]


def preference(row: Row) -> Found:
    """Read a prompt with a chosen and a rejected answer, texts or messages.

    Answers in messages may repeat the prompt, as HuggingFaceH4/ultrafeedback_binarized does.
    """
    prompt, scores = cell(row, "prompt"), _pair_scores(row)
    used = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")
    if talk.looks_like_messages(row.get("chosen")) and talk.is_text(prompt):
        chosen = talk.read_messages(cell(row, "chosen"), "chosen")
        rejected = talk.read_messages(cell(row, "rejected"), "rejected")
        if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
            asked: talk.Messages = (talk.message("user", filled(prompt, "prompt")),)
            yield two(asked, talk.shortest(chosen), talk.shortest(rejected), scores, used)
        else:
            yield _divided(chosen, rejected, scores, used)
        return
    read = read_prompt(prompt)
    better, worse = (read_answer(cell(row, name), read, name) for name in ("chosen", "rejected"))
    yield two(read, better, worse, scores, used)


def implicit_preference(row: Row) -> Found:
    """Read two answers that repeat their prompt: messages, HH transcripts, or texts with a common beginning."""
    chosen, rejected, scores = cell(row, "chosen"), cell(row, "rejected"), _pair_scores(row)
    used = ("chosen", "rejected", "score_chosen", "score_rejected")
    if talk.is_text(chosen) and talk.is_text(rejected):
        if talk.is_transcript(chosen) and talk.is_transcript(rejected):
            yield _divided(talk.read_transcript(chosen), talk.read_transcript(rejected), scores, used)
            return
        cut = common_text(chosen, rejected)
        yield two(chosen[:cut], chosen[cut:], rejected[cut:], scores, used)
        return
    first, second = talk.read_messages(chosen, "chosen"), talk.read_messages(rejected, "rejected")
    yield _divided(first, second, scores, used)


def _divided(chosen: talk.Messages, rejected: talk.Messages, scores: list[Any], used: tuple[str, ...]) -> Answered:
    if chosen == rejected:
        raise Skip("chosen equal to rejected")
    prompt, better, worse = talk.divide(chosen, rejected)
    return two(prompt, talk.shortest(better), talk.shortest(worse), scores, used)


def common_text(first: str, second: str) -> int:
    """Return where two texts part, moved back to the beginning of a word; line ends stay with the prompt."""
    if first == second:
        raise Skip("chosen equal to rejected")
    cut = next((place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    cut = min(len(first), len(second)) if cut is None else cut
    words = [space.start() for space in re.finditer(r"[^\S\n]+|\n", first[:cut])]
    # A blank belongs to the word behind it, as in most vocabularies; a line end to the prompt.
    cut = max(((place + 1) if first[place] == "\n" else place for place in words), default=0)
    if not first[:cut].strip():
        raise Skip("two answers without a common beginning")
    return cut


def _pair_scores(row: Row) -> list[Any]:
    return [row.get("score_chosen"), row.get("score_rejected")]


def n_way(row: Row, asked: str = "prompt") -> Found:
    """Read N completions with ranks (0 is best) or scores (highest is best); ranks decide where both are there."""
    prompt = read_asked(row, asked)
    completions = [read_answer(item, prompt, "completion") for item in list_of(cell(row, "completions"), "completions")]
    note = ""
    if row.get("ranks") is not None:
        given = _numbers(row["ranks"], completions, "ranks")
        ranks = dense_ranks(given)
        try:
            scores = _numbers(row["scores"], completions, "scores") if _is_given(row.get("scores")) else ()
        except Skip as skip:
            scores, note = (), f"the ranks were kept and the scores left out ({skip.reason})"
        if scores and not _agree(ranks, scores):
            scores, note = (), "scores that contradict the ranks were left out"
    else:
        scores = _numbers(cell(row, "scores"), completions, "scores")
        ranks = dense_ranks(scores, "highest")
    used = (*asked_columns(asked), "completions", "ranks", "scores")
    yield Answered(prompt, tuple(completions), ranks, scores, used, note=note)


def _is_given(values: object) -> bool:
    values = native(values)
    return values is not None and values != []


def _agree(ranks: Sequence[int], scores: Sequence[float]) -> bool:
    """Tell whether no answer of a better rank has a lower score."""
    places = range(len(ranks))
    return not any(ranks[a] < ranks[b] and scores[a] < scores[b] for a in places for b in places)


def _numbers(values: object, completions: Sequence[object], what: str) -> tuple[float, ...]:
    found = numbers(list_of(values, what), what)
    if len(found) != len(completions):
        raise Skip(f"not as many {what} as completions", f"{len(found)} {what}, {len(completions)} completions")
    return found


def alpaca_preference(row: Row) -> Found:
    """Read an instruction with a chosen and a rejected answer."""
    better, worse = text_of(row.get("chosen"), "chosen"), text_of(row.get("rejected"), "rejected")
    used = ("instruction", "input", "chosen", "rejected", "system", "history", "score_chosen", "score_rejected")
    yield two(instruction(row), better, worse, _pair_scores(row), used)


def question_preference(row: Row) -> Found:
    """Read a question with a chosen and a rejected answer, each a text or messages."""
    asked, used = read_asked(row, "question"), ("question", "chosen", "rejected", "score_chosen", "score_rejected")
    better, worse = (read_answer(cell(row, name), asked, name) for name in ("chosen", "rejected"))
    yield two(asked, better, worse, _pair_scores(row), used)


def sharegpt_preference(row: Row) -> Found:
    """Read a conversation with a chosen and a rejected last message."""
    prompt = read_prompt(read_conversation(row, "conversations"))
    better, worse = (read_answer(cell(row, name), prompt, name) for name in ("chosen", "rejected"))
    used = ("conversations", "chosen", "rejected", "system", "score_chosen", "score_rejected")
    yield two(prompt, better, worse, _pair_scores(row), used)


def a_or_b(asked: str, first: str, second: str, label: str, scores: tuple[str, str] | None = None) -> Reader:
    """Return a reader of two answers with a label that names the better: 1 or 2, or (SHP) 1 for A and 0 for B."""
    other = 0.0 if label == "labels" else 2.0

    def read(row: Row) -> Found:
        prompt, value = filled(cell(row, asked), asked), number(cell(row, label))
        answers = (text_of(row.get(first), first), text_of(row.get(second), second))
        if value not in (1.0, other):
            raise Skip(f"a {label} that is neither 1 nor {other:g}", repr(row[label])[:40])
        given = [row.get(name) for name in scores] if scores else []
        used = (asked, first, second, label, *(scores or ()))
        if value == 1.0:
            yield two(prompt, answers[0], answers[1], given, used)
        else:
            yield two(prompt, answers[1], answers[0], given[::-1], used)

    return read


def ultrafeedback(row: Row) -> Found:
    """Read an instruction and its responses, scored by the mean of the aspects' ratings.

    A rating of "N/A" is left out of the mean. Where no aspect of a response has a rating, ``overall_score`` stands in;
    a response without either is left out.
    Source: Cui et al. 2023, "UltraFeedback", section 3.
    """
    responses = [item for item in list_of(cell(row, "completions"), "completions") if isinstance(item, Mapping)]
    scored = [(text_of(item.get("response"), "response"), aspect_score(item)) for item in responses]
    rated = [(text, score) for text, score in scored if score is not None]
    if len(rated) < 2:
        raise Skip("fewer than two rated responses")
    scores = tuple(score for _, score in rated)
    note = "responses without any rating were left out" if len(rated) < len(scored) else ""
    used = ("instruction", "completions")
    prompt = filled(cell(row, "instruction"), "instruction")
    yield Answered(prompt, tuple(text for text, _ in rated), dense_ranks(scores, "highest"), scores, used, note=note)


def aspect_score(response: Row) -> float | None:
    """Return the mean rating of an UltraFeedback response, or None when it has none."""
    annotations = response.get("annotations")
    aspects = annotations.values() if isinstance(annotations, Mapping) else []
    ratings = [number(aspect.get("Rating")) for aspect in aspects if isinstance(aspect, Mapping)]
    found = [rating for rating in ratings if rating is not None]
    return sum(found) / len(found) if found else number(response.get("overall_score"))


def summaries(row: Row) -> Found:
    """Read OpenAI's comparisons of summaries: a post, two summaries and the index of the better."""
    both, choice = list_of(cell(row, "summaries"), "summaries"), number(cell(row, "choice"))
    if len(both) != 2 or not all(isinstance(item, Mapping) for item in both):
        raise Skip("summaries that are not two")
    if choice not in (0.0, 1.0):
        raise Skip("a choice that is neither 0 nor 1", repr(row["choice"])[:40])
    better, worse = (text_of(both[place].get("text"), "summary") for place in (int(choice), 1 - int(choice)))
    yield two(summary_prompt(row), better, worse, used=("info", "summaries", "choice"))


def summary_prompt(row: Row) -> str:
    """Return the prompt of a comparison of summaries, as Stiennon et al. 2020 (appendix B) wrote it."""
    info = cell(row, "info")
    if not isinstance(info, Mapping):
        raise Skip("info that is not an object")
    post = info.get("post") or info.get("article")
    parts = [("SUBREDDIT: r/", info.get("subreddit")), ("TITLE: ", info.get("title")), ("POST: ", post)]
    filled(post, "post")
    return "\n\n".join([*(f"{name}{value}" for name, value in parts if value), "TL;DR:"])


def scored_pair(row: Row) -> Found:
    """Read WebGPT's comparisons: a question and two answers with scores."""
    answers = tuple(text_of(row.get(name), name) for name in ("answer_0", "answer_1"))
    scores = numbers([cell(row, "score_0"), cell(row, "score_1")], "scores")
    used = ("question", "answer_0", "answer_1", "score_0", "score_1")
    yield Answered(filled(question(row), "question"), answers, dense_ranks(scores, "highest"), scores, used)


def question(row: Row) -> object:
    """Return the question of WebGPT's comparisons, which keep it in an object."""
    asked = row["question"]
    return asked.get("full_text") if isinstance(asked, Mapping) else asked
