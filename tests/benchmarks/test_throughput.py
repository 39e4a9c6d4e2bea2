"""The throughput script runs, and records what its numbers need to be read; no test asserts a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "throughput.py"
SIDES = {
    "sampling, full length": {"lmrl", "generate, log-probabilities", "generate"},
    "sampling, varying length": {"lmrl", "generate, log-probabilities", "generate"},
    "update, full length": {"lmrl", "plain step"},
    "update, varying length": {"lmrl", "plain step"},
    "environment, single": {"lmrl", "lmrl with reference", "does nothing"},
    "environment, 8 side by side": {"lmrl", "lmrl with reference", "does nothing"},
    "whole batch, full length": {"lmrl"},
    "whole batch, varying length": {"lmrl"},
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The finished process of one smoke run, and its records by workload and side."""
    file = tmp_path_factory.mktemp("benchmark") / "results" / "throughput.jsonl"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--smoke", "--runs", "1", "--output", file],
        capture_output=True,
        text=True,
        check=False,
        cwd=file.parent.parent,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, dict]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found.setdefault(record["workload"], {})[record["side"]] = record
    return done, found


def test_every_side_of_every_workload_is_recorded(smoke):
    assert {workload: set(sides) for workload, sides in smoke[1].items()} == SIDES


def test_a_record_says_under_which_circumstances_it_was_taken(smoke):
    for sides in smoke[1].values():
        for record in sides.values():
            assert record["model"] == "smoke" and record["parameters"] > 0 and record["device"] == "cpu"
            assert (record["rows"], record["new_tokens"]) == (8, 8) and record["threads"] >= 1 and record["commit"]
            assert {"lmrl", "torch", "transformers", "gymnasium"} <= set(record["versions"])


def test_rates_and_ratios_follow_from_the_raw_runs(smoke):
    for sides in smoke[1].values():
        for record in sides.values():
            assert len(record["counts"]) == len(record["seconds"]) == 1
            rate = record["counts"][0] / record["seconds"][0]
            assert record["rate"] == {"median": rate, "min": rate, "max": rate}
            if record["baseline"] in (None, record["side"]):
                assert record["ratio"] is None
            else:
                base = sides[record["baseline"]]
                assert record["ratio"]["median"] == pytest.approx(rate * base["seconds"][0] / base["counts"][0])


def test_sides_do_the_same_amount_of_work(smoke):
    def counts(workload):
        return [record["counts"] for record in smoke[1][workload].values()]

    assert counts("sampling, full length") == [[64]] * 3
    assert counts("update, full length") == [[64]] * 2
    assert counts("whole batch, full length") == [[64]]
    for workload in ("update, varying length", "environment, single", "environment, 8 side by side"):
        first, *rest = counts(workload)
        assert all(other == first for other in rest)


def test_rows_that_end_by_themselves_stop_counting(smoke):
    for record in smoke[1]["sampling, varying length"].values():
        assert 8 <= record["counts"][0] <= 64 and record["stop_ids"] > 0


def test_the_stages_of_a_batch_fill_its_time(smoke):
    record = smoke[1]["whole batch, full length"]["lmrl"]
    assert list(record["stages"]) == ["sample", "decode and score", "reference", "values and rewards", "update"]
    assert sum(seconds[0] for seconds in record["stages"].values()) <= record["seconds"][0]


def test_the_table_names_every_workload(smoke):
    assert all(workload in smoke[0].stdout for workload in SIDES)


def test_the_help_has_an_example():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "Example: python benchmarks/throughput.py" in done.stdout


def test_no_runs_are_refused():
    done = subprocess.run([sys.executable, SCRIPT, "--runs", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--runs is 0; expected at least 1" in done.stderr
