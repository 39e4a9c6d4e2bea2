"""The completions that are compared, as they are kept, and those that come from a file. Needs no torch."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmrl.annotators import Comparison
from lmrl.annotators.ranks import compact_ranks, dense_ranks
from lmrl.annotators.reward import reward_columns
from lmrl.data import RowSettings, load_rankings
from lmrl.data.layouts.parts import template_variables
from lmrl.data.layouts.readers import read_answer, read_prompt
from lmrl.data.layouts.reading import Answered, Skip, list_of, numbers, refuse_half_characters
from lmrl.data.layouts.rows import Reading, Tally, as_asked
from lmrl.data.layouts.shapes import Shape, column_sets, find_shape
from lmrl.data.loading.sources import Opened, open_rows
from lmrl.data.notes import log_notes
from lmrl.data.records import Answer, Prompt
from lmrl.errors import DataError, ResumeError
from lmrl.judges.questions import as_text
from lmrl.rewards.scorable import scorable_rows
from lmrl.text.conversation import with_variables

if TYPE_CHECKING:
    from lmrl.rewards.function import RewardFunction
    from lmrl.stages.prefer.config import PreferConfig

logger = logging.getLogger(__name__)
SAMPLES_FILE = "samples.jsonl"
PROMPTS_FILE = "prompts.json"
"""Tells whether the prompts are still those of which some were sampled, and what was left out of a file."""
UNRANKED = ("prompt", "completions")
_TO_BE_RANKED = Shape("completions to be ranked", UNRANKED)


@dataclass(frozen=True)
class Candidates:
    """A prompt and its distinct completions; ``drawn`` says how often each came, ``cut`` how many ran into a limit."""

    comparison: Comparison
    drawn: tuple[int, ...] = ()
    cut: int = 0
    gold_ranks: tuple[int, ...] = ()

    @property
    def rankable(self) -> bool:
        """True if there is anything to compare."""
        return len(self.comparison.completions) > 1

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        asked = self.comparison
        prompt = asked.prompt if isinstance(asked.prompt, str) else [dict(message) for message in asked.prompt]
        return {
            "prompt": prompt,
            "prompt_text": asked.prompt_text,
            "completions": list(asked.completions),
            "drawn": list(self.drawn),
            "cut": self.cut,
            "gold_ranks": list(self.gold_ranks),
            "columns": dict(asked.columns),
            **({"sampled": dict(asked.sampled)} if asked.sampled else {}),
        }


@dataclass(frozen=True)
class CandidateSet:
    """All samples of a run, and what was left out on the way, by reason."""

    samples: list[Candidates]
    skipped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def make_candidates(
    prompt: Prompt,
    prompt_text: str,
    columns: Mapping[str, Any],
    completions: Sequence[str],
    gold_ranks: Sequence[int] = (),
    cut: int = 0,
    sampled: Mapping[str, Sequence[Any]] | None = None,
) -> Candidates:
    """Return a sample of the distinct completions; those that differ in the white space around them are one.

    ``sampled`` are columns about the sampling, with one value per completion.
    """
    places: dict[str, int] = {}
    drawn: list[int] = []
    kept: list[int] = []
    for index, text in enumerate(completions):
        place = places.setdefault(text.strip(), len(kept))
        if place == len(kept):
            kept.append(index)
            drawn.append(0)
        drawn[place] += 1
    gold = compact_ranks([gold_ranks[index] for index in kept]) if gold_ranks else ()
    own = {name: [values[index] for index in kept] for name, values in (sampled or {}).items()}
    comparison = Comparison(prompt, prompt_text, tuple(completions[index] for index in kept), columns, own)
    return Candidates(comparison, tuple(drawn), cut, gold)


def read_completions(settings: RowSettings) -> CandidateSet:
    """Return the completions in a file: of rows with prompt and completions, or of any shape of rankings.

    Ranks or scores in the rows, or columns ``gold_ranks`` or ``gold_scores``, become gold ranks. Raises ``DataError``.
    """
    opened = open_rows(None, settings, "completions", "completions_from")
    shape = find_shape(column_sets(opened.rows), "rankings")
    if shape is None and any(set(UNRANKED) <= row.keys() for row in opened.rows):
        return _unranked(opened, settings)
    found = load_rankings(None, settings, "completions_from")
    skipped = dict(found.skipped)
    samples = []
    for ranking in found.rankings:
        texts = _texts(ranking.completions)
        if texts is None:
            skipped["answers of several turns"] = skipped.get("answers of several turns", 0) + 1
            continue
        samples.append(make_candidates(ranking.prompt, as_text(ranking.prompt), ranking.columns, texts, ranking.ranks))
    return _checked(CandidateSet(samples, skipped, found.notes), settings.path)


def scorable_samples(samples: CandidateSet, rewards: Sequence[RewardFunction], config: PreferConfig) -> CandidateSet:
    """Return the samples whose answer columns every reward can read; the others are counted.

    Raises ``RewardError`` if a reward needs a column that is missing.
    """
    kept = samples.samples
    origins = [f"{config.completions_from.path}, prompt {number}" for number in range(1, len(kept) + 1)]
    columns = reward_columns([sample.comparison for sample in kept])
    places = scorable_rows(rewards, columns, origins, config.on_unreadable)
    if len(places) == len(kept):
        return samples
    skipped = {**samples.skipped, "answers that a reward cannot read": len(kept) - len(places)}
    return CandidateSet([kept[place] for place in places], skipped, samples.notes)


def write_samples(folder: Path, samples: CandidateSet) -> None:
    """Write ``samples.jsonl`` in one piece, and beside it what was left out."""
    log_notes(logger, samples.notes)
    write_whole(folder / PROMPTS_FILE, [{"skipped": samples.skipped}])
    write_whole(folder / SAMPLES_FILE, [sample.to_dict() for sample in samples.samples])


def write_whole(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines in one piece: a kill leaves all of them or none."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.writelines(json.dumps(record, default=str).encode() + b"\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_samples(folder: Path) -> tuple[list[Candidates], dict[str, int]]:
    """Return the samples of a run and what was left out, by reason.

    Raises ``ResumeError`` for a file that has been changed by hand.
    """
    samples = []
    for number, line in enumerate((folder / SAMPLES_FILE).read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            prompt = row["prompt"]
            if not isinstance(prompt, str):
                prompt = with_variables(prompt, template_variables(row["columns"]))
            comparison = Comparison(
                prompt, row["prompt_text"], tuple(row["completions"]), row["columns"], row.get("sampled", {})
            )
            samples.append(Candidates(comparison, tuple(row["drawn"]), row["cut"], tuple(row["gold_ranks"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ResumeError(
                f"{folder / SAMPLES_FILE}, line {number} is no sample ({error!r}); it has been changed by hand, so "
                "the answers that belong to it cannot be told any more. Start a new run."
            ) from error
    skipped = json.loads((folder / PROMPTS_FILE).read_text(encoding="utf-8")).get("skipped", {})
    return samples, skipped


def _unranked(opened: Opened, settings: RowSettings) -> CandidateSet:
    samples: list[Candidates] = []
    tally = Tally(settings.path)
    reading = Reading(opened, _TO_BE_RANKED, "logged")
    for number, row in enumerate(opened.rows[: settings.limit or None], start=1):
        try:
            asked = read_prompt(row.get("prompt"))
            given = list_of(row.get("completions"), "completions")
            answers = tuple(read_answer(item, asked, "completion") for item in given)
            found = reading.complete(Answered(asked, answers, ()), row)
            prompt, answers = as_asked(found, settings.chat, _TO_BE_RANKED)
            texts = _texts(answers)
            if texts is None:
                raise Skip("answers of several turns")
            refuse_half_characters(prompt, *texts)
            gold = _gold_ranks(row, len(texts))
        except Skip as skip:
            tally.skip(skip, number)
            continue
        columns = {name: value for name, value in row.items() if name not in UNRANKED}
        samples.append(make_candidates(prompt, as_text(prompt), columns, texts, gold))
    note = f"{settings.path}: {len(samples)} prompts with completions to be ranked"
    notes = (note, *opened.notes, *reading.notes(), *tally.notes())
    return _checked(CandidateSet(samples, tally.skipped, notes), settings.path)


def _checked(samples: CandidateSet, where: str) -> CandidateSet:
    """Return the samples. Raises ``DataError`` if there is nothing to rank, or if no table could hold the prompts."""
    texts = sum(isinstance(sample.comparison.prompt, str) for sample in samples.samples)
    if 0 < texts < len(samples.samples):
        raise DataError(
            f"{where}: {texts} prompts are text and {len(samples.samples) - texts} are messages; expected one kind: "
            'completions_from.chat = "on" makes messages of texts, "off" texts of single questions.'
        )
    if any(sample.rankable for sample in samples.samples):
        return samples
    reasons = "; ".join(f"{count}: {reason}" for reason, count in samples.skipped.items())
    raise DataError(
        f"{where}: no prompt has two different completions, so there is nothing to rank"
        + (f". Left out {reasons}." if reasons else ".")
    )


def _gold_ranks(row: Mapping[str, Any], count: int) -> tuple[int, ...]:
    for name, best_is_high in (("gold_ranks", False), ("gold_scores", True)):
        if row.get(name) is not None:
            values = numbers(list_of(row[name], name), name)
            if len(values) != count:
                raise Skip(f"not as many {name} as completions")
            return dense_ranks(values if best_is_high else [-value for value in values])
    return ()


def _texts(answers: Sequence[Answer]) -> list[str] | None:
    texts = [answer for answer in answers if isinstance(answer, str)]
    return texts if len(texts) == len(answers) else None
