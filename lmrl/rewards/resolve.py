"""From what a user names to a ``RewardFunction``.

A registered name, ``module:function``, the path of a reward model, a callable, or several of these with weights.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lmrl.errors import SettingsError, nearest, unknown
from lmrl.plugins.specs import Concurrency, RewardSpec
from lmrl.rewards.binding import bind
from lmrl.rewards.function import Member, RewardFunction
from lmrl.rewards.learned import Learned, LearnedSettings, is_path
from lmrl.rewards.live import live_kind, live_reward
from lmrl.rewards.signatures import signature_of

if TYPE_CHECKING:
    from lmrl.plugins import PluginManager

Reward = str | Mapping[str, float] | Callable[..., Any] | RewardSpec
"""Values that a user may give where a reward is wanted."""


def resolve(
    reward: Reward, settings: Mapping[str, Any] | None = None, plugins: PluginManager | None = None
) -> RewardFunction:
    """Return the reward that ``reward`` stands for.

    ``reward`` is a registered name ("happy_end"), ``"module:function"``, the folder or hub id of a reward model
    ("runs/reward-1"), a callable, a ``RewardSpec``, a live classifier, pipeline or reward model, or a mapping of such
    names to weights. ``settings`` is the reward's
    settings table; of several rewards, a table per name. A function named by ``module:function`` gets its settings as
    keyword arguments, a class is built from them; a path takes those of the reward ``learned``.

    Raises ``SettingsError`` for a name, a weight or a setting that is wrong, ``ModelError`` for a path without a reward
    model.
    """
    table = dict(settings or {})
    if isinstance(reward, RewardFunction):
        if table:
            raise SettingsError(f"{reward!r} is already built; it takes no settings, but {sorted(table)} was given")
        return reward
    if isinstance(reward, Mapping):
        return _weighted(reward, table, plugins)
    return RewardFunction([_member(reward, table, plugins)], single=True)


def _weighted(weights: Mapping[str, float], tables: dict[str, Any], plugins: PluginManager | None) -> RewardFunction:
    if not weights:
        raise SettingsError("the table of reward weights is empty; expected at least one name = weight")
    if plugins is None and any(":" not in str(name) and not is_path(str(name)) for name in {*weights, *tables}):
        plugins = _new_manager()
    for name in tables:  # a recipe may keep the settings of rewards that it does not use; a misspelt name is an error
        if name not in weights and ":" not in str(name) and not is_path(str(name)):
            _registered(str(name), plugins)
    members = []
    for name, weight in weights.items():
        if not isinstance(name, str):
            raise SettingsError(
                f"a weighted reward is named by {name!r} ({type(name).__name__}); expected a registered name or "
                "'module:function'"
            )
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise SettingsError(f"the weight of reward {name!r} is {weight!r}; expected a finite number")
        table = tables.get(name, {})
        if not isinstance(table, Mapping):
            raise SettingsError(f"the settings of reward {name!r} are {table!r}; expected a table of settings")
        member = _member(name, dict(table), plugins)
        members.append(dataclasses.replace(member, weight=float(weight)))
    return RewardFunction(members, single=False)


def _member(reward: Any, table: dict[str, Any], plugins: PluginManager | None) -> Member:
    if isinstance(reward, str):
        if _names_model(reward, plugins):
            # Kept under its path, which is what a description must hold to be resolved again.
            name, target, table_of = reward, _learned_spec(), {"path": reward, **table}
        else:
            target = _imported(reward) if ":" in reward else _registered(reward, plugins)
            name, table_of = reward, table
        return _built(name, target, table_of, settings=table)
    if live_kind(reward):
        name = type(reward[0] if isinstance(reward, tuple) else reward).__name__
        function = live_reward(reward, table)
        bind(name, function)
        return Member(name, function)
    if isinstance(reward, RewardSpec):
        return _built(reward.name, reward, table, settings=table)
    return _built(getattr(reward, "__qualname__", type(reward).__name__), reward, table, settings=None)


def _built(name: str, target: Any, table: dict[str, Any], settings: dict[str, Any] | None) -> Member:
    function = _callable(name, _made(name, target, table))
    # A function whose settings are bound is a partial, which does not have its attributes.
    said: Any = getattr(function, "concurrency", getattr(target, "concurrency", "none"))
    if said not in get_args(Concurrency):
        raise SettingsError(
            f"reward {name!r} says concurrency = {said!r}; expected one of {', '.join(get_args(Concurrency))}"
        )
    return Member(name, function, settings=settings, concurrency=said)


def _made(name: str, target: Any, table: dict[str, Any]) -> Any:
    """Build what has settings of its own: specs and classes from their table, functions with keywords bound."""
    where = f"reward.{name}"
    if isinstance(target, RewardSpec):
        return target.build(_settings(target.settings, table, where))
    if isinstance(target, type):
        if dataclasses.is_dataclass(target):
            return _settings(target, table, where)
        _check_keywords(name, target, table)
        try:
            return target(**table)
        except TypeError as error:
            raise SettingsError(f"{where}: {target.__qualname__} cannot be built from {table}: {error}") from error
    if table:
        _check_keywords(name, target, table)
        return functools.partial(target, **table)
    return target


def _settings(cls: type, table: Mapping[str, Any], where: str) -> Any:
    from lmrl.config import build

    return build(cls, table, where)


def _check_keywords(name: str, target: Any, table: Mapping[str, Any]) -> None:
    if isinstance(target, type):
        signature = signature_of(target)
        parameters = [] if signature is None else list(signature.parameters.values())
        takes_all = signature is None or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
        known = [parameter.name for parameter in parameters]
    elif callable(target):
        binding = bind(name, target)
        takes_all = binding.passes_rest
        known = [parameter for parameter, source in binding.keywords.items() if source == parameter]
    else:
        return
    if takes_all:
        return
    for setting in table:
        if setting not in known:
            raise SettingsError(unknown(f"setting of reward {name!r}:", setting, known))


def _callable(name: str, function: Any) -> Callable[..., Any]:
    if not callable(function):
        raise SettingsError(
            f"reward {name!r} is {function!r} ({type(function).__name__}), which cannot be called; expected "
            "(prompts, responses, **columns) -> scores"
        )
    bind(name, function)
    checked: Callable[..., Any] = function
    return checked


def _names_model(name: str, plugins: PluginManager | None) -> bool:
    """Say whether a string is the path of a reward model; a folder that is called like a registered reward is not."""
    if not is_path(name):
        return False
    if name.startswith((".", "~")) or "/" in name or "\\" in name:
        return ":" not in name or Path(name).expanduser().is_dir()
    try:
        _registered(name, plugins)
    except SettingsError:
        return True
    return False


def _learned_spec() -> RewardSpec:
    # The record itself, not its name: finding a name loads all plugins.
    return RewardSpec("learned", Learned, LearnedSettings)


def _registered(name: str, plugins: PluginManager | None) -> Any:
    return (_new_manager() if plugins is None else plugins).get("reward", name)


def _new_manager() -> PluginManager:
    from lmrl.plugins import PluginManager

    return PluginManager()


def _imported(name: str) -> Any:
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise SettingsError(f"reward {name!r} is incomplete; expected 'module:function', 'my_rewards:brevity' say")
    found: Any = _module(name, module_name)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            options = (
                [option for option in vars(found) if not option.startswith("_")] if hasattr(found, "__dict__") else []
            )
            guess = nearest(attribute, options)
            raise SettingsError(
                f"reward {name!r}: {module_name} has no {path!r}"
                + (
                    f"; did you mean '{module_name}:{guess}'?"
                    if guess
                    else f". It defines {', '.join(options) or 'nothing'}."
                )
            )
        found = getattr(found, attribute)
    return found


def _module(name: str, module_name: str) -> Any:
    # A script has its own folder on the path, but an installed command does not have the folder it is called from.
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()  # the module may have been written a moment ago, in a notebook say
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise SettingsError(f"reward {name!r}: importing {module_name} failed: {error}") from error
        guess = nearest(module_name, [module.name for module in pkgutil.iter_modules()])
        raise SettingsError(
            f"reward {name!r}: there is no module {error.name!r}"
            + (f"; did you mean '{guess}'?" if guess else ". It must be importable: installed, or in this folder.")
        ) from error
    except Exception as error:
        raise SettingsError(
            f"reward {name!r}: importing {module_name} failed with {type(error).__name__}: {error}"
        ) from error
