"""Compressed files: zstandard in one frame or several, cut short, damaged, and without the package that reads it."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from lmrl.data import load_examples, load_prompts, load_rankings
from lmrl.errors import DataError

ROWS = [{"prompt": f"prompt {number}", "completion": str(random.Random(number).random())} for number in range(3000)]
LINES = [json.dumps(row) + "\n" for row in ROWS]


@pytest.fixture
def zstandard():
    return pytest.importorskip("zstandard", reason="zstandard is an extra")


def test_zstandard_in_one_frame_and_in_several(tmp_path, zstandard):
    pack = zstandard.ZstdCompressor().compress
    cut = len(LINES) // 2
    contents = {
        "one.jsonl.zst": pack("".join(LINES).encode()),
        "two.jsonl.zst": pack("".join(LINES[:cut]).encode()) + pack(b"") + pack("".join(LINES[cut:]).encode()),
        "three.JSON.ZST": pack(json.dumps(ROWS).encode()),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        found = load_examples(tmp_path / name)
        assert [{"prompt": item.prompt, "completion": item.completion} for item in found.examples] == ROWS
    (tmp_path / "prompts.txt.zst").write_bytes(pack(b"one\ntwo\n"))
    assert load_prompts(tmp_path / "prompts.txt.zst").prompts == ["one", "two"]


def test_zstandard_cut_short_is_no_whole_file(tmp_path, zstandard):
    whole = zstandard.ZstdCompressor().compress("".join(LINES).encode())
    path = tmp_path / "a.jsonl.zst"
    for length in (len(whole) - 1, len(whole) // 2, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.jsonl\.zst: broken zstandard data after line \d+ .*cut short"):
            load_examples(path)
    path.write_bytes(whole + whole[: len(whole) // 2])
    with pytest.raises(DataError, match="broken zstandard data after line 3000"):
        load_examples(path)
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match="broken zstandard data after line 0"):
        load_examples(path)


def test_a_damaged_block_is_noticed(tmp_path, zstandard):
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress("".join(LINES).encode()))
    packed[len(packed) // 2] ^= 255
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    with pytest.raises(DataError, match=r"broken zstandard data|not valid JSON|not UTF-8"):
        load_examples(tmp_path / "a.jsonl.zst")


def test_without_the_package_the_extra_is_named(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"")
    program = (
        "import sys; sys.modules['zstandard'] = None\n"
        "from lmrl.data import load_rankings\nfrom lmrl.errors import DataError\n"
        f"try:\n    load_rankings({str(path)!r})\nexcept DataError as error:\n    print(error)\n"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert 'pip install "lmrl[text]"' in printed and "a.jsonl.zst" in printed


def test_a_half_written_last_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(LINES[:3]) + LINES[3][:20])
    with pytest.raises(DataError, match=r"line 4: not valid JSON.*the file was cut short"):
        load_examples(path)
    path.write_text('{"prompt": "p", "chosen": }\n')
    with pytest.raises(DataError, match=r"line 1: not valid JSON \(Expecting value, column 27\)\.$"):
        load_rankings(path)


def test_tables_and_cells_of_csv(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 0], "scores": [0.5, 1.5]}] * 2
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert load_rankings(tmp_path / "a.parquet").rankings == load_rankings(rows).rankings
    (tmp_path / "a.csv").write_text("input,output_1,output_2,label\ni,a,b,2\n")
    assert load_rankings(tmp_path / "a.csv").rankings[0].completions == ("b", "a")
    (tmp_path / "b.csv").write_text("prompt,completion,label\np,a,True\np,b,false\n")
    assert load_rankings(tmp_path / "b.csv").rankings[0].completions == ("a", "b")
