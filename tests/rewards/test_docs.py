import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", ["rewards.md", "stories.md"])
def test_the_examples_of_a_page_run(name):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, name, "exec"), names)


def test_every_setting_is_documented():
    from lmrl.rewards import builtin_specs

    page = (DOCS / "rewards.md").read_text(encoding="utf-8")
    for spec in builtin_specs():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{spec.name}` |"))
        for field in spec.settings.__dataclass_fields__:
            assert f"`{field}`" in row, (spec.name, field)
