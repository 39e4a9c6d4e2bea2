"""Who may import whom, what importing costs, and what may not stand in the repository."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").exists())
PUBLIC = (
    "lmrl",
    "lmrl.algorithms",
    "lmrl.engines",
    "lmrl.envs",
    "lmrl.models",
    "lmrl.rewards",
    "lmrl.testing",
    "lmrl.text",
    "lmrl.training",
)
"""What plugins may import, the modules of lmrl.algorithms too. `make lint` holds the order of the core's packages."""
TRAINER = ("lmrl.config", "lmrl.seeds")
"""What lmrl_control trains with besides: the update has no public name yet."""
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]


def test_the_core_names_no_optimizer_but_as_a_default():
    names = re.compile(rf"\b(?:{'|'.join(name for name in PLUGINS if name != 'lmrl_control')})\b")
    for path in (ROOT / "lmrl").rglob("*.py"):
        found = names.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path} names {found and found[0]}"


def is_public(module: str) -> bool:
    return module in PUBLIC or module.startswith("lmrl.algorithms.")


def test_plugins_import_only_public_modules():
    for name in PLUGINS:
        for path in (ROOT / "plugins" / name).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for module in modules:
                    own = module.split(".")[0]
                    assert own != "lmrl" or is_public(module) or (name == "lmrl_control" and module in TRAINER), (
                        f"{path}:{node.lineno} imports {module}, which is private"
                    )
                    assert own == name or own not in PLUGINS, f"{path}:{node.lineno} imports another plugin, {module}"


def test_the_contract_on_imports_and_the_wheel_know_every_plugin():
    [contract] = [one for one in SETTINGS["importlinter"]["contracts"] if one["type"] == "forbidden"]
    assert contract["forbidden_modules"] == sorted(["lmrl_suites", *PLUGINS])
    packages = SETTINGS["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["lmrl", *(f"plugins/{name}" for name in PLUGINS), "benchmarks/lmrl_suites"]


def test_no_folder_holds_more_than_20_modules():
    for folder in (
        path for top in ("lmrl", "plugins", "benchmarks") for path in (ROOT / top).rglob("*") if path.is_dir()
    ):
        modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 20, f"{folder} holds {len(modules)} modules"


LONG: set[str] = set()
"""Functions that are too long and wait to be cut."""


def test_no_function_is_longer_than_60_lines():
    found = {
        f"{path.relative_to(ROOT)} {node.name}": node.end_lineno - node.lineno + 1
        for top in ("lmrl", "plugins")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(found) > 1000
    long = {name: lines for name, lines in found.items() if lines > 60}
    assert not long, f"more than 60 lines: {long}"


@pytest.mark.parametrize("statement", ["import lmrl", "import lmrl.plugins.specs, lmrl.errors", "import lmrl.data"])
def test_importing_is_cheap(statement):
    code = f"{statement}; import sys; print([n for n in ('torch', 'transformers', 'datasets') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["text", "data", "statistics", "reporting", "config"])
def test_a_package_needs_no_torch(package):
    """Every module of these can be imported without torch: readers of cards, rows and results start at once."""
    paths = (ROOT / "lmrl" / package).rglob("*.py")
    modules = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)
    code = f"import {', '.join(modules)}, sys; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


MACHINE = {
    "a folder of somebody's machine": re.compile(r"(?<![\w.$}])/(?:home|Users|root|work|mnt|opt)/[\w.-]"),
    "a folder of somebody's Windows machine": re.compile(r"\b[A-Z]:\\(?:Users|work)\\"),
    "a file address": re.compile(r"\bfile:/{2}"),
    "a package index": re.compile(r"\b(?:extra-)?index-?url\b|\btrusted-host\b", re.IGNORECASE),
    "an address with credentials": re.compile(r"https?://[^/\s\"'@]+@"),
}


def test_no_file_names_a_machine():
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path == Path(__file__):
            continue
        for what, pattern in MACHINE.items():
            found = pattern.search(text)
            assert not found, f"{path.relative_to(ROOT)} holds {what}: {found and found[0]!r}"


def test_the_machine_patterns_find_what_they_are_for():
    examples = ["see /home/me/x", "C:\\Users\\me", "file:///x", "pip --extra-index-url x", "https://me:pw@host/x"]
    for pattern, example in zip(MACHINE.values(), examples, strict=True):
        assert pattern.search(example)
        assert not pattern.search("runs/ppo-1, https://arxiv.org/abs/1707.06347, ../shared, lmrl.work/x")


def test_the_package_is_no_pickle_and_stays_small():
    for path in tracked_files():
        assert path.suffix not in {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}, f"{path}: use safetensors"
        assert path.stat().st_size < 2_000_000, f"{path} is larger than 2 MB"
