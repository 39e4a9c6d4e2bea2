"""Fake distributions: entry points that load modules made from source text, without pip."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

HEADER = """
from dataclasses import dataclass
from lmrl import hookimpl
from lmrl.plugins.specs import *

@dataclass
class Settings:
    size: int = 1
"""
NUMBERS = count()


@dataclass(frozen=True)
class FakeDistribution:
    name: str
    version: str


@dataclass(frozen=True)
class FakeEntryPoint:
    """What the manager reads of importlib.metadata.EntryPoint."""

    name: str
    source: str
    dist: Any
    value: str = "fake_module"
    loads: list[str] = field(default_factory=list)

    def load(self) -> Any:
        self.loads.append(self.name)
        module = types.ModuleType(f"fake_plugin_{next(NUMBERS)}")
        sys.modules[module.__name__] = module  # dataclasses look their module up
        exec(compile(HEADER + self.source, f"{self.name}.py", "exec"), module.__dict__)
        return module


def fake(name: str, source: str, distribution: str | None = None, version: str = "1.0") -> FakeEntryPoint:
    """Return an entry point of a distribution called fake-<name>, unless another is given."""
    return FakeEntryPoint(name, source, FakeDistribution(distribution or f"fake-{name}", version))


def reward(name: str) -> str:
    """Return the source of a plugin that offers one reward."""
    return f"""
@hookimpl
def lmrl_rewards():
    yield RewardSpec({name!r}, lambda settings: len, Settings, summary="a reward")
"""


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LMRL_DISABLE_PLUGINS", "LMRL_STRICT_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_fake():
    return fake


@pytest.fixture
def reward_source():
    return reward
