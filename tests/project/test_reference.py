"""docs/reference shows every public name once, and each has a docstring that is a sentence."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "reference"
TITLE = re.compile(r"^# (\S+)$", re.MULTILINE)
MODULES = sorted(title for path in PAGES.glob("*.md") for title in TITLE.findall(path.read_text(encoding="utf-8")))
PUBLIC = [
    *("lmrl", "lmrl.algorithms", "lmrl.algorithms.kl", "lmrl.algorithms.ops", "lmrl.algorithms.preference_losses"),
    *(
        "lmrl.bench.suite_kind",
        "lmrl.engines",
        "lmrl.envs",
        "lmrl.errors",
        "lmrl.models",
        "lmrl.plugins",
        "lmrl.plugins.hookspecs",
    ),
    *("lmrl.plugins.specs", "lmrl.rewards", "lmrl.stages.rl", "lmrl.testing", "lmrl.text", "lmrl.training"),
]
"""Modules whose public names have a page."""


def public_names(module: ModuleType) -> dict[str, Any]:
    """Return what a module offers: the names of ``__all__``, or else the classes and functions that it defines."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__ if not name.startswith("_")}
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type | FunctionType) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def test_every_public_module_has_a_page():
    assert MODULES == PUBLIC


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocstrings_handlers.python", reason="mkdocstrings-python is in the docs extra")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def anchors(site: Path) -> dict[str, Any]:
    """The anchors of names that no class holds, each with the object that it leads to."""
    pages = [path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html")]
    found = [name for page in pages for name in re.findall(r'<(?:h2|div|a) id="(lmrl\.[\w.]+)"', page)]
    assert len(found) == len(set(found))
    return {name: pkgutil.resolve_name(name) for name in found}


@pytest.mark.slow
@pytest.mark.parametrize("module", [name for name in PUBLIC if name != "lmrl"])
def test_every_public_name_has_one_anchor(module, anchors):
    for name, value in public_names(importlib.import_module(module)).items():
        if isinstance(value, type | FunctionType | ModuleType):
            places = [anchor for anchor, found in anchors.items() if found is value]
        else:
            places = [anchor for anchor in anchors if anchor == f"{module}.{name}"]
        assert len(places) == 1, f"{module}.{name} is shown at {places}"


@pytest.mark.slow
def test_examples_in_docstrings_are_shown_as_code(site):
    for path in (site / "reference").glob("*.html"):
        assert "<blockquote>" not in path.read_text(encoding="utf-8"), f"{path.name}: indent the example"


def test_the_page_of_the_package_links_to_each_of_its_names():
    import lmrl

    rows = (PAGES / "lmrl.md").read_text(encoding="utf-8")
    linked = dict(re.findall(r"\[`(\w+)`\]\(\w+\.md(?:#([\w.]+))?\)", rows))
    assert set(linked) | {"__version__"} == set(lmrl.__all__)
    for name, anchor in linked.items():
        assert not anchor or pkgutil.resolve_name(anchor) is getattr(lmrl, name)


def shown_docstrings(holder: Any) -> Iterator[tuple[str, str]]:
    """Yield path and docstring of each class, function and field of a module or class, as griffe reads them."""
    for member in holder.members.values():
        if not member.is_public or member.name.startswith("_") or member.is_module:
            continue
        found = member.final_target if member.is_alias else member
        set_by_methods = found.labels == {"instance-attribute"} and found.value is not None
        if set_by_methods and "dataclass" not in holder.labels and not found.docstring:
            continue  # the reference leaves it out too
        yield found.path, found.docstring.value if found.docstring else ""
        if found.is_class:
            yield from shown_docstrings(found)


def test_docstrings_are_sentences():
    griffe = pytest.importorskip("griffe", reason="griffe comes with mkdocstrings-python, which is in the docs extra")
    root = griffe.load("lmrl", search_paths=[str(ROOT)], resolve_aliases=True)
    modules = [root[name.removeprefix("lmrl.")] for name in PUBLIC if name != "lmrl"]
    found = {path: text for module in modules for path, text in shown_docstrings(module)}
    assert len(found) > 500
    for path, docstring in found.items():
        text = re.split(r"\n\s*>>> ", docstring)[0].strip()
        assert text[:1].isupper() and text.endswith("."), f"{path} has the docstring {text!r}"
