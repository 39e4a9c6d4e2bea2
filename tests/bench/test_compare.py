"""Did anything get worse: planted differences are found, noise is not."""

import numpy as np
import pytest
from bench_records import record, results, write

from lmrl.bench.compare import compare, missing
from lmrl.cli.main import main
from lmrl.errors import DataError, SettingsError

MEANS = {"rloo": 0.6, "ppo": 0.7, "dpo": 0.4}


@pytest.fixture
def generator():
    return np.random.default_rng(7)


def verdicts(old, new, **settings):
    return {
        (one.optimizer, one.task, one.beta): one.verdict for one in compare({"tiny": old}, {"tiny": new}, **settings)
    }


def test_a_planted_regression_is_found_and_the_command_says_by_how_much(generator, tmp_path, capsys):
    old, new = results(generator, MEANS), results(generator, MEANS | {"ppo": 0.4})
    found = verdicts(old, new)
    assert {key[0] for key, verdict in found.items() if verdict == "worse"} == {"ppo"}
    assert found["ppo", "all tasks", None] == "worse"
    paths = [write(tmp_path / name, records) for name, records in (("a.jsonl", old), ("b.jsonl", new))]
    assert main(["bench", "compare", *map(str, paths)]) == 1
    printed = capsys.readouterr().out
    assert "worse" in printed and "ppo" in printed and "-0.3" in printed


def test_no_difference_passes_however_often_it_is_asked(generator, tmp_path, capsys):
    for _ in range(20):
        found = verdicts(results(generator, MEANS), results(generator, MEANS))
        assert "worse" not in found.values()
        assert found["rloo", "all tasks", None] == "equal"
    old, new = results(generator, MEANS), results(generator, MEANS)
    paths = [write(tmp_path / name, records) for name, records in (("a.jsonl", old), ("b.jsonl", new))]
    assert main(["bench", "compare", *map(str, paths)]) == 0
    assert "0 worse" in capsys.readouterr().out


def test_a_difference_within_the_margin_is_none_and_a_smaller_margin_finds_it(generator):
    old, new = results(generator, MEANS, spread=0.002), results(generator, {"rloo": 0.57}, spread=0.002)
    assert set(verdicts(old, new).values()) == {"equal"}
    assert set(verdicts(old, new, margin=0.01).values()) == {"worse"}


def test_over_all_tasks_means_over_those_that_both_have(generator):
    old = [
        record(0.9 if task == "easy" else 0.2, optimizer="rloo", task=task, seed=seed)
        for task in ("easy", "hard", "odd")
        for seed in range(5)
    ]
    same = [one for one in old if one.task != "easy"]
    assert set(verdicts(old, same).values()) == set(verdicts(same, old).values()) == {"equal"}
    worse = [record(one.score - 0.3 * (one.task == "hard"), **key_of(one)) for one in old if one.task != "odd"]
    assert verdicts(old, worse)["rloo", "hard", 0.05] == "worse"
    assert verdicts(old, worse)["rloo", "all tasks", None] == "worse", "without the task that is gone, which was easier"


def test_other_settings_are_said(generator):
    old = results(generator, {"rloo": 0.6}, digest="one")
    new = [record(one.score, **key_of(one), digest="two" if one.task == "sums" else "one") for one in old]
    notes = {one.task: one.note for one in compare({"tiny": old}, {"tiny": new})}
    assert notes == {"sums": "under other settings than before", "words": "", "all tasks": ""}


def test_one_seed_decides_nothing(generator):
    old, new = results(generator, {"rloo": 0.6}, seeds=1), results(generator, {"rloo": 0.1}, seeds=1)
    assert set(verdicts(old, new).values()) == {"undecided"}


def test_other_seeds_are_compared_without_pairs(generator):
    old = results(generator, {"rloo": 0.6}, seeds=5)
    new = [one for one in results(generator, {"rloo": 0.2}, seeds=7) if one.seed > 1]
    assert set(verdicts(old, new).values()) == {"worse"}


def test_a_run_that_fails_now_is_worse_and_one_that_is_missing_is_said(generator, tmp_path, capsys):
    old = results(generator, MEANS)
    new = [one if one.optimizer != "dpo" or one.seed else record(None, **key_of(one)) for one in old[:-1]]
    found = {one.optimizer: one for one in compare({"tiny": old}, {"tiny": new}) if one.verdict == "failed"}
    assert list(found) == ["dpo"] and "fail now" in found["dpo"].note
    assert missing(old, new) == ["words, dpo, beta 0.2, seed 4"]
    paths = [write(tmp_path / name, records) for name, records in (("a.jsonl", old), ("b.jsonl", new))]
    assert main(["bench", "compare", *map(str, paths)]) == 1
    assert "missing" in capsys.readouterr().out
    less = write(tmp_path / "less.jsonl", old[:-5])
    assert main(["bench", "compare", str(paths[0]), str(less)]) == 0
    assert main(["bench", "compare", str(paths[0]), str(less), "--complete"]) == 1
    capsys.readouterr()
    more = results(generator, {"rloo": 0.6}, suite="other")
    before = [write(tmp_path / "before" / f"{name}.jsonl", records) for name, records in (("a", old), ("b", more))]
    assert main(["bench", "compare", str(before[0].parent), str(write(tmp_path / "c.jsonl", old))]) == 0
    assert "other: 20 runs of the old result are missing" in capsys.readouterr().out, "a suite that is gone is said"


def key_of(one):
    return {"task": one.task, "optimizer": one.optimizer, "beta": one.beta, "seed": one.seed}


def test_what_cannot_be_compared_is_refused(generator, tmp_path, capsys):
    old = results(generator, {"rloo": 0.6})
    with pytest.raises(DataError, match="nothing to compare"):
        compare({"tiny": old}, {"other": [record(suite="other")]})
    with pytest.raises(DataError, match="nothing to compare"):
        compare({"tiny": old}, {"tiny": results(generator, {"ppo": 0.6})})
    with pytest.raises(SettingsError, match="one budget"):
        compare({"tiny": old}, {"tiny": [record(budget=type(old[0].budget)("updates", 11))]})
    path = str(write(tmp_path / "a.jsonl", old))
    assert main(["bench", "compare", path, path, "--margin", "0"]) == 2
    assert "above 0" in capsys.readouterr().err
