"""The code of docs/environment.md runs, each block by itself, and its keyword table is complete."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmrl.envs.task import TaskKeywords

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "environment.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number, tmp_path):
    file = tmp_path / "block.py"
    file.write_text(BLOCKS[number], encoding="utf-8")
    done = subprocess.run([sys.executable, file.name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_keyword_is_described():
    table = set(re.findall(r"^\| `(\w+)` \|", PAGE.split("## Observation")[0], re.MULTILINE))
    assert table == {*TaskKeywords.__annotations__, "render_mode"}
