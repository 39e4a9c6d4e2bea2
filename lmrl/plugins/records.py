"""The kinds of records that plugins offer, and the checks that each record passes before anyone can pick it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_origin

from lmrl.config.defaults import check_defaults, check_value
from lmrl.config.types import field_types
from lmrl.errors import PluginError, SettingsError
from lmrl.plugins import specs
from lmrl.plugins.environments import refused_id


@dataclass(frozen=True)
class RecordType:
    """A kind of record: the hook that yields it and its class."""

    hook: str
    record: type


KINDS: dict[str, RecordType] = {
    "optimizer": RecordType("lmrl_optimizers", specs.OptimizerSpec),
    "reward": RecordType("lmrl_rewards", specs.RewardSpec),
    "engine": RecordType("lmrl_engines", specs.EngineSpec),
    "dataset": RecordType("lmrl_datasets", specs.DatasetSpec),
    "prompt_sampler": RecordType("lmrl_prompt_samplers", specs.PromptSamplerSpec),
    "environment": RecordType("lmrl_environments", specs.EnvironmentSpec),
    "benchmark": RecordType("lmrl_benchmarks", specs.BenchmarkSpec),
    "suite_kind": RecordType("lmrl_suite_kinds", specs.SuiteKindSpec),
    "command": RecordType("lmrl_commands", specs.CommandSpec),
    "tracker": RecordType("lmrl_trackers", specs.TrackerSpec),
}
OBSERVERS = ("lmrl_run_start", "lmrl_rollout", "lmrl_step_end", "lmrl_checkpoint_saved", "lmrl_run_end")

# A dot would split a configuration's path, and [optimizer] name = ... is how one is picked.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_/-]*")
_RESERVED = "name"
SETTINGS = "settings"
"""Field of a record that holds its settings' dataclass."""


def checked(kind: str, offered: Any) -> dict[str, Any]:
    """Return one hook's records by name; raises ``PluginError`` for anything that is no record of the kind."""
    hook, record_type = KINDS[kind].hook, KINDS[kind].record
    expected = f"expected an iterable of lmrl.plugins.specs.{record_type.__name__}"
    if isinstance(offered, str | bytes) or not isinstance(offered, Iterable):
        raise PluginError(f"{hook} returned {_article(offered)}; {expected} (yield each record)")
    found: dict[str, Any] = {}
    for record in offered:
        if not isinstance(record, record_type):
            raise PluginError(f"{hook} yielded {_article(record)}; {expected}")
        name: Any = getattr(record, "name", None)
        _check_name(hook, kind, name)
        if name in found:
            raise PluginError(f"{hook} yielded two records with the name {name!r}; expected each name once")
        _check_fields(hook, record)
        found[name] = record
    return found


def _check_name(hook: str, kind: str, name: Any) -> None:
    if kind == "environment" and isinstance(name, str):
        refused = refused_id(name)
        if refused:
            raise PluginError(f"{hook} yielded the environment id {name!r}, which Gymnasium refuses: {refused}")
    elif not isinstance(name, str) or not _NAME.fullmatch(name) or name == _RESERVED:
        raise PluginError(
            f"{hook} yielded a record with the name {name!r}; expected letters, digits, _, - or /, and not "
            f"{_RESERVED!r}, because names stand in configurations"
        )


def _check_fields(hook: str, record: Any) -> None:
    kinds = field_types(type(record))
    for field in dataclasses.fields(record):
        value, kind = getattr(record, field.name), kinds[field.name]
        if field.name == SETTINGS:
            _check_settings(hook, record.name, value, optional=kind is not type)
        elif get_origin(kind) is Callable:
            if not callable(value):
                raise PluginError(f"{hook}: {field.name} of {record.name!r} is {_article(value)}, not callable")
        else:
            try:
                check_value(kind, value, field.name)
            except SettingsError as error:
                raise PluginError(f"{hook}: of {record.name!r}, {error}") from error


def _check_settings(hook: str, name: str, settings: Any, optional: bool) -> None:
    if settings is None and optional:
        return
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        raise PluginError(
            f"{hook}: settings of {name!r} is {settings!r}; expected a dataclass type, whose fields are the "
            "settings of its configuration section"
        )
    try:
        check_defaults(settings)
    except SettingsError as error:
        raise PluginError(
            f"{hook}: in the settings of {name!r}, {error}. Version 0.1 did not check defaults; docs/migration.md "
            "lists what changed"
        ) from error


def _article(value: Any) -> str:
    return "None" if value is None else f"{value!r} of type {type(value).__name__}"
