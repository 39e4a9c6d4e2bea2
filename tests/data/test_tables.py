"""Shards, globs, compressed files, tables of other libraries and saved folders load everywhere; damage is an error."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pytest

from lmrl.data import PromptSettings, RowSettings, load_examples, load_prompts, load_rankings
from lmrl.data.logged import load_logged
from lmrl.errors import DataError

ROWS = [{"prompt": f"p{n}", "completion": f"c{n}", "label": n % 2 == 0} for n in range(4)]
COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, "": bytes}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def cells(rows, separator):
    return "\n".join(
        separator.join(map(str, row)) for row in [ROWS[0].keys(), *(row.values() for row in rows)]
    ).encode()


def counts(source, **settings):
    """Return how many prompts, examples and logged answers a source gives."""
    return (
        len(load_prompts(source, PromptSettings(**settings))),
        len(load_examples(source, RowSettings(**settings))),
        len(load_logged("label", source, RowSettings(**settings))),
    )


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".tsv", ".json"])
def test_every_text_kind_in_every_compression(tmp_path, kind, ending):
    content = {
        ".jsonl": lines(ROWS),
        ".csv": cells(ROWS, ","),
        ".tsv": cells(ROWS, "\t"),
        ".json": json.dumps(ROWS).encode(),
    }[kind]
    path = tmp_path / f"a{kind}{ending}"
    path.write_bytes(COMPRESS[ending](content))
    assert counts(path) == (4, 2, 4)
    if ending:
        whole = path.read_bytes()
        for broken in (whole[:-9], b"nothing of the kind"):
            path.write_bytes(broken)
            with pytest.raises(DataError, match=r"broken (gzip|bzip2|xz) data"):
                load_prompts(path)


def shards(folder, kind, names):
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rows = ROWS[place : place + 1]
        if kind == "parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
        else:
            (folder / name).write_bytes(lines(rows))
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_folder_and_a_glob_of_shards(tmp_path, kind):
    folder = shards(tmp_path / "set", kind, [f"part-{n}.{kind}" for n in range(4)])
    (folder / "README.md").write_text("about")
    (folder / "LICENSE.txt").write_text("terms")
    (folder / ".cache.jsonl").write_text("{")
    for source in (folder, str(folder), f"{folder}/*.{kind}", f"{tmp_path}/**/part-?.{kind}"):
        assert load_prompts(source).prompts == ["p0", "p1", "p2", "p3"] and counts(source) == (4, 2, 4)
    assert load_prompts(f"{folder}/part-[01].{kind}").prompts == ["p0", "p1"]


def test_names_say_which_split_a_shard_belongs_to(tmp_path):
    names = [
        "data/train-00000-of-00002.jsonl",
        "data/train-00001-of-00002.jsonl",
        "data/test-00000.jsonl",
        "val/a.jsonl",
    ]
    folder = shards(tmp_path / "set", "jsonl", names)
    found = {name: load_prompts(folder, PromptSettings(split=name)).prompts for name in ("train", "test", "validation")}
    assert found == {"train": ["p0", "p1"], "test": ["p2"], "validation": ["p3"]}
    with pytest.raises(DataError, match=r"no split 'extra'; its files belong to test, train, validation"):
        load_prompts(folder, PromptSettings(split="extra"))


def test_folders_that_hold_no_data_or_too_many_kinds(tmp_path):
    with pytest.raises(DataError, match="contains no data files and that datasets did not save; it contains nothing"):
        load_prompts(tmp_path)
    shards(tmp_path, "jsonl", ["a.jsonl"])
    shards(tmp_path, "parquet", ["b.parquet"])
    with pytest.raises(DataError, match=r"several kinds \(a.jsonl and b.parquet\); expected one"):
        load_examples(tmp_path)
    with pytest.raises(DataError, match=r"no file matches .*\*.jsonl"):
        load_prompts(f"{tmp_path}/c*.jsonl")
    with pytest.raises(DataError, match=r"a.bin is of an unknown kind"):
        (tmp_path / "a.bin").write_bytes(b"x")
        load_prompts(f"{tmp_path}/a.b*")


def tables():
    """Return the rows in every table of another library that is installed."""
    import pandas
    import pyarrow
    from datasets import Dataset, DatasetDict

    dataset = Dataset.from_list(ROWS)
    return {
        "pandas": pandas.DataFrame(ROWS),
        "pyarrow": pyarrow.Table.from_pylist(ROWS),
        "dataset": dataset,
        "dataset dict": DatasetDict({"train": dataset, "test": dataset.select([0])}),
        "streamed": dataset.to_iterable_dataset(),
        "generator": [row for row in ROWS],
        "tuple": tuple(ROWS),
    }


@pytest.mark.parametrize("name", ["pandas", "pyarrow", "dataset", "dataset dict", "streamed", "generator", "tuple"])
def test_tables_load_as_lists_do(name):
    assert counts(tables()[name]) == (4, 2, 4)
    assert load_prompts(tables()[name]).fingerprint() == load_prompts(ROWS).fingerprint()
    renamed = load_prompts(tables()[name], PromptSettings(columns={"prompt": "completion"}))
    assert renamed.prompts == ["c0", "c1", "c2", "c3"]


def test_missing_cells_of_pandas_are_missing():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"instruction": ["a", "b"], "input": [None, "x"], "output": ["c", "d"], "n": [1.0, None]})
    said = [example.messages[0]["content"] for example in load_examples(frame).examples]
    assert said == ["a", "b\n\nx"] and load_prompts(frame).columns["n"] == [1.0, None]


@pytest.mark.parametrize("split", ["train", "test"])
def test_saved_folders(tmp_path, split):
    from datasets import Dataset, DatasetDict

    dataset = Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict({"train": dataset, "test": dataset.select([0, 1])}).save_to_disk(tmp_path / "several")
    assert counts(tmp_path / "one") == (4, 2, 4)
    assert len(load_prompts(tmp_path / "several", PromptSettings(split=split))) == {"train": 4, "test": 2}[split]
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        load_examples(tmp_path / "several", RowSettings(split="dev"))


@pytest.mark.parametrize("cut", [10, 200, -10])
def test_a_damaged_saved_folder_is_an_error(tmp_path, cut):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "set")
    [file] = (tmp_path / "set").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(DataError, match="was saved by datasets and cannot be read"):
        load_prompts(tmp_path / "set")
    file.unlink()
    with pytest.raises(DataError, match="was saved by datasets and cannot be read"):
        load_examples(tmp_path / "set")


@pytest.mark.parametrize("kind", ["stream.arrow", "file.arrow", "a.parquet"])
def test_a_damaged_table_is_an_error_and_never_a_traceback(tmp_path, kind):
    import pyarrow
    import pyarrow.parquet

    table, path = pyarrow.Table.from_pylist(ROWS * 20), tmp_path / kind
    if kind == "a.parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        new = pyarrow.ipc.new_file if kind.startswith("file") else pyarrow.ipc.new_stream
        with pyarrow.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)
    whole = path.read_bytes()
    assert len(load_prompts(path)) == 80
    for content in (b"", whole[:30], whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{kind} cannot be read"):
            load_prompts(path)
    for place in range(8, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            load_prompts(path)
        except DataError:
            continue


def test_text_that_is_no_utf8_in_a_table_is_an_error(tmp_path):
    import pyarrow

    data = pyarrow.array([b"\xff\xfe"]).cast(pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, data.buffers())
    table = pyarrow.table({"prompt": column})
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"a.arrow cannot be read"):
        load_prompts(tmp_path / "a.arrow")


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".jsonl.gz"])
def test_an_empty_file_is_an_error(tmp_path, kind):
    path = tmp_path / f"a{kind}"
    path.write_bytes(gzip.compress(b"") if kind.endswith(".gz") else b"")
    for read in (load_prompts, load_examples, load_rankings):
        with pytest.raises(DataError, match=r"holds no rows|cannot be read|not valid JSON"):
            read(path)


@pytest.mark.parametrize("row", [3, None, ["a"], b"bytes", 1.5])
def test_a_row_that_is_no_mapping_is_an_error(row):
    for read in (load_prompts, load_examples, load_rankings, lambda rows: load_logged("label", rows)):
        with pytest.raises(DataError, match=f"row 2: found a {type(row).__name__}; expected"):
            read([ROWS[0], row])


@pytest.mark.parametrize("source", [{"prompt": "a"}, 3, b"abc"])
def test_what_is_no_list_of_rows_is_an_error(source):
    with pytest.raises(DataError, match=f"is one {type(source).__name__}; expected a list of rows, a table or a path"):
        load_prompts(source)
