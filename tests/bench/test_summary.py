"""Records of one suite put together."""

import numpy as np
from bench_records import record, results

from lmrl.bench.records import Grid
from lmrl.bench.summary import summarise


def test_where_there_is_place_for_one_coefficient_it_is_the_one_with_the_most_runs():
    runs = results(np.random.default_rng(0), {"rloo": 0.6, "ppo": 0.4})
    assert summarise(runs).chief_beta("sums") == 0.2, "the same at both"
    assert summarise([r for r in runs if r.beta < 0.2 or r.seed < 3]).chief_beta("sums") == 0.05


def test_runs_that_failed_make_no_coefficient_the_chief_one():
    runs = [record(0.5, beta=0.05, seed=0), *(record(None, beta=0.2, seed=seed) for seed in range(3))]
    assert summarise(runs).chief_beta(runs[0].task) == 0.05
    assert summarise(runs[1:]).chief_beta(runs[0].task) == 0.2


def test_what_was_asked_for_and_is_not_there_is_missing():
    grid = Grid(["sums", "words"], ["rloo", "ppo"], [0.05], 3)
    runs = [record(0.5, seed=0, grid=grid), record(0.5, seed=1, grid=grid)]
    found = summarise(runs)
    assert len(found.missing) == 2 * 2 * 3 - 2 and ("words", "ppo", 0.05, 2) in found.missing
    assert [row.missing for row in found.rows] == [4], "an optimizer without any run has no row"
    assert summarise([record(0.5, seed=s) for s in (0, 2)]).missing == [], "nothing says that there was to be more"


def test_nothing_is_missing_of_runs_that_nobody_asked_for():
    """Two calls: all optimizers on one task, one of them on another."""
    grids = [Grid(["sums"], ["rloo", "ppo"], [0.05], 2), Grid(["words"], ["rloo"], [0.05], 2)]
    runs = [record(0.5, task=t, optimizer=o, beta=b, seed=s, grid=grid) for grid in grids for t, o, b, s in grid.runs()]
    found = summarise(runs)
    assert found.missing == [] and [grid for _, grid in found.grids] == grids
    assert summarise(runs[:-1]).missing == [runs[-1].key]


def test_a_call_that_went_on_with_an_earlier_one_takes_its_place():
    few, more = (Grid(["sums"], ["rloo"], [0.05], seeds) for seeds in (2, 4))
    runs = [record(0.5, seed=seed, grid=few if seed < 2 else more) for seed in range(4)]
    assert summarise(runs).grids == [("tiny", more)] and summarise(runs).missing == []


def test_runs_that_failed_put_an_optimizer_last_and_raise_no_aggregate():
    runs = [
        record(score, optimizer=name, task=task, seed=seed)
        for name, scores in (("rloo", (0.9, 0.3)), ("ppo", (0.9, 0.4)))
        for task, score in zip(("easy", "hard"), scores, strict=True)
        for seed in range(4)
    ]
    whole = summarise(runs)
    broken = [record(None, optimizer="rloo", task="hard", seed=r.seed) if fails(r) else r for r in runs]
    found = summarise(broken)
    assert found.optimizers == ["ppo", "rloo"] and found.rows[1].title == "rloo *"
    assert found.rows[1].score.mean == whole.rows[1].score.mean


def fails(run):
    return run.optimizer == "rloo" and run.task == "hard" and run.seed > 1
