"""A new plugin's folder: a package that installs, passes its own tests and runs, for its author to change.

The files are templates beside this module: one module and its tests for each kind, and what all kinds share.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from lmrl import __version__
from lmrl.errors import SettingsError, unknown
from lmrl.plugins.api import DECLARATION, PLUGIN_API

SHORT_RUN = "train.updates=2 train.prompts_per_update=8 evaluation.prompts=8 sampling.max_new_tokens=16"
USES = {
    "optimizer": "optimizer.name={name}",
    "reward": "reward.name={name}",
    "dataset": "prompts.name={name}",
    "engine": "engine.name={name}",
    "benchmark": "",
}
"""Setting that picks the plugin in a recipe, by its kind; a benchmark has a command of its own."""
SECTIONS = {"dataset": "prompts"}


def new_plugin(name: str, folder: str | Path = ".", *, kind: str = "optimizer", taken: Iterable[str] = ()) -> Path:
    """Write the package ``name`` into ``folder/name`` and return that path.

    ``taken`` are the names of this kind that are installed. Raises ``SettingsError`` for a name that no module can
    have or that is taken, for an unknown kind, and for a folder that exists: nothing is ever overwritten.
    """
    if kind not in USES:
        raise SettingsError(unknown("kind of plugin to write", kind, USES))
    _check_name(name, kind, taken)
    target = Path(folder) / name
    if target.exists():
        raise SettingsError(f"{target} exists and is left as it is; choose another name, or a place with --folder")
    if _is_module(name):
        raise SettingsError(
            f"a module {name!r} is installed already, so that of the plugin could not be imported; choose another name"
        )
    values = {
        "name": name,
        "kind": kind,
        "title": "".join(word.capitalize() for word in name.split("_")),
        "distribution": name.strip("_").replace("_", "-"),
        "section": SECTIONS.get(kind, kind),
        "short_run": short_run(kind, name),
        "lmrl": __version__.rpartition(".")[0],
        "api": f"{DECLARATION} = {PLUGIN_API}",
    }
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{name}.py": f"{kind}.py",
        f"test_{name}.py": f"{kind}_tests.py",
    }
    if kind == "benchmark":
        files[f"{name}.toml"] = "benchmark.toml"
    texts = {file: _rendered(template, values) for file, template in files.items()}
    target.mkdir(parents=True)
    for file, text in texts.items():
        (target / file).write_text(text, encoding="utf-8")
    return target


def short_run(kind: str, name: str) -> str:
    """Return the command that uses a plugin of this kind for a moment."""
    if kind == "benchmark":
        return f"lmrl bench run {name} --smoke"
    return f"lmrl rl {USES[kind].format(name=name)} {SHORT_RUN}"


def _check_name(name: str, kind: str, taken: Iterable[str]) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        guess = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
        advice = f"; did you mean {guess!r}?" if guess and guess != name and not keyword.iskeyword(guess) else ""
        raise SettingsError(
            f"the name {name!r} cannot be that of a module; expected lower-case letters, digits and _, beginning with "
            f"a letter, and no word of Python's own{advice}"
        )
    if name in set(taken):
        raise SettingsError(f"the {kind} {name!r} is installed already (see `lmrl plugins`); choose another name")


def _is_module(name: str) -> bool:
    if name in sys.stdlib_module_names:
        return True
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None  # a mere folder of that name is found too, without an origin


def _rendered(template: str, values: dict[str, str]) -> str:
    import jinja2

    text = resources.files("lmrl.plugins").joinpath("templates", f"{template}.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(text).render(values)
