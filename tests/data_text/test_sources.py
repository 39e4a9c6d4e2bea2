"""Plain files, tables, folders and globs as documents; what is broken is named."""

from __future__ import annotations

import gzip
import json
import sys

import pytest

from lmrl.corpus import CorpusReport, CorpusSettings, find_sources, read_documents
from lmrl.errors import DataError, SettingsError

zstandard = pytest.importorskip("zstandard")


def test_a_text_file_is_one_document_or_its_pieces(tmp_path, read):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffOne\r\nline.\r\n\r\n\r\n\r\nTwo \u2013 ü.\r\n\r\n".encode())
    documents, _ = read(path)
    assert [document.text for document in documents] == ["One\r\nline.\r\n\r\n\r\n\r\nTwo \u2013 ü.\r\n\r\n"]
    pieces, _ = read(path, separator="\n\n")
    assert [piece.text.strip() for piece in pieces] == ["One\nline.", "Two \u2013 ü."]
    assert [piece.where for piece in pieces] == [f"{path}:1", f"{path}:2"]


def test_a_separator_that_lies_on_a_border_of_chunks_is_found(tmp_path, read, monkeypatch):
    monkeypatch.setattr("lmrl.corpus.plain.CHUNK", 3)
    path = tmp_path / "a.txt"
    path.write_text("ab<|end|>cdé<|end|>\r\nf", encoding="utf-8")
    assert [document.text for document in read(path, separator="<|end|>")[0]] == ["ab", "cdé", "\nf"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_every_compression_holds_the_same_documents(tmp_path, read, suffix):
    content = b'{"text": "one", "url": "https://a.example"}\n\n"two"\n{"text": ""}\n{"text": "\xe2\x80\xa8x"}\n'
    packers = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packers[suffix](content))
    documents, report = read(path)
    assert [(d.text, d.number, d.address) for d in documents] == [
        ("one", 1, "https://a.example"),
        ("two", 3, ""),
        ("\u2028x", 5, ""),
    ]
    assert report.documents_in == 4 and report.dropped["read"]["no text"].example == f"{path}:4"


def test_two_zstandard_frames_are_one_file(tmp_path, read):
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "a.jsonl.zst").write_bytes(pack(b'"one"\n"tw') + pack(b'o"\n'))
    assert [document.text for document in read(tmp_path / "a.jsonl.zst")[0]] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", [{"text": "a"}, {"text": "b"}], ["a", "b"]),
        ("b.json", {"data": ["a", "b"]}, ["a", "b"]),
        ("c.json", {"text": "only"}, ["only"]),
    ],
)
def test_json_files(tmp_path, read, name, content, expected):
    for indent in (None, 1):
        (tmp_path / name).write_text(json.dumps(content, indent=indent), encoding="utf-8")
        assert [document.text for document in read(tmp_path / name)[0]] == expected


def test_json_lines_under_the_name_json(tmp_path, read):
    (tmp_path / "a.json").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    assert [document.text for document in read(tmp_path / "a.json")[0]] == ["a", "b"]


def test_tables_by_row_groups_csv_arrow_and_saved_folders(tmp_path, read):
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset, DatasetDict

    texts = [f"text {number}" for number in range(50)]
    table = pyarrow.table({"body": texts, "other": list(range(50))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    (tmp_path / "a.csv").write_text("other,body\n" + "".join(f"1,{text}\n" for text in texts), encoding="utf-8")
    Dataset.from_dict({"body": texts}).save_to_disk(tmp_path / "saved")
    DatasetDict({"valid": Dataset.from_dict({"body": texts})}).save_to_disk(tmp_path / "splits")
    for name in ("a.parquet", "a.csv", "saved"):
        documents, _ = read(tmp_path / name, column="body")
        assert [document.text for document in documents] == texts and documents[-1].number == 50
    assert len(read(tmp_path / "splits", column="body", split="valid")[0]) == 50
    with pytest.raises(DataError, match=r"unknown split 'train'.*valid"):
        read(tmp_path / "splits", column="body")
    with pytest.raises(DataError, match=r"unknown column 'text'.*Known: body, other"):
        read(tmp_path / "a.parquet")


def test_folders_globs_and_repeated_names_give_each_file_once(tmp_path, read):
    (tmp_path / "in").mkdir()
    for name in ("b.txt", "a.txt", "in/c.txt", "in/readme.md"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert [d.text for d in read(tmp_path)[0]] == ["a.txt", "b.txt", "in/c.txt"]
    assert [d.text for d in read(tmp_path / "*.txt", tmp_path / "a.txt")[0]] == ["a.txt", "b.txt"]
    assert [d.text for d in read(tmp_path / "**" / "*.txt")[0]] == ["a.txt", "b.txt", "in/c.txt"]


def test_a_limit_ends_reading_and_says_so(tmp_path, read, write_lines):
    path = write_lines([str(number) for number in range(10)])
    documents, report = read(path, limit=3)
    assert [document.text for document in documents] == ["0", "1", "2"] and "corpus.limit" in report.notes[0]


def test_half_characters_are_replaced_and_counted(tmp_path, read):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d b"}\n{"text": "\\ud83d\\ude00"}\n', encoding="utf-8")
    documents, report = read(tmp_path / "a.jsonl")
    assert [document.text for document in documents] == ["a\ufffd b", "\U0001f600"]
    assert report.changed["read"]["half characters replaced"].documents == 1


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('"good"\nbroken\n', encoding="utf-8")
    settings = CorpusSettings(paths=[str(path)])
    stream = read_documents(find_sources(settings.paths), settings, CorpusReport())
    assert next(stream).text == "good"
    with pytest.raises(DataError, match="line 2"):
        next(stream)


BROKEN = [
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: not valid JSON"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"a\.jsonl, line 2: byte 11 of the line is not UTF-8"),
    ("a.txt", b"one\ntwo\xff", r"a\.txt, line 2: byte 4 of the line is not UTF-8"),
    ("a.jsonl", b'{"text": 3}\n', r"row 1: the column 'text' holds a int; expected text"),
    ("a.jsonl", b"[1]\n", r"row 1: found a list"),
    ("a.jsonl", b'{"txt": "a", "n": 1}\n', r"unknown column 'text'; did you mean 'txt'\?.*corpus\.column=txt"),
    ("a.json", b'{"text": "a"', r"a\.json, line 1: not valid JSON"),
    ("a.json", b"3", r"holds a int; expected a list"),
    ("a.parquet", b"PAR1 and nothing", r"a\.parquet cannot be read"),
    ("a.jsonl.gz", gzip.compress(b'"a"\n' * 5000)[:-20], r"a\.jsonl\.gz.*broken gzip data"),
    ("headlines.jsonl.gz", gzip.compress(b'"a"\n' * 5000)[:-20], r"broken gzip data after line \d+"),
    ("a.jsonl.gz", b"no gzip at all", r"broken gzip data"),
    ("a.json", b"[" * 100_000, r"a\.json, line 1: JSON that cannot be read"),
    ("a.jsonl.zst", b"no zstandard", r"broken zstandard data"),
    (
        "a.jsonl.zst",
        zstandard.ZstdCompressor().compress(b"".join(b'"%d"\n' % n for n in range(9999)))[:-9],
        r"broken zstandard data after line \d+ \(it ends within",
    ),
]


@pytest.mark.parametrize(
    ("name", "content", "message"), BROKEN, ids=[f"{n}-{name}" for n, (name, *_) in enumerate(BROKEN)]
)
def test_broken_files_are_named_with_their_line(tmp_path, read, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_names_that_lead_nowhere(tmp_path, read):
    (tmp_path / "texts.jsonl").touch()
    (tmp_path / "a.docx").touch()
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"there is no file .*text\.jsonl\. Did you mean .*texts\.jsonl\?"):
        read(tmp_path / "text.jsonl")
    with pytest.raises(DataError, match="unknown kind of file"):
        read(tmp_path / "a.docx")
    with pytest.raises(DataError, match="nothing matches"):
        read(tmp_path / "*.zip")
    with pytest.raises(DataError, match="holds no file of a kind"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match=r"its folder .* does not exist"):
        read(tmp_path / "missing" / "a.txt")
    with pytest.raises(SettingsError, match=r"corpus\.paths is empty"):
        read()


def test_an_id_on_the_hub_that_cannot_be_reached(read):
    with pytest.raises(DataError, match=r"nobody/nothing is neither a file here nor a data set on the hub"):
        read("nobody/nothing")


def test_a_text_too_large_for_one_document_names_the_separator(tmp_path, read, monkeypatch):
    monkeypatch.setattr("lmrl.corpus.plain.LARGEST_DOCUMENT", 10)
    (tmp_path / "a.txt").write_text("x" * 11, encoding="utf-8")
    with pytest.raises(DataError, match=r"corpus\.separator"):
        read(tmp_path / "a.txt")


def test_a_missing_extra_is_named(tmp_path, read, monkeypatch):
    import lmrl.corpus.documents as documents

    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(documents, "import_module", absent)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(b'"a"\n'))
    (tmp_path / "a.warc").write_bytes(b"WARC/1.0\r\n")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for name in ("a.jsonl.zst", "a.warc"):
        with pytest.raises(DataError, match=r'pip install "lmrl\[text\]"'):
            read(tmp_path / name)


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    settings = CorpusSettings(paths=["x"])
    for name, text in (("a.txt", "one"), ("b.txt", "one"), ("c.txt", "two")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    one, same, other = (source.fingerprint(settings) for source in find_sources([str(tmp_path)]))
    assert one == same != other


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl", "a.csv", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_without_a_document_is_counted(tmp_path, read, name):
    import pyarrow
    import pyarrow.parquet

    content = {".gz": gzip.compress(b""), ".zst": zstandard.ZstdCompressor().compress(b""), ".csv": b"text\n"}
    (tmp_path / name).write_bytes(content.get((tmp_path / name).suffix, b""))
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / name)
    (tmp_path / "b.jsonl").write_text('"something"\n', encoding="utf-8")
    documents, report = read(tmp_path / name, tmp_path / "b.jsonl")
    assert [document.text for document in documents] == ["something"]
    assert report.rows() == [("read", "empty file", 1, 0, str(tmp_path / name))] and report.documents_in == 2


def test_a_long_document_in_a_csv_cell(tmp_path, read):
    (tmp_path / "a.csv").write_text("text\n" + "word " * 40_000 + "\n", encoding="utf-8")
    (document,), _ = read(tmp_path / "a.csv")
    assert len(document.text) == 200_000


def test_a_zstandard_frame_with_a_long_window(tmp_path, read):
    """As zstd --long=28 writes it: its window is larger than the library's own bound."""
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    writer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(writer.compress(b'"one"\n') + writer.flush())
    assert [document.text for document in read(tmp_path / "a.jsonl.zst")[0]] == ["one"]


@pytest.mark.parametrize("separator", ["\n\n", "\n", "<|end|>", "aab"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_separators_are_found_wherever_a_chunk_ends(tmp_path, read, monkeypatch, separator, chunk):
    monkeypatch.setattr("lmrl.corpus.plain.CHUNK", chunk)
    text = "one\r\n\r\ntwo\nthree\n\n\nfour<|end|>five<|en<|end|>aaab\r\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    expected = [piece for piece in text.replace("\r\n", "\n").split(separator) if piece.strip()]
    documents, _ = read(tmp_path / "a.txt", separator=separator)
    assert [document.text for document in documents] == expected
