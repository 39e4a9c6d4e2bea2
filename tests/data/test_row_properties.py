"""Properties: rows written to a file and read again are the same, ranks and pairs agree, splits share no prompt."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrl.data import (
    ExampleSet,
    PromptSet,
    PromptSettings,
    Ranking,
    RankingSet,
    RowSettings,
    load_examples,
    load_prompts,
    load_rankings,
)
from lmrl.data.layouts.shapes import SHAPES
from lmrl.data.records import ChatExample, CompletionExample, dense_ranks
from lmrl.errors import DataError, LmrlError, SettingsError

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
scores = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=6)


@st.composite
def n_way_rows(draw):
    values = draw(scores.filter(lambda found: len(set(found)) > 1))
    completions = draw(st.lists(texts, min_size=len(values), max_size=len(values), unique_by=str.strip))
    return {"prompt": draw(texts), "completions": completions, "scores": values, "id": draw(st.integers())}


answers = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
tree = {
    "text": "q",
    "role": "prompter",
    "replies": [
        {"text": "a", "role": "assistant", "rank": 0},
        {"text": "b", "role": "assistant", "rank": "x"},
        3,
        None,
    ],
}
cells = st.sampled_from(
    [
        *(None, "", " ", "x", 3, 0.5, float("nan"), True, b"bytes", 10**400, ("t",), [], {}, [1], [{}], [[1]]),
        *(["a", "b"], ["a", "a"], [["a", "b"]], [0, 1], [1, 0], [1.0, "2"]),
        *(answers, answers[1:], answers[1], [{"from": "human", "value": "q"}], [{"role": None}], [{"role": "user"}]),
        *(tree, {**tree, "replies": None}, {**tree, "replies": 3}, {"full_text": "q"}, {"post": "p"}),
        *("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant:", "\n\nHuman:\n\nAssistant: b"),
        *([{"response": "a", "overall_score": 1}, {"response": "b", "annotations": {"x": {"Rating": "3"}}}],),
        *([{"response": None}], [{"text": "a"}, {"text": "b"}]),
    ]
)
extra_columns = ["system", "history", "input", "score_chosen", "answer", "label", "ranks", "scores"]


@st.composite
def junk_rows(draw):
    shape = draw(st.sampled_from(SHAPES))
    rows = draw(st.integers(1, 3))
    names = [name.partition(".")[0] for name in shape.columns]
    more = draw(st.lists(st.sampled_from(extra_columns), max_size=1))
    return [{name: draw(cells) for name in [*names, *more]} for _ in range(rows)]


@settings(max_examples=500)
@given(rows=junk_rows(), chat=st.sampled_from(["auto", "on", "off"]))
def test_no_row_breaks_the_reading(rows, chat):
    """Whatever the cells hold, rows are read or counted, or an error of ours says what is wrong."""
    for load in (load_examples, load_rankings):
        try:
            found = load(rows, RowSettings(chat=chat))
        except LmrlError:
            continue
        assert len(found.fingerprint()) == 64 and len(found) >= 1
        assert len(found.notes) >= 1 + len(found.skipped)
    with contextlib.suppress(LmrlError):
        load_prompts(rows, PromptSettings(chat=chat))


conversations = st.lists(texts, min_size=1, max_size=3).flatmap(
    lambda asked: st.lists(texts, min_size=len(asked), max_size=len(asked)).map(
        lambda said: [
            {"role": role, "content": text}
            for pair in zip(asked, said, strict=True)
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    )
)


@given(rows=st.lists(n_way_rows(), min_size=1, max_size=4))
def test_rankings_survive_a_file(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    plain, packed = folder / "a.jsonl", folder / "a.jsonl.gz"
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    direct = load_rankings(rows)
    for path in (plain, packed):
        found = load_rankings(path)
        assert found.rankings == direct.rankings and found.fingerprint() == direct.fingerprint()
    written = [
        {
            "prompt": item.prompt,
            "completions": item.completions,
            "ranks": item.ranks,
            "scores": item.scores,
            **item.columns,
        }
        for item in direct.rankings
    ]
    plain.write_text("".join(json.dumps(row) + "\n" for row in written))
    assert load_rankings(plain).rankings == direct.rankings, "what was read can be written and read again"


@given(messages=conversations)
def test_one_conversation_in_every_notation_is_one_example(messages):
    sharegpt = [{"from": "human" if item["role"] == "user" else "gpt", "value": item["content"]} for item in messages]
    examples = [
        load_examples([row]).examples
        for row in (
            {"messages": messages},
            {"conversations": sharegpt},
            {"prompt": messages[:-1], "completion": messages[-1:]},
        )
    ]
    assert examples == [[ChatExample(tuple(messages))]] * 3


@given(asked=texts, chosen=texts, rejected=texts)
def test_pairs_in_every_notation_are_one_ranking(asked, chosen, rejected):
    start = [{"role": "user", "content": asked}]
    ends = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    rows = [
        {"prompt": start, "chosen": chosen, "rejected": rejected},
        {"prompt": start, "chosen": ends[0], "rejected": ends[1]},
        {"prompt": asked, "chosen": start + ends[0], "rejected": start + ends[1]},
        {"chosen": start + ends[0], "rejected": start + ends[1]},
        {"prompt": start, "completions": [chosen, rejected], "ranks": [0, 1]},
        {"instruction": asked, "chosen": chosen, "rejected": rejected},
    ]
    if chosen.strip() == rejected.strip():
        for row in rows:
            with pytest.raises(DataError, match="chosen equal to rejected"):
                load_rankings([row])
        return
    found = [load_rankings([row]).rankings for row in rows]
    assert found == [[Ranking(tuple(start), (chosen, rejected), (0, 1))]] * len(rows)


@given(values=scores)
def test_ranks_agree_with_scores_and_pairs(values):
    ranks = dense_ranks(tuple(values), "highest")
    assert set(ranks) == set(range(len(set(values))))
    ranking = Ranking("p", tuple(map(str, range(len(values)))), ranks, tuple(values))
    wanted = {(a, b) for a, b in itertools.permutations(range(len(values)), 2) if values[a] > values[b]}
    assert set(ranking.pairs()) == wanted and len(ranking.pairs()) == len(wanted)
    assert dense_ranks(ranks) == ranks, "ranks of ranks are themselves"


@given(first=texts, second=texts, prompt=texts)
def test_a_common_beginning_is_cut_without_loss(first, second, prompt):
    row = {"chosen": f"{prompt}\n{first}", "rejected": f"{prompt}\n{second}"}
    try:
        [ranking] = load_rankings([row]).rankings
    except DataError as error:
        assert "left out" in str(error).lower()
        return
    if isinstance(ranking.prompt, str):
        assert [ranking.prompt + text for text in ranking.completions] == [row["chosen"], row["rejected"]]
        assert ranking.prompt.startswith(prompt)


@given(
    keys=st.lists(st.integers(0, 12), min_size=2, max_size=40),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
)
def test_splits_share_no_prompt_and_ignore_the_order(keys, share, seed):
    names = [f"prompt {key}" for key in keys]
    sets = [
        ExampleSet([CompletionExample(name, str(place)) for place, name in enumerate(names)]),
        RankingSet([Ranking(name, (str(place), "b"), (0, 1)) for place, name in enumerate(names)]),
        PromptSet(names, {"place": list(range(len(names)))}),
    ]
    sides = []
    for whole in sets:
        try:
            training, held_out = whole.split(share, seed)
        except SettingsError as error:
            sides.append(str(error)[:12])
            continue
        prompts = [set(_prompts(side)) for side in (training, held_out)]
        assert not prompts[0] & prompts[1] and prompts[0] | prompts[1] == set(names)
        assert len(training) + len(held_out) == len(names) and 1 <= len(held_out) <= share * len(names)
        backwards = whole.select(range(len(whole))[::-1]).split(share, seed)[1]
        assert set(_prompts(backwards)) == prompts[1]
        sides.append(prompts[1])
    assert sides[0] == sides[1] == sides[2], "one logic for all"


def _prompts(whole):
    if isinstance(whole, PromptSet):
        return whole.prompts
    return [item.prompt for item in (whole.examples if isinstance(whole, ExampleSet) else whole.rankings)]


def test_conversations_that_begin_alike_stay_on_one_side():
    def example(opening: int, later: str) -> dict[str, object]:
        roles = ("user", "assistant", "user", "assistant")
        contents = (f"question {opening}", f"answer {opening}", later, "yes")
        return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]}

    whole = load_examples([example(opening, later) for opening in range(20) for later in ("a", "b", "c")])
    training, held_out = whole.split(6)
    assert len(held_out) == 6
    assert len({item.messages[0]["content"] for item in held_out.examples}) == 2
    assert len(training) == 54 and training.shape == "chat" and training.notes == whole.notes
    with pytest.raises(SettingsError, match="more distinct prompts"):
        load_rankings([{"prompt": "p", "chosen": str(n), "rejected": "r"} for n in range(9)]).split(2)


def test_fingerprints_change_with_content_order_and_columns():
    rows = [{"prompt": "p", "chosen": "c", "rejected": "r"}, {"prompt": "q", "chosen": "c", "rejected": "r"}]
    others = [rows[::-1], rows[:1], [{**rows[0], "id": 1}, rows[1]], [{**rows[0], "chosen": "d"}, rows[1]]]
    prints = [load_rankings(item).fingerprint() for item in (rows, *others)]
    assert len(set(prints)) == 5 and prints[0] == load_rankings([dict(row) for row in rows]).fingerprint()
    assert len({load_examples(item).fingerprint() for item in (rows, rows[::-1], rows[:1])}) == 3


def test_a_ranking_that_does_not_fit_together_is_refused():
    for completions, ranks, values in [(("a",), (0,), ()), (("a", "b"), (0,), ()), (("a", "b"), (0, 2), ()),
                                       (("a", "b"), (1, 1), ()), (("a", "b"), (0, 1), (1.0,))]:  # fmt: skip
        with pytest.raises(DataError, match="expected"):
            Ranking("p", completions, ranks, values)
