"""Files of prompts: each kind, broken ones, missing ones, and the real ones where they are at hand."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from lmrl.data import PromptSettings, load_prompts
from lmrl.data.loading.files import read_rows
from lmrl.errors import DataError

ROWS = [{"prompt": "one", "answer": "1"}, {"prompt": "two \u2028 lines", "answer": "2"}]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_text_one_prompt_per_line(tmp_path):
    path = write(tmp_path / "prompts.txt", "\ufeffOnce upon\r\n\r\na time \u2028 more\n")
    found = load_prompts(path)
    assert found.prompts == ["Once upon", "a time \u2028 more"]
    assert any("left out 1: an empty prompt (first: row 2)" in note for note in found.notes)


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.JSONL", "a.jsonl.gz", "a.json", "b.json", "c.json", "a.csv", "a.csv.gz"]
)
def test_every_text_kind(tmp_path, name):
    csv = 'prompt,answer\none,1\n"two \u2028 lines",2\n'
    content = {
        "a.json": json.dumps(ROWS),
        "b.json": json.dumps({"canary": "x", "examples": ROWS}),
        "c.json": jsonl(ROWS),
    }.get(name, csv if ".csv" in name else jsonl(ROWS))
    data = gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()
    found = load_prompts(write(tmp_path / name, data))
    assert found.prompts == ["one", "two \u2028 lines"] and found.columns == {"answer": ["1", "2"]}


def test_csv_cells_may_hold_newlines(tmp_path):
    found = load_prompts(write(tmp_path / "a.csv", 'prompt,n\n"two\nlines",1\n'))
    assert found.prompts == ["two\nlines"]


def test_columnar_kinds(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pyarrow.OSFile(str(tmp_path / "s.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    fingerprints = {load_prompts(tmp_path / name).fingerprint() for name in ("a.parquet", "file.arrow", "s.arrow")}
    assert len(fingerprints) == 1
    for name in ("broken.parquet", "broken.arrow"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            load_prompts(write(tmp_path / name, b"no table at all"))


def test_a_folder_saved_by_datasets(tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "set")
    assert load_prompts(tmp_path / "set").prompts == ["one", "two \u2028 lines"]
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        load_prompts(tmp_path / "set", PromptSettings(split="test"))
    with pytest.raises(DataError, match="datasets did not save"):
        load_prompts(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", '{"prompt": "a"}\n\n[1]\n', r"a\.jsonl, line 3: found a list"),
        ("a.json", '[{"prompt": "a"},\n{"prompt" "b"}]', r"a\.json, line 2: not valid JSON"),
        ("a.json", '{"prompt": "a"}', r"one object with the keys prompt"),
        ("a.json", '"text"', r"holds a str; expected a list"),
        ("a.json", "[3]", r"item 1: found a int"),
        ("a.csv", "prompt,answer\na\n", r"a\.csv, row 1: not as many cells"),
        ("a.csv", "prompt,answer\na,b,c\n", r"a\.csv, row 1: not as many cells"),
        ("a.csv", 'prompt,answer\n"a"b,c\n', r"a\.csv, line 2: not valid CSV"),
        ("a.csv", "prompt,answer,answer\na,b,c\n", r"a\.csv: two columns are named 'answer'"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl, line 1: JSON that cannot be read"),
        ("a.jsonl", '{"n": ' + "9" * 5000 + "}", r"a\.jsonl, line 1: JSON that cannot be read"),
        ("a.txt", b"fine\nnot \xff fine\n", r"a\.txt, line 2: byte 5 of the line is not UTF-8"),
        ("a.txt", b"", r"holds no rows"),
        ("a.pdf", b"", r"unknown kind of file; expected one of \.arrow, \.csv"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        load_prompts(write(tmp_path / name, content))


def test_gzip_cut_short_or_no_gzip_at_all(tmp_path):
    import random

    texts = [str(random.Random(number).random()) for number in range(5000)]
    whole = gzip.compress(jsonl([{"prompt": text} for text in texts]).encode())
    with pytest.raises(DataError, match=r"broken gzip data after line \d+.*cut short"):
        load_prompts(write(tmp_path / "a.jsonl.gz", whole[: len(whole) // 2]))
    with pytest.raises(DataError, match="broken gzip data"):
        load_prompts(write(tmp_path / "b.jsonl.gz", b"plain text"))


def test_a_missing_file_names_its_neighbour(tmp_path):
    write(tmp_path / "prompts_train.jsonl", jsonl(ROWS))
    with pytest.raises(DataError, match=r"there is no file .*Did you mean .*prompts_train\.jsonl"):
        load_prompts(tmp_path / "prompt_train.jsonl")
    with pytest.raises(DataError, match=r"its folder .* does not exist"):
        load_prompts(tmp_path / "nowhere" / "a.jsonl")
    with pytest.raises(DataError, match=r"there is no file missing_prompts\.txt"):
        load_prompts("missing_prompts.txt")


def test_a_hub_id_that_cannot_be_reached(monkeypatch):
    import datasets

    def unreachable(*arguments, **keywords):
        raise ConnectionError(f"offline {arguments} {keywords}")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"openai/gsm8k is neither a file here nor .*'main'.*'split': 'test'"):
        load_prompts("openai/gsm8k", PromptSettings(subset="main", split="test"))


def test_a_hub_data_set(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.Dataset.from_list(ROWS))
    assert load_prompts("owner/name").columns == {"answer": ["1", "2"]}


@pytest.mark.parametrize(
    ("file", "settings", "count", "shape", "first"),
    [
        ("rl/gsm8k_train.jsonl", {}, 7473, "question and answer", "Natalia sold clips"),
        ("rl/gsm8k_train.jsonl", {"template": "Q: {question}\nA:", "limit": 5}, 5, "question and answer", "Q: Natalia"),
        ("rl/bbh_word_sorting.json", {}, 250, "input and target", "Sort the following words"),
        ("rl/sst2_validation.arrow", {"column": "sentence"}, 872, "column sentence", "it 's a charming"),
        ("sft/rasbt_instruction_data.json", {}, 1100, "alpaca", "Evaluate the following phrase"),
        ("preference/rasbt_instruction_preference.json", {}, 1100, "alpaca preference", "Evaluate the following"),
    ],
)
def test_real_files(shared, file, settings, count, shape, first):
    found = load_prompts(shared / "data" / file, PromptSettings(**settings))
    assert (len(found), found.shape) == (count, shape)
    assert found.prompts[0].startswith(first)
    assert all(len(values) == count for values in found.columns.values())
    if "column" not in settings:
        assert all(isinstance(answer, str) and answer for answer in found.columns["answer"])


def test_real_files_of_other_shapes_are_refused(shared):
    with pytest.raises(DataError, match=r"no known shape of prompts.*Nearest: labelled"):
        load_prompts(shared / "data/rl/sst2_validation.arrow")
    with pytest.raises(DataError, match=r"of the shape text and give no prompt; lmrl pretrain reads"):
        load_prompts(shared / "data/text/c4_demo.jsonl")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "a.jsonl", jsonl(ROWS))
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read after line 0 \(Permission denied\)"):
        load_prompts(path)


def test_long_cells_and_another_name_for_json_lines(tmp_path):
    found = load_prompts(write(tmp_path / "a.csv", "prompt\n" + "word " * 40_000 + "\n"))
    assert len(found.prompts[0]) == 200_000
    assert load_prompts(write(tmp_path / "a.ndjson", jsonl(ROWS))).prompts == ["one", "two \u2028 lines"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "prompt;completion\na;b\n",
            "'prompt;completion', with ';' in it; expected .csv with ',' between cells",
        ),
        ("a.csv", "prompt\tcompletion\na\tb\n", "expected .tsv, or convert it"),
        ("a.tsv", "prompt,completion\na,b\n", "with ',' in it; expected .tsv with"),
        (
            "a.json",
            '{"data": [{"prompt": "a"}], "rows": [{"prompt": "b"}]}',
            "rows under data and rows; expected one list",
        ),
    ],
)
def test_rows_that_would_be_misread_are_refused(tmp_path, name, content, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_rows(write(tmp_path / name, content))


def test_an_empty_list_beside_the_rows_and_names_of_files_among_them(tmp_path):
    file = write(tmp_path / "a.json", '{"examples": [], "data": [{"prompt": "a"}]}')
    assert read_rows(file) == [{"prompt": "a"}]
    with pytest.raises(DataError, match=r"holds names of files, such as .*; expected rows, or one path"):
        load_prompts([str(file), str(tmp_path / "b.json")])
    assert load_prompts(["describe a.json"]).prompts == ["describe a.json"]
