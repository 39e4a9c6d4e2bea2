"""Modules of plugin files: each one's name holds the path of its file.

``lmrl.plugins.files.brevity_<path in base 32>`` can be imported by every process that can import lmrl, without any
setting: what a plugin file defines unpickles in worker processes. A plugin file may import its neighbours, the modules
and packages in its folder. They become modules of the same kind, so that they shadow nothing and are shadowed by
nothing but what is installed, and equal names in two folders stay apart.
"""

from __future__ import annotations

import base64
import builtins
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

PREFIX = f"{__name__}."
DIGEST = "__digest__"
"""Variable of a plugin file's module: the SHA-256 of its source."""


def module_name(path: Path) -> str:
    """Return the name of a file's module: its readable stem and its resolved path."""
    resolved = path.resolve()
    stem = resolved.parent.name if resolved.name == "__init__.py" else resolved.stem
    encoded = base64.b32encode(str(resolved).encode()).decode().rstrip("=").lower()
    return f"{PREFIX}{re.sub(r'[^0-9A-Za-z]', '_', stem)}_{encoded}"


def path_of(name: str) -> Path | None:
    """Return the path that the last part of a module's name holds, or None if it holds none."""
    encoded = name.rpartition("_")[2].upper()
    try:
        return Path(base64.b32decode(encoded + "=" * (-len(encoded) % 8)).decode())
    except ValueError:
        return None


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def import_file(path: Path) -> ModuleType:
    """Return the module of a plugin file; it is executed anew if the file or a neighbour that it imported changed."""
    name = module_name(path)
    known = _modules_of(path.resolve().parent)
    if any(not _file_of(one).is_file() or vars(one).get(DIGEST) != digest_of(_file_of(one)) for one in known):
        for module in known:
            sys.modules.pop(module.__name__, None)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def neighbours_of(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each module that was imported from the folder of a plugin file, by its path."""
    found = {str(_file_of(module)): str(vars(module).get(DIGEST)) for module in _modules_of(path.resolve().parent)}
    found.pop(str(path.resolve()), None)
    return dict(sorted(found.items()))


def _modules_of(folder: Path) -> list[ModuleType]:
    """Return the imported modules of plugin files in a folder and of the packages in it."""
    found = [module for name, module in sys.modules.items() if name.startswith(PREFIX)]
    return [module for module in found if folder in _file_of(module).parents]


def _file_of(module: ModuleType) -> Path:
    return Path(module.__file__ or "")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules whose names hold a path, and those inside such packages, in whichever process asks for them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        top, dot, _ = fullname.removeprefix(PREFIX).partition(".")
        file = path_of(top) if fullname.startswith(PREFIX) else None
        if file is None or not file.is_file():
            return None
        # A package's folder is the one beside which its modules look for neighbours, too.
        home = file.parent.parent if file.name == "__init__.py" else file.parent
        if dot:
            found = importlib.machinery.PathFinder.find_spec(fullname, path)
            if found is not None and isinstance(found.loader, importlib.machinery.SourceFileLoader):
                found.loader = _Loader(fullname, found.loader.path, home)
            return found
        inside = [str(file.parent)] if file.name == "__init__.py" else None
        loader = _Loader(fullname, str(file), home)
        return importlib.util.spec_from_file_location(fullname, file, loader=loader, submodule_search_locations=inside)


class _Loader(importlib.machinery.SourceFileLoader):
    """Executes a plugin file, always from its source, with an ``import`` that also looks in the folder ``home``."""

    def __init__(self, name: str, path: str, home: Path) -> None:
        super().__init__(name, path)
        self.home = home

    def path_stats(self, path: Any) -> NoReturn:
        """Keep bytecode from being stored: it would hide an edit within the same second."""
        raise OSError(f"no bytecode of {path}")

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__[DIGEST] = digest_of(Path(self.path))
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _Importer(self.home)}
        super().exec_module(module)


class _Importer:
    """``__import__`` of a plugin file: what is not installed is looked for in the file's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        top, _, rest = name.partition(".")
        neighbour = None if level or _is_installed(top) else self._neighbour(top)
        if neighbour is None:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        whole = importlib.import_module(f"{neighbour}.{rest}" if rest else neighbour)
        if not fromlist:
            return sys.modules[neighbour]
        for part in fromlist:  # `from package import module`
            if part != "*" and not hasattr(whole, part) and hasattr(whole, "__path__"):
                importlib.import_module(f"{whole.__name__}.{part}")
        return whole

    def _neighbour(self, name: str) -> str | None:
        for file in (self.folder / name / "__init__.py", self.folder / f"{name}.py"):
            if file.is_file():
                return module_name(file)
        return None


def _is_installed(name: str) -> bool:
    if name in sys.modules:
        return True
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None  # a mere folder of that name has no origin


if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())  # before the path finder, which would take the modules of packages
