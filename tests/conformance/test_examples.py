"""Every optimizer that the documents, examples and scaffold show keeps the contract too."""

import re
from pathlib import Path

import pytest

from lmrl.plugins import PluginManager
from lmrl.plugins.scaffold import new_plugin
from lmrl.testing import check_optimizer

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
OFFERS = "def lmrl_optimizers"
ELSEWHERE = re.compile(r"^## What a plugin can express\n.*?(?=^## )", re.M | re.S)
"""A section whose examples need settings; test_expressed.py has them."""


def printed(page):
    return ELSEWHERE.sub("", page.read_text(encoding="utf-8"))


PRINTED = [
    pytest.param(body, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, body in enumerate(re.findall(r"^```python\n(.*?)^```", printed(page), re.M | re.S))
    if OFFERS in body
]
PRINTED += [
    pytest.param(body, id=file.name)
    for file in ROOT.glob("examples/**/*.py")
    if OFFERS in (body := file.read_text(encoding="utf-8"))
]


def keeps_the_contract(file):
    [spec] = PluginManager([file], entry_points=[]).optimizers().values()
    check_optimizer(spec)


def test_the_pages_that_print_an_optimizer_are_found():
    assert len(PRINTED) >= 3


@pytest.mark.parametrize("body", PRINTED)
def test_a_printed_optimizer_keeps_the_contract(body, tmp_path):
    file = tmp_path / "documented.py"
    file.write_text(body, encoding="utf-8")
    keeps_the_contract(file)


def test_the_written_optimizer_keeps_the_contract(tmp_path):
    keeps_the_contract(new_plugin("written", tmp_path) / "written.py")
