"""What the wheel holds, what it declares, and whether the pinned versions fit the open ranges."""

from __future__ import annotations

import ast
import configparser
import json
import os
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").exists())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling", reason="hatchling, the build backend, is not installed (it is in the test extra)")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(folder.glob("lmrl-*.whl")))


def wheel_metadata(wheel: zipfile.ZipFile, file: str) -> str:
    name = next(name for name in wheel.namelist() if name.endswith(f".dist-info/{file}"))
    return wheel.read(name).decode()


def test_the_wheel_holds_the_code_and_the_model_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"lmrl", "lmrl_suites", *PLUGINS}
    assert not [name for name in names if "test" in name.split("/")[-1].split("_")[0] and name.endswith(".py")]
    assert "lmrl/py.typed" in names
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        assert f"lmrl/stories/model/{file}" in names
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "lmrl").rglob("*.py")}
    assert source <= names
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "lmrl" / "plugins" / "templates").iterdir()}
    assert templates <= names and len(templates) >= 10
    suites = {str(path.relative_to(ROOT / "benchmarks")) for path in (ROOT / "benchmarks" / "lmrl_suites").rglob("*.*")}
    suites = {name for name in suites if not name.endswith(".pyc")}
    assert suites <= names and "lmrl_suites/suites/stories.toml" in suites
    assert sum(item.file_size for item in wheel.infolist()) < 5_000_000


def test_the_wheel_declares_its_plugins_and_its_command(wheel):
    entry_points = configparser.ConfigParser()
    entry_points.read_string(wheel_metadata(wheel, "entry_points.txt"))
    assert dict(entry_points["lmrl"]) == {name.removeprefix("lmrl_"): name for name in ("lmrl_suites", *PLUGINS)}
    assert entry_points["console_scripts"]["lmrl"] == "lmrl.cli.main:main"


def test_the_wheel_declares_licence_python_and_extras(wheel):
    declared: Message = Parser().parsestr(wheel_metadata(wheel, "METADATA"))
    assert declared["License-Expression"] == "Apache-2.0" and declared["Requires-Python"] == ">=3.11"
    assert {"test", "dev", "docs"} <= set(declared.get_all("Provides-Extra") or [])
    assert "@" not in "".join(declared.get_all("Requires-Dist") or []), "a requirement names an address"
    wheel_metadata(wheel, "licenses/LICENSE")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Return the programs of a fresh environment with the wheel; the other packages are those of these tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    query = [programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip())
    parents = [path for path in site.getsitepackages() if Path(path).is_dir()]
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in parents)
    (packages / "parent.pth").write_text(lines, encoding="utf-8")
    command = [programs / "python", "-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed", "--quiet"]
    done = subprocess.run([*command, wheel.filename], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return programs


def run_outside(command: list[str | Path], folder: Path) -> str:
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHON", "LMRL"))}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_installed_wheel_runs_the_exact_suite(installed, tmp_path):
    where = "import lmrl, lmrl_suites; print(lmrl.__version__, lmrl.__file__, lmrl_suites.__file__)"
    version, *files = run_outside([installed / "python", "-c", where], tmp_path).split()
    assert version == PROJECT["project"]["version"]
    assert all(Path(file).is_relative_to(installed.parent) for file in files), f"not from the wheel: {files}"
    small = ["--optimizers", "reinforce,ppo", "--tasks", "counting", "--beta", "0.3", "--seeds", "1", "budget.amount=2"]
    run_outside([installed / "lmrl", "bench", "run", "exact", *small, "--quiet"], tmp_path)
    lines = (tmp_path / "results" / "exact.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert {(one["optimizer"], one["status"]) for one in records} == {("reinforce", "done"), ("ppo", "done")}
    assert all(one["versions"]["lmrl"] == version and "gap_closed" in one["metrics"] for one in records)


def test_the_installed_entry_points_are_the_plugins():
    names = {(point.name, point.value) for point in metadata.entry_points(group="lmrl")}
    assert names >= {(name.removeprefix("lmrl_"), name) for name in PLUGINS}


def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): Version(version) for name, version in pairs}


def test_every_requirement_is_pinned_within_its_range():
    pinned = constraints()
    extras = PROJECT["project"]["optional-dependencies"].values()
    for line in [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]:
        requirement = Requirement(line)
        if requirement.name == "lmrl":  # an extra that takes in another one
            continue
        version = pinned.get(requirement.name.lower().replace("_", "-"))
        assert version is not None, f"constraints.txt does not pin {requirement.name}; see `make constraints`"
        assert version in requirement.specifier, f"{requirement} excludes the tested {version}"
        assert not any(clause.operator in {"<", "<=", "==", "~="} for clause in requirement.specifier), line


def test_the_pins_match_any_build():
    assert str(constraints()["torch"]) == "2.13.0"
    assert not [name for name, version in constraints().items() if version.local]


def test_the_versions_agree():
    import lmrl

    assert lmrl.__version__ == PROJECT["project"]["version"]
    assert f"## {lmrl.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


BROUGHT = {"pyarrow", "stable_baselines3", "sb3_contrib"}
"""Imports without a line of their own: pyarrow is what datasets reads with, the others only meet a caller's objects."""


OTHER_NAMES = {"scikit_learn": "sklearn"}
"""What distributions are imported as, where it is not their name."""


def test_every_import_is_a_declared_dependency():
    extras = PROJECT["project"]["optional-dependencies"]
    optional = [line for name, lines in extras.items() if name not in {"test", "dev", "docs"} for line in lines]
    lines = [*PROJECT["project"]["dependencies"], *optional]
    distributions = {Requirement(line).name.replace("-", "_") for line in lines}
    declared = {OTHER_NAMES.get(name, name) for name in distributions}
    known = declared | BROUGHT | set(sys.stdlib_module_names) | {"lmrl", *PLUGINS}
    for path in [*(ROOT / "lmrl").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                assert module.split(".")[0] in known, f"{path.relative_to(ROOT)} imports {module}: pyproject has it not"
