"""The throughput suite runs, and records what its numbers need to be read; no test asserts a time."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "throughput.py"
WITH_TRL = importlib.util.find_spec("trl") is not None
GENERATE = {"lmrl", "generate", "generate, log-probabilities"}
SIDES = {
    ("sampling", "full", 1, ""): GENERATE,
    ("sampling", "full", 4, ""): GENERATE,
    ("sampling", "varying", 1, ""): GENERATE,
    ("sampling", "varying", 4, ""): GENERATE,
    ("queue", "full", 4, ""): {"lmrl", "generate"},
    ("queue", "varying", 4, ""): {"lmrl", "generate"},
    ("update", "full", 1, ""): {"lmrl", "padded"},
    ("update", "full", 4, ""): {"lmrl", "padded"},
    ("update", "varying", 1, ""): {"lmrl", "padded"},
    ("update", "varying", 4, ""): {"lmrl", "padded"},
    ("episodes", "full", 4, "grpo"): {"lmrl", "trl_grpo", "plain"},
    ("episodes", "full", 4, "rloo"): {"lmrl", "trl_rloo"},
    ("episodes", "varying", 4, "grpo"): {"lmrl", "trl_grpo", "plain"},
    ("episodes", "varying", 4, "rloo"): {"lmrl", "trl_rloo"},
    ("learning", "full", 4, "grpo"): {"lmrl", "trl_grpo"},
    ("learning", "full", 4, "rloo"): {"lmrl", "trl_rloo"},
    ("environment", "full", 4, ""): {
        "lmrl", "empty", "SyncVectorEnv of empty ones", "empty, native", "every prefix anew",
    },
}  # fmt: skip


def run(*arguments, check=True):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=check)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The finished process of one smoke run of everything but memory, and its records."""
    file = tmp_path_factory.mktemp("benchmark") / "results" / "throughput.jsonl"
    workloads = "sampling,update,episodes,learning,environment"
    done = run("--smoke", "--threads", "1", "--workloads", workloads, "--output", file, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done, [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()], file


def test_every_side_of_every_comparison_is_recorded(smoke):
    found = {}
    for record in smoke[1]:
        key = (record["workload"], record["lengths"], record["group_size"], record["algorithm"])
        found.setdefault(key, set()).add(record["side"])
    expected = dict(SIDES)
    if not WITH_TRL:  # the learning check has no record of its own for a side that is not there
        expected |= {key: {"lmrl"} for key in expected if key[0] == "learning"}
    assert found == expected


def test_without_trl_its_sides_say_why_they_are_missing(smoke):
    for record in smoke[1]:
        if record["side"].startswith("trl"):
            assert (not record["skipped"]) == WITH_TRL
            assert WITH_TRL or "lmrl[peers]" in record["skipped"][record["side"]]


def test_a_record_says_under_which_circumstances_it_was_taken(smoke):
    for record in smoke[1]:
        assert record["suite"] == "throughput" and record["model"] == "smoke" and record["device"] == "cpu"
        assert record["parameters"] > 0 and record["shape"]["vocabulary"] == 64
        assert (record["prompt_tokens"], record["new_tokens"], record["rounds"]) == (8, 8, 1)
        assert record["threads"] == 1 and record["cores"] >= 1 and record["processor"] and record["commit"]
        assert record["peak_flops"] > 0 and record["bandwidth"] > 0
        assert {"lmrl", "torch", "transformers", "gymnasium"} <= set(record["versions"])


def measured(records):
    return [record for record in records if "counts" in record]


def test_rates_ratios_and_utilisation_follow_from_the_raw_runs(smoke):
    sides = {}
    for record in measured(smoke[1]):
        key = [record[name] for name in ("workload", "lengths", "group_size", "algorithm", "variant")]
        sides.setdefault(tuple(key), {})[record["side"]] = record
    for of_one in sides.values():
        for record in of_one.values():
            (count,), (seconds,) = record["counts"], record["seconds"]
            rate = count / seconds
            assert record["rate"] == {"median": rate, "min": rate, "max": rate}
            if record["baseline"] == record["side"]:
                assert record["ratio"] is None
            elif record["baseline"] is not None:
                base = of_one[record["baseline"]]
                assert record["ratio"]["median"] == pytest.approx(rate * base["seconds"][0] / base["counts"][0])
            if record["flops"]:
                assert record["utilisation"] == pytest.approx(record["flops"][0] / seconds / record["peak_flops"])


def test_sides_do_the_same_amount_of_work(smoke):
    for record in measured(smoke[1]):
        if record["workload"] in ("sampling", "update") and record["lengths"] == "full":
            assert record["counts"] == [64]
        if record["workload"] in ("sampling", "queue") and record["lengths"] == "varying":
            assert record["rows"] <= record["counts"][0] <= record["rows"] * 8
        if record["workload"] == "episodes":
            assert record["counts"] == [8]
    flops = {tuple(r["flops"]) for r in measured(smoke[1]) if (r["workload"], r["lengths"]) == ("episodes", "full")}
    assert len(flops) == 1


def test_a_decode_step_stands_beside_its_floor(smoke):
    steps = [record for record in smoke[1] if "decode_step_seconds" in record]
    assert {record["side"] for record in steps} == {"lmrl", "generate"}
    assert all(record["decode_floor_seconds"] > 0 for record in steps)


def test_the_table_and_the_page_name_every_workload(smoke):
    done, records, file = smoke
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert all(record["workload"] in done.stdout and f"| {record['workload']}" in page for record in records)


def test_the_help_has_an_example():
    assert "Example: python benchmarks/throughput.py" in run("--help").stdout


def test_wrong_settings_are_refused_by_name():
    done = run("--rounds", "0", check=False)
    assert done.returncode == 2 and "throughput.rounds is 0; expected at least 1" in done.stderr
