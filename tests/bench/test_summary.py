"""Records of one suite put together."""

import numpy as np
from bench_records import record, results

from lmrl.bench.summary import summarise


def test_where_there_is_place_for_one_coefficient_it_is_the_one_with_the_most_runs():
    runs = results(np.random.default_rng(0), {"rloo": 0.6, "ppo": 0.4})
    assert summarise(runs).chief_beta("sums") == 0.2, "the same at both"
    assert summarise([r for r in runs if r.beta < 0.2 or r.seed < 3]).chief_beta("sums") == 0.05


def test_runs_that_failed_make_no_coefficient_the_chief_one():
    runs = [record(0.5, beta=0.05, seed=0), *(record(None, beta=0.2, seed=seed) for seed in range(3))]
    assert summarise(runs).chief_beta(runs[0].task) == 0.05
    assert summarise(runs[1:]).chief_beta(runs[0].task) == 0.2
