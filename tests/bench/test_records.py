"""Files of results: what is read, what is skipped and said, and what is refused."""

import json
import logging

import pytest
from bench_records import record, write

from lmrl.bench.records import read_records, read_results
from lmrl.bench.suite import Budget
from lmrl.errors import DataError, SettingsError


def test_a_line_is_read_as_it_was_written(tmp_path):
    records = [record(0.25, seed=1), record(None, seed=2)]
    assert read_records(write(tmp_path / "a.jsonl", records)) == records


def test_a_half_written_line_is_said_and_skipped_and_the_next_begins_anew(tmp_path, caplog):
    from lmrl.bench.records import append

    file = write(tmp_path / "a.jsonl", [record(0.25, seed=1), record(0.5, seed=2)])
    file.write_text(file.read_text()[:-80])  # as a kill leaves it
    append(file, record(0.75, seed=3))
    with caplog.at_level(logging.WARNING):
        found = read_records(file)
    assert [one.seed for one in found] == [1, 3] and "line 2 is no whole record" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"suite": "other"}, "expected one suite"),
        ({"measure": "kl"}, "expected one measure"),
        ({"budget": Budget("updates", 11)}, "expected one budget"),
        ({"budget": Budget("tokens", 10)}, "expected one budget"),
        ({"seed": 0, "digest": "other"}, "stands twice"),
        ({"digest": "other"}, "other settings"),
    ],
)
def test_what_must_not_stand_together_is_refused(tmp_path, change, said):
    file = write(tmp_path / "a.jsonl", [record(0.5, digest="one"), record(0.5, **({"seed": 1} | change))])
    with pytest.raises(SettingsError, match=said):
        read_records(file)
    files = [write(tmp_path / f"{i}" / "a.jsonl", [one]) for i, one in enumerate([record(0.5), record(0.6)])]
    with pytest.raises(SettingsError, match="two files"):
        read_results(files)


def test_a_run_that_stands_twice_with_other_figures_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"line 2: sums, rloo, beta 0.05, seed 0 stands twice"):
        read_records(write(tmp_path / "a.jsonl", [record(0.5), record(0.1)]))
    assert len(read_records(write(tmp_path / "b.jsonl", [record(0.5), record(0.5)]))) == 1, "a copy says nothing new"


@pytest.mark.parametrize(
    "change",
    [
        {"score": "0.9"},
        {"score": None},
        {"score": float("nan")},
        {"beta": None},
        {"seed": "0"},
        {"seed": 0.5},
        {"metrics": None},
        {"metrics": {"reward": "1"}},
        {"metrics": {"reward": float("inf")}},
        {"settings": None},
        {"status": "well"},
        {"curve": {"update": [0, 1], "reward": [0.1]}},
        {"machine": None},
        {"budget": 10},
    ],
)
def test_a_line_whose_fields_have_other_types_is_said_and_left_out(tmp_path, caplog, change):
    file = write(tmp_path / "a.jsonl", [record(0.5, seed=1)])
    with file.open("a") as lines:
        lines.write(json.dumps(json.loads(record(0.5, seed=2).line()) | change) + "\n")
    with caplog.at_level(logging.WARNING):
        found = read_records(file)
    assert [one.seed for one in found] == [1] and "line 2 is no result of a suite" in caplog.text


def test_a_run_that_was_repeated_after_it_failed_counts_once(tmp_path):
    [found] = read_records(write(tmp_path / "a.jsonl", [record(None), record(0.5)]))
    assert found.score == 0.5


def test_a_folder_holds_several_suites_and_files_of_other_studies(tmp_path, caplog):
    write(tmp_path / "a.jsonl", [record(0.5)])
    write(tmp_path / "b.jsonl", [record(0.5, suite="other")])
    (tmp_path / "study.jsonl").write_text(json.dumps({"workload": "sampling"}) + "\n")
    with caplog.at_level(logging.INFO):
        assert set(read_results([tmp_path])) == {"tiny", "other"}
    assert "study.jsonl" in caplog.text
    with pytest.raises(DataError, match="no results of a suite"):
        read_results([tmp_path / "study.jsonl"])
    with pytest.raises(DataError, match="does not exist"):
        read_results([tmp_path / "nothing.jsonl"])
