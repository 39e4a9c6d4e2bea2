"""Records as a suite would have made them, for tests of what is read from them."""

import numpy as np

from lmrl.bench.records import Record
from lmrl.bench.suite import Budget
from lmrl.statistics.aggregates import Scores


def record(score=0.5, **changes):
    """Return one record; a score of None is a run that failed."""
    failed = score is None
    values = {
        "suite": "tiny",
        "kind": "rl",
        "task": "sums",
        "optimizer": "rloo",
        "beta": 0.05,
        "seed": 0,
        "budget": Budget("updates", 10),
        "status": "failed" if failed else "done",
        "measure": "objective",
        "score": score,
        "error": "NonFiniteError: the loss is nan" if failed else "",
        "seconds": 2.0,
    }
    if not failed:
        kl = 1.0 + score
        values["metrics"] = {
            "objective": score,
            "reward": score + 0.05 * kl,
            "kl": kl,
            "length": 3.0,
            "start_reward": 0.1,
            "tokens_per_second": 900.0,
        }
        values["curve"] = {"update": [0, 5, 10], "reward": [0.1, score / 2, score]}
    return Record(**(values | changes))


def results(generator, means, seeds=5, spread=0.03, **changes):
    """Return the records of optimizers whose scores have these means, on two tasks at two coefficients."""
    return [
        record(
            float(mean + spread * generator.standard_normal()),
            optimizer=name,
            task=task,
            beta=beta,
            seed=seed,
            **changes,
        )
        for name, mean in means.items()
        for task in ("sums", "words")
        for beta in (0.05, 0.2)
        for seed in range(seeds)
    ]


def write(path, records):
    """Write records as a file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(one.line() + "\n" for one in records), encoding="utf-8")
    return path


def scores_of(*tasks):
    """Return scores: for each task a list of cells, each with one score per seed (None is a run that is not there)."""
    runs = [
        (value, 100 * task + place, task, seed)
        for task, cells in enumerate(tasks)
        for place, cell in enumerate(cells)
        for seed, value in enumerate(cell)
        if value is not None
    ]
    values, cells, places, seeds = zip(*runs, strict=True) if runs else ((), (), (), ())
    return Scores(
        np.array(values, dtype=float),
        np.array(cells, dtype=int),
        np.array(places, dtype=int),
        np.array(seeds, dtype=int),
    )
