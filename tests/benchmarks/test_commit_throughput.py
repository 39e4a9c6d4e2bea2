"""The comparison of two commits: its statistics by hand, and one real pair of the checkout with itself."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def verdicts():
    """The module of the statistics, which lies beside the script and is in no package."""
    sys.path.insert(0, str(FOLDER))
    try:
        import commit_verdict
    finally:
        sys.path.remove(str(FOLDER))
    return commit_verdict


def run(*arguments):
    command = [sys.executable, FOLDER / "commit_throughput.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def measurement(verdicts, *seconds, tokens=100, peak=1000):
    """A process whose updates took these seconds in every phase, and which needed more memory when it was saved."""
    updates = [verdicts.Update(tokens, dict.fromkeys(verdicts.PHASES, second), peak) for second in seconds]
    return verdicts.Measurement(updates, 2000)


def test_a_pairs_ratio_is_the_median_of_neighbouring_updates(verdicts):
    before = measurement(verdicts, 1.0, 8.0, 2.0)
    after = measurement(verdicts, 2.0, 8.0, 1.0, tokens=50, peak=1100)
    # Rates: 100, 12.5 and 50 tokens per second, then 25, 6.25 and 50; the ratios are 1/4, 1/2 and 1.
    assert verdicts.pair_ratio(before, after, "sampling") == 0.5
    assert verdicts.pair_ratio(before, after, "memory") == 1.1
    assert verdicts.pair_ratio(before, after, "process") == 1
    assert before.value("whole") == 50 and after.value("memory") == 1100 and after.value("process") == 2000


def test_the_interval_of_nine_pairs_leaves_one_out_on_either_side(verdicts):
    # The median of a resample of 9 is the smallest ratio with probability 0.1% and at most the second smallest with
    # 2.8%. The expanded percentile, Phi(-2.306 sqrt(9/8)) = 0.7%, lies between.
    found = verdicts.ratio_interval([1.0, 0.2, 0.96, 0.95, 1.01, 0.98, 0.99, 7.0, 1.02])
    assert (found.mean, found.low, found.high, found.count) == (0.99, 0.95, 1.02, 9)


def test_the_interval_of_few_pairs_is_their_range_and_of_one_infinite(verdicts):
    found = verdicts.ratio_interval([1.1, 0.9, 1.0])
    assert (found.mean, found.low, found.high) == (1.0, 0.9, 1.1)
    assert verdicts.ratio_interval([0.9]).low == -math.inf and verdicts.ratio_interval([0.9]).high == math.inf


@pytest.mark.parametrize(
    ("measure", "low", "high", "expected"),
    [
        ("update", 0.90, 0.969, "FAIL"),
        ("update", 0.90, 0.97, "undecided"),
        ("whole", 0.969, 1.2, "undecided"),
        ("sampling", 0.97, 0.98, "pass"),
        ("memory", 1.031, 1.2, "FAIL"),
        ("memory", 1.03, 1.2, "undecided"),
        ("memory", 0.9, 1.03, "pass"),
        ("scoring", 0.1, 0.2, "not judged"),
    ],
)
def test_only_an_interval_wholly_beyond_the_limit_fails(verdicts, measure, low, high, expected):
    assert verdicts.verdict(measure, verdicts.Interval((low + high) / 2, low, high, 9)) == expected


@pytest.mark.parametrize(("pairs", "expected"), [(5, "undecided"), (6, "FAIL")])
def test_fewer_than_six_pairs_have_no_verdict(verdicts, pairs, expected):
    # The range of n ratios misses the median with probability 2 / 2^n: 1/16 of 5, 1/32 of 6.
    ratios = [0.5 + place / 100 for place in range(pairs)]
    assert verdicts.verdict("whole", verdicts.ratio_interval(ratios)) == expected


def test_a_slower_phase_and_a_larger_peak_fail_and_the_rest_passes(verdicts):
    pairs = []
    for shift in range(9):  # the machine gets slower from pair to pair, for both sides
        before = measurement(verdicts, 1.0 + shift, 1.0 + shift)
        after = measurement(verdicts, 1.0 + shift, 1.0 + shift, peak=1040)
        for update in after.updates:
            update.seconds["update"] *= 1.1
        pairs.append((before, after))
    found = {row.measure: row for row in verdicts.compare("1M", pairs)}
    assert {name: row.verdict for name, row in found.items()} == {
        "sampling": "pass", "scoring": "not judged", "update": "FAIL", "whole": "pass", "memory": "FAIL",
        "process": "not judged",
    }  # fmt: skip
    assert found["update"].ratios == pytest.approx([1 / 1.1] * 9) and found["memory"].ratios == [1.04] * 9
    assert found["update"].before == 20 and found["update"].after == pytest.approx(20 / 1.1)


def test_a_pair_of_the_checkout_with_itself_is_measured_and_recorded(tmp_path, verdicts):
    file = tmp_path / "results" / "pair.json"
    both = ("--before", sys.executable, "--after", sys.executable)
    done = run(*both, "--pairs", "1", "--sizes", "smoke", "--updates", "2", "--json", file)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [(row["size"], row["measure"]) for row in found["results"]] == [
        ("smoke", measure) for measure in (*verdicts.PHASES, *verdicts.PEAKS)
    ]
    for row in found["results"]:
        assert row["ratio"] == row["ratios"][0] and row["interval"] == [None, None]
        assert row["measure"] in done.stdout and min(row["before"], row["after"]) > 0
    [pair] = found["measurements"]["smoke"]
    for side in ("before", "after"):
        assert len(pair[side]["updates"]) == 2, "without the updates of the warm-up"
        assert 0 < max(update["peak_bytes"] for update in pair[side]["updates"]) <= pair[side]["peak_bytes"]
        for update in pair[side]["updates"]:
            seconds = update["seconds"]
            assert seconds["whole"] > seconds["sampling"] + seconds["scoring"] + seconds["update"] > 0
    tokens = [[update["tokens"] for update in pair[side]["updates"]] for side in ("before", "after")]
    assert tokens[0] == tokens[1], "both sides have the same seed"
    assert all(64 <= count <= 64 * 64 for count in tokens[0])
    assert found["before"] == found["after"] and str(FOLDER.parent) not in file.read_text(encoding="utf-8")


def test_a_place_without_an_interpreter_is_an_error_before_anything_runs(tmp_path):
    done = run("--before", tmp_path, "--after", sys.executable)
    assert done.returncode == 2 and "--before is" in done.stderr and "expected a work tree" in done.stderr


def test_a_work_tree_whose_environment_has_other_code_is_an_error(tmp_path):
    environment = tmp_path / ".venv" / "bin"
    environment.mkdir(parents=True)
    python = environment / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    smallest = ("--pairs", "1", "--sizes", "smoke", "--updates", "1")
    done = run("--before", sys.executable, "--after", tmp_path, *smallest)
    assert done.returncode == 2 and f"expected {tmp_path}" in done.stderr and "pip install -e" in done.stderr


def test_a_process_that_fails_is_an_error_with_its_reason(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no torch here >&2\n", encoding="utf-8")
    python.chmod(0o755)
    done = run("--before", python, "--after", sys.executable, "--pairs", "1", "--sizes", "smoke")
    assert done.returncode == 2 and "--before ended too early" in done.stderr and "no torch here" in done.stderr
