"""The optimizers that the documents show keep the contract too."""

import re

import pytest

from lmrl.plugins import PluginManager
from lmrl.testing import check_optimizer

PAGES = ["README.md", "docs/hooks.md", "docs/plugins.md"]


@pytest.mark.parametrize("page", PAGES)
def test_a_documented_optimizer_keeps_the_contract(page, root, tmp_path):
    text = (root / page).read_text(encoding="utf-8")
    [body] = [body for body in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "def lmrl_optimizers" in body]
    file = tmp_path / "documented.py"
    file.write_text(body, encoding="utf-8")
    [spec] = PluginManager([file], entry_points=[]).optimizers().values()
    check_optimizer(spec)
