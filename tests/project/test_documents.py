"""The documents keep their word: links lead somewhere, code runs or parses, commands and targets exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def blocks(path: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


def anchors(path: Path) -> set[str]:
    """Return the anchors that headings get, by GitHub's rule."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    path = ROOT / name
    for match in LINK.finditer(FENCE.sub("", path.read_text(encoding="utf-8"))):
        target, _, anchor = (match[1] or match[2]).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{name}: the link to {target} leads nowhere"
        if anchor and found.suffix == ".md" and not anchor.startswith("lmrl."):  # test_reference.py checks the others
            assert anchor in anchors(found), f"{name}: {found.name} has no heading #{anchor}"


@pytest.mark.parametrize("name", NAMES)
def test_code_blocks_parse(name):
    for body in blocks(ROOT / name, "python"):
        compile(body, name, "exec")
    for body in blocks(ROOT / name, "toml"):
        tomllib.loads(body)
    for body in blocks(ROOT / name, "json"):
        json.loads(body)


def test_the_readme_has_every_kind_of_block():
    assert len(blocks(ROOT / "README.md", "python")) >= 2 and blocks(ROOT / "README.md", "sh", "toml")


EXECUTED = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("prompts", "control", "exact", "trainer"))]


@pytest.mark.parametrize("body", [body for path in EXECUTED for body in blocks(path, "python")])
def test_the_documents_python_runs(body, tmp_path):
    """Each block on its own, in a new process and an empty folder, as a reader would paste it."""
    (tmp_path / "block.py").write_text(body, encoding="utf-8")
    done = subprocess.run([sys.executable, "block.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def commands(name: str) -> Iterator[list[str]]:
    """Yield the commands of a document's shell blocks, without comments and continuation marks."""
    for body in blocks(ROOT / name, "sh", "bash", "console"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield words


@pytest.fixture(scope="module")
def subcommands() -> set[str]:
    done = subprocess.run([sys.executable, "-m", "lmrl.cli.main", "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"[a-z][a-z-]+", done.stdout))


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name, subcommands):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(name):
        program = words[0].removeprefix(".venv/bin/")
        if program == "lmrl":
            assert words[1] in subcommands or words[1].startswith("--"), f"{name}: lmrl has no command {words[1]}"
        if program == "make":
            named = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            assert named <= targets, f"{name}: make has no target {named - targets}"


@pytest.mark.parametrize("name", NAMES)
def test_recipes_named_in_commands_exist(name):
    for words in commands(name):
        for word in words:
            assert not word.startswith("examples/") or (ROOT / word).exists(), f"{name}: there is no {word}"


def test_the_readmes_tree_is_the_repositorys():
    """Every path in the annotated tree exists, and every top-level folder of git is in it."""
    tree = next(body for body in blocks(ROOT / "README.md", "text") if "lmrl/" in body)
    folder: list[str] = []
    top = set()
    for line in tree.splitlines():
        found = re.match(r"^( *)(\S+)", line)
        if not found:
            continue
        depth = len(found[1]) // 2
        folder[depth:] = [found[2]]
        top.add(folder[0].rstrip("/"))
        path = ROOT.joinpath(*folder)
        assert path.exists(), f"the README's tree names {path.relative_to(ROOT)}, which is not there"
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    folders = {line.split("/")[0] for line in done.stdout.splitlines() if "/" in line}
    assert {name for name in folders if not name.startswith(".")} <= top


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        name = str(path.relative_to(ROOT / "docs"))
        assert name == "README.md" or f"({name})" in index, f"docs/README.md does not link to {name}"


def test_the_readme_names_every_optimizer():
    table = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("## Built-in optimizers")[2].partition("\n## ")[0]
    )
    plugins = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["lmrl"]
    assert set(plugins) - {"control", "suites"} <= set(re.findall(r"`(\w+)`", table))


def test_pages_say_how_many_lines_a_plugin_has():
    found = {}
    for path in (ROOT / "docs" / "plugins.md", *(ROOT / "docs" / "optimizers").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        for name, lines in re.findall(r"`(?:plugins/)?lmrl_(\w+)`\]?(?:\([^)]*\),)? \(?(\d+) lines", text):
            own = (ROOT / "plugins" / f"lmrl_{name}" / "__init__.py").read_text(encoding="utf-8")
            assert len(own.splitlines()) == int(lines), f"{path.name}: lmrl_{name}"
            found[name] = int(lines)
    examples = {"gkd", "gmpo", "imitation", "nash_md", "rebel", "sapo", "xpo"}
    assert examples <= found.keys() and all(found[name] < 80 for name in examples)
