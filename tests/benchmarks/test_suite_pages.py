"""Tables and curves that the documentation shows of a suite's results."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from bench_records import record, results

from lmrl.bench.summary import summarise
from lmrl.statistics.intervals import Interval

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("suite_pages", FOLDER / "suite_pages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def summary():
    return summarise(results(np.random.default_rng(0), {"rloo": 0.6, "ppo": 0.4, "dpo": 0.1}))


def test_an_optimizers_rows_say_its_place_among_all(pages, summary):
    lines = pages.optimizer_rows([summary], ["ppo"]).splitlines()
    assert len(lines) == 2 + 4, "a row for each task and coefficient"
    assert all(line.startswith("| `ppo` | tiny |") and line.endswith("| 2 of 3 |") for line in lines[2:])


def test_the_table_of_a_suite_has_the_best_first(pages, summary):
    lines = pages.suite_table(summary).splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == ["rloo", "ppo", "dpo"]
    assert "sums, beta 0.05" in lines[0] and lines[0].count("|") == lines[2].count("|")


def test_many_cells_are_shown_at_the_middle_coefficient_and_folded_as_reward_at_kl(pages, summary, monkeypatch):
    monkeypatch.setattr(pages, "WIDEST", 3)
    head = pages.suite_table(summary).splitlines()[0]
    assert "sums, beta 0.2" in head and "beta 0.05" not in head
    lines = pages.frontier_table(summary).strip().splitlines()
    assert lines[0].startswith("<details>") and lines[-1] == "</details>"
    assert [line.split("`")[1] for line in lines if "`" in line] == ["rloo", "ppo", "dpo"]
    mean = np.mean([r.metrics["reward"] for r in summary.records if r.cell == ("sums", 0.05) and r.optimizer == "ppo"])
    assert f"| `ppo` | {mean:.2f} at " in "\n".join(lines)
    assert pages.frontier_table(summarise([r for r in summary.records if r.beta == 0.05])) == ""


def test_an_optimizer_that_lacks_a_cell_is_starred_and_the_star_explained(pages, summary):
    assert "*" not in pages.suite_table(summary)
    less = summarise([r for r in summary.records if r.optimizer != "rloo" or r.task == "sums"])
    lines = pages.suite_table(less).splitlines()
    assert "`rloo *`" in lines[-3], "last, since its aggregate is over easier or harder tasks than the others'"
    assert lines[-1].startswith("\\*")


def test_what_is_lacking_is_said(pages, summary):
    assert pages.said_of(summary) == "60 runs of 10 updates; seeds of each: 5."
    less = summarise([*summary.records[:-2], record(None, task="words", optimizer="dpo", beta=0.2, seed=3)])
    assert pages.said_of(less) == (
        "59 runs of 10 updates; seeds of each: 5 at beta 0.05, 3 to 5 at beta 0.2; 1 failed."
    )


def test_curves_are_one_figure_with_the_optimizers_own_on_top(pages, summary):
    svg = pages.learning_curves([summary, summary], "ppo")
    assert svg.startswith("<svg") and svg == pages.learning_curves([summary, summary], "ppo")
    assert svg != pages.learning_curves([summary, summary], "dpo")
    assert svg.count("sums, beta 0.2") == 2


def test_proxies_have_a_panel_each_and_no_seed_is_averaged_away(pages):
    def run(name, seed, gold):
        curve = {"update": [0, 1], "gold": [0.2, gold], "proxy": [0.0, 1.0], "kl": [0.0, 4.0]}
        return record(gold, optimizer=name, seed=seed, task="small", kind="overoptimization", curve=curve)

    runs = [run("rloo", 0, 1.0), run("rloo", 1, 0.1), run("best_of_n", 0, 0.9)]
    svg, fewer = (pages.overoptimization_curves(summarise(some)) for some in (runs, runs[:1] + runs[2:]))
    assert "small" in svg and svg.count("#1f5fbf") > fewer.count("#1f5fbf")


def test_an_optimizer_has_a_row_for_the_proxies_that_it_was_run_against(pages):
    def run(name, task):
        found = record(0.5, optimizer=name, task=task, kind="overoptimization")
        found.metrics.update(best_gold=1.0, gold=0.5, lost=0.5, kl=3.0, proxy_accuracy=0.75)
        return found

    table = pages.overoptimization_rows(summarise([run("rloo", "small"), run("rloo", "large"), run("ppo", "small")]))
    named = [tuple(line.split("`")[1::2]) for line in table.splitlines()[2:]]
    assert sorted(named) == [("large", "rloo"), ("small", "ppo"), ("small", "rloo")]
    assert "nan" not in table


def test_an_interval_in_few_digits(pages):
    assert pages.short(Interval(0.512, 0.4, 0.6, 5)) == "0.51 [0.40, 0.60]"
    assert pages.short(Interval(0.512, -np.inf, np.inf, 1)) == "0.51" and pages.short(Interval(np.nan, 0, 0, 0)) == "-"
