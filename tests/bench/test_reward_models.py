"""The kind `reward`: ways of learning from rankings, on the same held-out prompts, against the share of the labels."""

from __future__ import annotations

import json
import random

import pytest

from lmrl.bench.kinds import kind_named
from lmrl.bench.records import read_records
from lmrl.bench.report import write_report
from lmrl.bench.running import plan, run_suite
from lmrl.bench.suite import load_suite
from lmrl.bench.suite_kind import SuiteRun
from lmrl.cli.main import main
from lmrl.data import Ranking
from lmrl.errors import LmrlError, SettingsError
from lmrl.plugins import PluginManager
from lmrl.stages.reward.data import RankedRows
from lmrl.stages.reward.measures import HeldOut
from lmrl_suites.rankings import one_pair


@pytest.fixture(scope="module")
def plugins():
    return PluginManager()


def rankings(count, seed, width=2):
    """Return rankings whose better answers have kind words, never more of them than the worse have rude ones."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        good = " ".join(chance.choices(["kind", "clear", "a", "b", "c"], k=6))
        bad = [" ".join(chance.choices(["rude", "a", "b", "c", "d"], k=6)) for _ in range(width - 1)]
        made.append(Ranking(f"prompt {number}", (*bad, good), (*[1] * (width - 1), 0)))
    return made


def test_the_bag_of_words_learns_which_words_are_good():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (it is in the bench extra)")
    from lmrl_suites.bag_of_words import bag_of_words

    held_out = [RankedRows(((3,), (3,)), (1, 1), one.ranks, (), one) for one in rankings(60, 1)]
    scores = bag_of_words(rankings(120, 0), held_out)
    assert HeldOut.of(held_out, scores).accuracy().low > 0.8


def test_one_pair_of_a_ranking():
    ranking = Ranking("p", ("a", "b", "c"), (0, 1, 1), (2.0, 1.0, 1.0))
    pairs = {one_pair(ranking, seed).completions for seed in range(40)}
    assert pairs == {("a", "b"), ("a", "c")}


def test_the_toy_size_learns_and_draws_its_rankings_once(plugins, tmp_path):
    suite = load_suite("reward-models", plugins, smoke=True, changes={"seeds": 1})
    output = tmp_path / "reward-models.jsonl"
    records = run_suite(suite, output, plugins=plugins, progress=False)
    assert [record.error for record in records] == [""] * len(records)
    by_name = {record.optimizer: record for record in records}
    assert set(by_name) >= {"plackett_luce", "bradley_terry", "one_pair", "longer_answer"}
    for record in records:
        assert record.curve["share"] == [0.5, 1.0]
        assert record.curve["accuracy"][-1] == pytest.approx(record.metrics["accuracy"], abs=1e-6)
        assert record.metrics["pairs"] == records[0].metrics["pairs"], "the same held-out pairs for everybody"
        assert record.score == record.metrics["accuracy"]
    longer = by_name["longer_answer"]
    assert "log_loss" not in longer.metrics and longer.curve["accuracy"][0] == longer.curve["accuracy"][1]
    assert by_name["plackett_luce"].metrics["accuracy"] > 0.7, "the story world's pairs are easily told apart"
    assert len(list((tmp_path / "rankings").iterdir())) == 1
    page, text = write_report({suite.name: read_records(output)}, tmp_path / "report", plugins)
    assert "calibration error by share of the labels, stories" in page.read_text(encoding="utf-8")
    assert "reward-models --smoke" not in text.read_text(encoding="utf-8")  # the command was not asked with it


def test_a_file_of_pairs_makes_one_of_the_losses(plugins, tmp_path):
    """Of pairs alone the three losses are one: the same rows in the same order give the same scores."""
    file = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": f"Tom saw a {place % 7}.", "chosen": f"He smiled {place}.", "rejected": f"He cried {place}."}
        for place in range(40)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    suite = pairs_suite(plugins, file)
    kind = kind_named("reward", plugins)
    found = [
        kind.execute(suite, SuiteRun("hh_rlhf", way, 0.0, 0), tmp_path, plugins)
        for way in ("plackett_luce", "bradley_terry")
    ]
    assert found[0].metrics == pytest.approx(found[1].metrics, abs=1e-5)
    assert "kendall_tau" not in found[0].metrics, "there are no rankings of three"
    assert found[0].metrics["rankings"] < 40
    digests = {one.digest for one in plan(suite, plugins)}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]), encoding="utf-8")
    assert not digests & {one.digest for one in plan(suite, plugins)}, "other data are other runs"


def pairs_suite(plugins, file, *more):
    model = "tasks.hh_rlhf.model=stories"
    path = f"tasks.hh_rlhf.settings.data.path={file}"
    changes = {"only": ["hh_rlhf"], "optimizers": ["plackett_luce", "bradley_terry"]}
    few = "tasks.hh_rlhf.shares=[1.0]"
    return load_suite("reward-models", plugins, overrides=[model, path, few, *more], changes=changes)


def test_tasks_without_data_are_left_out_and_said(plugins, tmp_path, capsys):
    assert {one.run.task for one in plan(load_suite("reward-models", plugins), plugins)} == {"stories"}
    only = load_suite("reward-models", plugins, changes={"only": ["oasst"]})
    with pytest.raises(SettingsError, match=r"oasst \(give tasks\.oasst\.model=.*tasks\.oasst\.settings\.data\.path"):
        plan(only, plugins)
    command = ["bench", "run", "reward-models", "--tasks", "oast", "--output", str(tmp_path)]
    assert main(command) == 2
    assert "did you mean 'oasst'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tasks.hh_rlhf.shares=[0.5, 0.25]", "ascending"),
        ("settings.train.steps=3", "leave it out"),
        ("settings.objective.losss=3", "did you mean"),
        ("budget.unit=updates", "count epochs"),
        ("tasks.hh_rlhf.settings.data=3", "data"),
        ("tasks.hh_rlhf.settings.data.held_out=0", "held_out is 0"),
        ("tasks.hh_rlhf.settings.data.held_out=40", "held_out"),
        ("tasks.hh_rlhf.model=/nowhere/model", "/nowhere/model"),
        ("settings.ensemble.members=2", "leave it out"),
        ("measure.name=log_loss", "expected one of accuracy"),
        ("tasks.stories.settings.data.path=pairs.jsonl", "drawn and settings.data.path"),
        ("tasks.hh_rlhf.settings.data.path=/nowhere/pairs.jsonl", "pairs.jsonl"),
        ("tasks.stories.drawn.answers=1", "2 of each"),
        ("tasks.stories.drawn.gold=god_story", "did you mean 'good_story'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(plugins, tmp_path, override, said):
    file = tmp_path / "pairs.jsonl"
    write_rankings(file, rankings(20, 0))
    with pytest.raises(LmrlError, match=said):
        plan(_stories(plugins, override) if "stories" in override else pairs_suite(plugins, file, override), plugins)


def _stories(plugins, override):
    return load_suite("reward-models", plugins, overrides=[override], changes={"only": ["stories"]})


def write_rankings(file, made):
    lines = ({"prompt": one.prompt, "completions": list(one.completions), "ranks": list(one.ranks)} for one in made)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def test_an_answer_that_is_too_long_is_left_out_for_everybody(plugins, tmp_path):
    """The first answer of each ranking does not fit; the baseline must not score the others by its words."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (it is in the bench extra)")
    made = [Ranking(one.prompt, ("kind " * 400, *one.completions), (2, *one.ranks)) for one in rankings(80, 0, width=2)]
    file = write_rankings(tmp_path / "long.jsonl", made)
    suite = pairs_suite(plugins, file, "tasks.hh_rlhf.settings.data.too_long=skip")
    found = kind_named("reward", plugins).execute(suite, SuiteRun("hh_rlhf", "bag_of_words", 0.0, 0), tmp_path, plugins)
    assert found.metrics["accuracy"] > 0.8 and "kendall_tau" not in found.metrics, "pairs are left"


def test_few_rankings_of_rare_words_are_scored_alike(plugins, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (it is in the bench extra)")
    made = [Ranking(f"p{n}", (f"a{n}", f"b{n}"), (0, 1)) for n in range(8)]
    suite = pairs_suite(plugins, write_rankings(tmp_path / "rare.jsonl", made))
    found = kind_named("reward", plugins).execute(suite, SuiteRun("hh_rlhf", "bag_of_words", 0.0, 0), tmp_path, plugins)
    assert found.metrics["accuracy"] == 0.5
    same = [Ranking("p", (f"a b {n}", f"c d {n}"), (0, 1)) for n in range(4)] + [made[0]]
    from lmrl_suites.bag_of_words import bag_of_words

    held_out = [RankedRows(((3,), (3,)), (1, 1), one.ranks, (), one) for one in same]
    assert HeldOut.of(held_out, bag_of_words(same[:4], held_out)).accuracy().mean > 0.5, "one prompt is enough"


def test_scores_come_along_and_margins_are_for_pairs(plugins, tmp_path):
    scored = Ranking("p", ("a", "b", "c"), (0, 1, 1), (2.0, 1.0, 1.0))
    assert one_pair(scored, 0).scores == (2.0, 1.0)
    file = write_rankings(tmp_path / "pairs.jsonl", rankings(20, 0))
    with pytest.raises(SettingsError, match="give --optimizers bradley_terry,one_pair"):
        plan(pairs_suite(plugins, file, "settings.objective.margin=0.5"), plugins)


def test_models_of_one_name_are_told_apart(plugins, tmp_path):
    import shutil

    from lmrl.stories import MODEL_PATH

    file = write_rankings(tmp_path / "pairs.jsonl", rankings(20, 0))
    digests = []
    for place in ("a", "b"):
        folder = tmp_path / place / "model"
        shutil.copytree(MODEL_PATH, folder)
        suite = pairs_suite(plugins, file, f"tasks.hh_rlhf.model={folder}")
        digests.append({one.digest for one in plan(suite, plugins)})
        assert all(one.settings["model"].startswith("model ") for one in plan(suite, plugins))
    assert digests[0] == digests[1], "one model at two places"
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert not digests[0] & {one.digest for one in plan(suite, plugins)}, "other weights"
