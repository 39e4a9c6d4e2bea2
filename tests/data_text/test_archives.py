"""Web archives: real ones, every kind of record, and damage that costs one record and no more."""

from __future__ import annotations

import gzip

import pytest

from lmrl.errors import DataError

pytest.importorskip("warcio")
pytest.importorskip("trafilatura")


def warc_record(kind: str, address: str, body: bytes, content_type: str = "text/html", status: str = "200 OK") -> bytes:
    """Return one record of a web archive; a response has its HTTP header."""
    if kind == "response":
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        body, content_type = head + body, "application/http; msgtype=response"
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {address}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return header.encode() + body + b"\r\n\r\n"


def page(text: str) -> bytes:
    """Return an HTML page whose main text is ``text``."""
    paragraphs = "".join(f"<p>{part}</p>" for part in text.split("\n"))
    menu = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/about'>About</a></li></ul></nav>"
    return f"<html><body>{menu}<article><h1>Title</h1>{paragraphs}</article></body></html>".encode()


PROSE = "The old mill stands by the river, and nobody has worked there for many years. Number {} tells its story again."


def archive(count: int, compressed: bool = True) -> list[bytes]:
    """Return the members of an archive of ``count`` pages, each a record of its own."""
    records = [
        warc_record("response", f"https://example.org/{number}", page("\n".join([PROSE.format(number)] * 3)))
        for number in range(1, count + 1)
    ]
    return [gzip.compress(record) for record in records] if compressed else records


def numbers(documents):
    return [int(document.address.rsplit("/", 1)[1]) for document in documents]


@pytest.mark.parametrize("compressed", [True, False])
def test_pages_lose_their_menus(tmp_path, read, compressed):
    path = tmp_path / ("a.warc.gz" if compressed else "a.warc")
    path.write_bytes(b"".join(archive(3, compressed)))
    documents, report = read(path)
    assert numbers(documents) == [1, 2, 3] and [document.number for document in documents] == [1, 2, 3]
    assert PROSE.format(2) in documents[1].text and "About" not in documents[1].text
    assert documents[1].where == f"{path}:2 (https://example.org/2)" and not report.dropped


def test_records_that_are_no_pages_are_counted_or_no_documents(tmp_path, read):
    text = page("\n".join([PROSE.format(1)] * 3))
    records = [
        warc_record("warcinfo", "", b"software: test", "application/warc-fields"),
        warc_record("request", "https://a.example/", b"GET / HTTP/1.1\r\n\r\n", "application/http"),
        warc_record("response", "https://a.example/", text),
        warc_record("response", "https://a.example/gone", text, status="404 Not Found"),
        warc_record("response", "https://a.example/i.png", b"\x89PNG", "image/png"),
        warc_record("response", "https://a.example/empty", b"<html><body></body></html>"),
        warc_record("conversion", "https://a.example/wet", "Ünï\n".encode(), "text/plain"),
        warc_record("conversion", "https://a.example/latin", "Ünï".encode("latin-1"), "text/plain"),
        warc_record("conversion", "https://a.example/l1", "Ünï".encode("latin-1"), "text/plain; charset=latin-1"),
        warc_record("resource", "urn:x:log", b"a crawler's log", "text/plain"),
        warc_record(
            "response", "https://a.example/latin", text.replace(b"Title", b"Stra\xdfe"), "text/html; charset=x"
        ),
    ]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(map(gzip.compress, records)))
    documents, report = read(path)
    assert [document.number for document in documents] == [3, 7, 9, 11]
    assert [document.text for document in documents[1:3]] == ["Ünï\n", "Ünï"]
    assert {reason: count.documents for reason, count in report.dropped["extract"].items()} == {
        "HTTP status 404": 1,
        "not a page: image/png": 1,
        "no main text": 1,
        "text that is not in its declared encoding": 1,
    }
    assert report.documents_in == 8


def test_a_damaged_member_costs_one_record(tmp_path, read):
    members = archive(6)
    members[2] = members[2][:60] + b"\0" * 40 + members[2][100:]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(members))
    documents, report = read(path)
    assert numbers(documents) == [1, 2, 4, 5, 6]
    assert [document.number for document in documents] == [1, 2, 4, 5, 6]
    count = report.dropped["read"]["broken gzip member"]
    assert (count.documents, count.example) == (1, f"{path}:3")


@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_damage_is_found_across_chunks(tmp_path, read, monkeypatch, chunk):
    monkeypatch.setattr("lmrl.corpus.archives.CHUNK", chunk)
    members = archive(4)
    members[1] = members[1][:30] + members[1][50:]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(members))
    documents, report = read(tmp_path / "a.warc.gz")
    assert numbers(documents) == [1, 3, 4] and report.dropped["read"]["broken gzip member"].documents == 1


@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_cut_short_loses_its_last_record(tmp_path, read, compressed):
    path = tmp_path / ("a.warc.gz" if compressed else "a.warc")
    path.write_bytes(b"".join(archive(3, compressed))[:-150])
    documents, report = read(path)
    assert numbers(documents) == [1, 2]
    assert report.dropped["read"]["truncated record"].example == f"{path}:3"


def test_damage_in_an_archive_without_compression(tmp_path, read):
    records = archive(4, compressed=False)
    records[1] = b"XX" + records[1][2:]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    documents, report = read(tmp_path / "a.warc")
    assert numbers(documents) == [1, 3, 4] and report.dropped["read"]["broken record"].documents == 1


def test_what_is_no_archive_is_an_error(tmp_path, read):
    for name, content in (("a.warc", b"hello\n" * 99), ("a.warc.gz", gzip.compress(b"hello")), ("b.warc.gz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="holds no record that can be read"):
            read(tmp_path / name)


def test_an_archive_in_one_gzip_member_is_read_up_to_a_size(tmp_path, read, monkeypatch):
    path = tmp_path / "a.warc.gz"
    path.write_bytes(gzip.compress(b"".join(archive(3, compressed=False))))
    assert numbers(read(path)[0]) == [1, 2, 3]
    monkeypatch.setattr("lmrl.corpus.archives.LARGEST_MEMBER", 1000)
    with pytest.raises(DataError, match="warcio recompress"):
        read(path)


def test_html_files(tmp_path, read):
    (tmp_path / "a.html").write_bytes(page("\n".join([PROSE.format(7)] * 3)))
    (tmp_path / "b.html").write_bytes(b"<html></html>")
    documents, report = read(tmp_path)
    assert PROSE.format(7) in documents[0].text and report.dropped["extract"]["no main text"].documents == 1


def test_real_archives(shared, read):
    folder = shared / "data" / "text"
    documents, report = read(folder / "dolma_sample-0000.warc.gz")
    assert len(documents) == 22 and report.documents_in == 22
    assert all("<div" not in document.text for document in documents)
    (extracted,), _ = read(folder / "whirlwind.warc.gz")
    (wet,), _ = read(folder / "whirlwind.warc.wet.gz")
    assert extracted.address == wet.address == "https://an.wikipedia.org/wiki/Escopete"
    assert "Escopete" in extracted.text and len(extracted.text) < len(wet.text)
    assert "Menú principal" in wet.text and "Menú principal" not in extracted.text


def test_a_real_archive_with_a_hole(shared, tmp_path, read):
    content = bytearray((shared / "data" / "text" / "dolma_sample-0000.warc.gz").read_bytes())
    content[50_600:50_700] = bytes(100)
    (tmp_path / "a.warc.gz").write_bytes(content)
    documents, report = read(tmp_path / "a.warc.gz")
    assert len(documents) == 21 and report.dropped_documents == 1
