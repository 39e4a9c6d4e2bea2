"""A suite file and results of version 0.1."""

import json

import pytest


def records(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_suite_that_names_functions_of_a_task_stops_with_their_new_place(lmrl):
    done = lmrl("bench", "run", "suite.toml", "--output", "new.jsonl", "--quiet")
    assert done.code == 2 and "models.sums.texts is 'lmrl.bench.tasks.sums:texts'" in done.error
    assert "lmrl.bench.tasks is lmrl_suites.tasks now; docs/migration.md" in done.error


def test_with_the_new_place_it_runs_beside_the_old_results(lmrl, project):
    text = (project / "suite.toml").read_text(encoding="utf-8").replace("lmrl.bench.tasks", "lmrl_suites.tasks")
    (project / "suite.toml").write_text(text, encoding="utf-8")
    old = records(project / "outputs" / "suite.jsonl")
    assert lmrl("bench", "run", "suite.toml", "--output", "new.jsonl", "--quiet").code == 0
    new = records(project / "new.jsonl")
    assert [one["status"] for one in new] == ["done"] * len(old)
    assert {one["optimizer"] for one in new} == {one["optimizer"] for one in old}
    assert lmrl("bench", "compare", "outputs/suite.jsonl", "new.jsonl", "--margin", "1").code == 0
    mixed = lmrl("bench", "run", "suite.toml", "--output", "outputs/suite.jsonl", "--quiet")
    assert mixed.code == 2 and "by lmrl 0.1.0, docs/migration.md lists what changed since" in mixed.error


def test_results_are_reported(lmrl, project):
    (project / "results").mkdir()
    (project / "outputs" / "suite.jsonl").rename(project / "results" / "own_sums.jsonl")
    done = lmrl("bench", "report", "results/own_sums.jsonl", "--output", "report")
    assert done.code == 0 and "rloo" in (project / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["exact", "stories", "verifiable", "synthetic", "throughput"])
def test_the_shipped_suites_keep_their_names(name, lmrl):
    assert name in lmrl("bench", "list").out
