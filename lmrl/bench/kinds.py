"""Kinds of suites, by name: plugins offer them with the hook ``lmrl_suite_kinds``."""

from __future__ import annotations

from lmrl.bench.suite_kind import SuiteKind
from lmrl.errors import SettingsError, unknown
from lmrl.plugins import PluginManager

GROUP = "group"
"""A suite that only names others; it has no runs of its own."""


def kind_named(name: str, plugins: PluginManager) -> SuiteKind:
    """Return a kind of suite; raises ``SettingsError`` for an unknown one, with the nearest name."""
    names = plugins.names("suite_kind")
    if name not in names:
        raise SettingsError(unknown("kind of suite", name, [*names, GROUP], plugins.absences()))
    kind = plugins.get("suite_kind", name).build()
    if not isinstance(kind, SuiteKind):
        raise SettingsError(f"the kind of suite {name!r} builds {kind!r}; expected a lmrl.bench.suite_kind.SuiteKind")
    return kind
