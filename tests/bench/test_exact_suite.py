"""Suites of the kind `exact`: what a record says, further rows of an optimizer, and best of n without draws."""

from dataclasses import replace

import pytest
import torch

from lmrl.bench.records import read_records
from lmrl.bench.running import plan, run_suite
from lmrl.bench.suite import Budget, Recipe, load_suite
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl.statistics import best_of_kl
from lmrl.testing import counting_problem, random_problem
from lmrl_suites.exact_best_of import BEST_OF, best_of_log_probabilities, best_of_measures
from lmrl_suites.kinds.exact import ASCENT


@pytest.fixture(scope="module")
def plugins():
    return PluginManager()


@pytest.fixture
def small(plugins):
    changes = {"only": ["counting"], "betas": [0.3], "seeds": 1}
    return replace(load_suite("exact", plugins, changes=changes), budget=Budget("updates", 4))


def of(suite, *names, **changes):
    return replace(suite, optimizers=list(names), **changes)


def test_a_record_says_how_far_the_optimum_is(tmp_path, small, plugins):
    records = run_suite(of(small, "reinforce", ASCENT, BEST_OF), tmp_path / "e.jsonl", plugins=plugins, progress=False)
    assert [record.status for record in records] == ["done"] * 3
    for metrics in (record.metrics for record in records):
        problem = counting_problem(0)
        assert metrics["objective"] + metrics["gap"] == pytest.approx(problem.optimal_objective(0.3), abs=2e-5)
        assert metrics["gap_closed"] == pytest.approx(1 - metrics["gap"] / metrics["start_gap"], abs=1e-3)
        assert metrics["objective"] == pytest.approx(metrics["reward"] - 0.3 * metrics["kl"], abs=2e-5)


def test_the_suite_runs_every_optimizer_and_what_they_are_compared_with(small, plugins):
    names = {one.run.optimizer for one in plan(small, plugins)}
    centred = {f"{name}_centred" for name in ("grpo", "gspo", "cispo", "gmpo", "sapo")}
    assert names == {*plugins.optimizers(), *centred, ASCENT, BEST_OF}
    found = {one.run.optimizer: one.settings for one in plan(of(small, "ilql", "dpo", ASCENT, betas=[0.25]), plugins)}
    assert found["ilql"]["optimizer"]["beta"] == 4.0 and found["dpo"]["optimizer"]["beta"] == 0.25
    assert "optimizer" not in found[ASCENT]


def test_a_recipe_can_run_an_optimizer_once_more_with_other_settings(tmp_path, small, plugins):
    recipes = {
        "grpo": Recipe(optimizer={"epochs": 2}, settings={"group_size": 4}),
        "grpo_centred": Recipe(of="grpo", optimizer={"normalisation": "none"}),
    }
    suite = of(small, "grpo", "grpo_centred", recipes=recipes)
    base, further = plan(suite, plugins)
    assert further.settings["optimizer"] == base.settings["optimizer"] | {"normalisation": "none"}, "its own on top"
    assert further.settings["group_size"] == 4 and further.digest != base.digest
    records = run_suite(suite, tmp_path / "e.jsonl", plugins=plugins, progress=False)
    assert records[0].metrics["objective"] != records[1].metrics["objective"]
    assert [record.optimizer for record in records] == ["grpo", "grpo_centred"]


def test_further_rows_that_cannot_be_are_said(small, plugins, caplog):
    with pytest.raises(SettingsError, match=r"rloo is an optimizer itself; give the recipe another name"):
        plan(replace(small, recipes={"rloo": Recipe(of="grpo")}), plugins)
    with pytest.raises(SettingsError, match=r"recipes\.b\.of is 'a', a recipe itself; expected 'grpo'"):
        replace(small, recipes={"a": Recipe(of="grpo"), "b": Recipe(of="a")})
    for recipes in ({"mine": Recipe(of="ppoo")}, {"ppoo": Recipe(optimizer={"epochs": 2})}):
        caplog.clear()
        assert "mine" not in {one.run.optimizer for one in plan(replace(small, recipes=recipes), plugins)}
        assert "is left out" in caplog.text and "did you mean 'ppo'" in caplog.text
    with pytest.raises(SettingsError, match="suites of the kind reward have none"):
        plan(replace(load_suite("reward-models", plugins), recipes={"rloo": Recipe()}), plugins)


def test_the_same_seed_gives_the_same_numbers_and_another_is_another_problem(tmp_path, small, plugins):
    suite = of(small, "rloo", seeds=2)
    runs = [run_suite(suite, tmp_path / name, plugins=plugins, progress=False) for name in ("a", "b")]
    assert [record.metrics for record in runs[0]] == [record.metrics for record in runs[1]]
    assert runs[0][0].metrics["start_gap"] != runs[0][1].metrics["start_gap"]


def test_without_a_kl_there_is_no_one_optimum(small, plugins):
    with pytest.raises(SettingsError, match="above 0"):
        plan(of(small, "rloo", betas=[0.0]), plugins)


def test_the_stored_results_are_of_the_suite_as_it_is(root, plugins):
    """Nothing that figures depend on has changed since: the results can be added to."""
    now = {
        (one.run.task, one.run.optimizer, one.run.beta, one.run.seed): one.digest
        for one in plan(load_suite("exact", plugins), plugins)
    }
    records = read_records(root / "benchmarks" / "results" / "exact.jsonl")
    assert {record.key: record.digest for record in records} == now


@pytest.mark.parametrize("make", [random_problem, counting_problem])
def test_best_of_n_is_what_enumerating_the_draws_gives(make):
    problem = make(0, vocabulary=3, max_new_tokens=2)
    reference = problem.reference_table.log_probabilities.exp()
    assert torch.allclose(best_of_log_probabilities(problem, 1).exp(), reference)
    expected = torch.zeros_like(reference)
    for first, p in enumerate(reference):
        for second, q in enumerate(reference):
            a, b = problem.rewards[first], problem.rewards[second]
            # Of equal rewards the first drawn is taken: by symmetry the same as any other rule without a preference.
            expected[first if a >= b else second] += p * q
    assert torch.allclose(best_of_log_probabilities(problem, 2).exp(), expected, atol=1e-9)


def test_best_of_n_keeps_its_bounds():
    problem = random_problem(0)
    for n in (2, 8, 64):
        log_probabilities = best_of_log_probabilities(problem, n)
        kl = problem.objective_of(log_probabilities, 0.0) - problem.objective_of(log_probabilities, 1.0)
        assert 0 < kl <= best_of_kl(n) + 1e-9
    n, measures = best_of_measures(problem, 0.1)
    assert n > 1 and 0 < measures.gap_closed < 1
