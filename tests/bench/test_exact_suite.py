"""The suite `exact`: what is run, what is not run again, and what the tables say."""

import json
import logging

import pytest
import torch

from lmrl.bench.exact import (
    ASCENT,
    BEST_OF,
    ExactSuite,
    Task,
    failed,
    read_records,
    run_suite,
    settings_for,
    tasks_of,
)
from lmrl.bench.exact_best_of import best_of_log_probabilities, best_of_measures
from lmrl.bench.exact_report import summarise
from lmrl.cli.main import main
from lmrl.errors import SettingsError
from lmrl.measures import best_of_kl
from lmrl.plugins import PluginManager
from lmrl.testing import counting_problem, random_problem

SMALL = {"problems": ["counting"], "betas": [0.3], "seeds": 2, "updates": 4}


def suite_of(*names, **changes):
    return ExactSuite(optimizers=list(names), **(SMALL | changes))


def test_a_run_is_not_repeated_and_a_broken_line_is_left_out(tmp_path, caplog):
    output = tmp_path / "exact.jsonl"
    first = run_suite(suite_of("reinforce"), output, progress=False)
    assert [record["status"] for record in first] == ["done", "done"]
    whole = output.read_text()
    output.write_text(whole + whole.splitlines()[0][:40])  # as a kill leaves it
    with caplog.at_level(logging.WARNING):
        again = run_suite(suite_of("reinforce", BEST_OF), output, progress=False)
    assert "line 3" in caplog.text
    assert again[:2] == first, "the same records, seconds included: nothing was run again"
    assert [record["optimizer"] for record in again[2:]] == [BEST_OF, BEST_OF]
    assert len(read_records(output)) == 4


def test_a_record_says_how_far_the_optimum_is(tmp_path):
    for record in run_suite(suite_of("reinforce", ASCENT, BEST_OF, seeds=1), tmp_path / "e.jsonl", progress=False):
        problem = counting_problem(0)
        assert record["objective"] + record["gap"] == pytest.approx(problem.optimal_objective(0.3), abs=2e-5)
        closed = 1 - record["gap"] / record["start_gap"]
        assert record["gap_closed"] == pytest.approx(closed, abs=1e-3)
        assert record["objective"] == pytest.approx(record["reward"] - 0.3 * record["kl"], abs=2e-5)


def test_variants_are_the_same_optimizer_with_other_settings(tmp_path):
    names = {task.optimizer for task in tasks_of(ExactSuite(), PluginManager())}
    assert {"nlpo", "ilql", "trpo", "grpo_centred", ASCENT, BEST_OF} <= names
    assert settings_for(task_of("grpo_centred")) == {"normalisation": "none"}
    assert settings_for(task_of("ilql"))["beta"] == 4.0 and settings_for(task_of("dpo"))["beta"] == 0.25
    records = run_suite(suite_of("grpo", "grpo_centred", seeds=1), tmp_path / "e.jsonl", progress=False)
    assert records[0]["objective"] != records[1]["objective"]


def task_of(name):
    return Task(name, "counting", 0.25, 0, 4, 64, 8, 3e-3)


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    runs = [run_suite(suite_of("rloo"), tmp_path / name, progress=False) for name in ("a", "b")]
    assert [r["gap_closed"] for r in runs[0]] == [r["gap_closed"] for r in runs[1]]
    assert len({r["gap_closed"] for r in runs[0]}) == 2, "seeds are different problems"


def test_a_run_that_fails_says_so_and_is_in_no_mean(tmp_path, monkeypatch):
    from lmrl.bench import exact

    done = run_suite(suite_of("reinforce", seeds=1), tmp_path / "a.jsonl", progress=False)
    broken = lambda task, plugins=None: 1 / 0  # noqa: E731
    monkeypatch.setattr(exact, "run_task", broken)
    records = run_suite(suite_of("reinforce", seeds=2), tmp_path / "a.jsonl", progress=False)
    [record] = failed(records)
    assert "ZeroDivisionError" in record["error"] and record["seed"] == 1
    [row] = summarise(records)
    assert row.failed == 1 and row.overall.count == 1 and row.overall.mean == done[0]["gap_closed"]


def test_bad_input(tmp_path):
    with pytest.raises(SettingsError, match="did you mean 'rloo'"):
        tasks_of(suite_of("rlooo"), PluginManager())
    with pytest.raises(SettingsError, match="unknown problem"):
        ExactSuite(problems=["hard"])
    with pytest.raises(SettingsError, match="above 0"):
        ExactSuite(betas=[0.0])
    other = tmp_path / "other.jsonl"
    task = {name: 1 for name in Task.__dataclass_fields__}
    other.write_text(json.dumps({"suite": "stories", **task}) + "\n")
    with pytest.raises(SettingsError, match="stories"):
        read_records(other)


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


def test_the_command_writes_tables_and_a_figure(tmp_path, capsys):
    output = tmp_path / "results" / "exact.jsonl"
    words = ["bench", "exact", "--optimizers", "reinforce,best_of_n", "--seeds", "2", "--updates", "3", "--beta", "0.3"]
    assert main([*words, "--output", str(output), "--quiet"]) == 0
    assert "best_of_n" in capsys.readouterr().out
    page = output.with_suffix(".md").read_text()
    assert "| `reinforce` |" in page and "beta 0.3" in page
    assert "Gap J(pi*) - J(pi), `counting`" in page and "Total variation distance" in page
    assert output.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert main([*words[:3], "nothing", "--output", str(output)]) != 0
