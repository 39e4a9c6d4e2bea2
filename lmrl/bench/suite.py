"""A benchmark suite as its TOML file says it: tasks, models, optimizers, seeds, coefficients and an equal budget.

What tasks and settings mean is the kind's business (``lmrl.bench.kinds``); what stands here holds for every kind.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmrl.config import apply_overrides, build, read_toml
from lmrl.errors import SettingsError, unknown

if TYPE_CHECKING:
    from lmrl.plugins import PluginManager

SMOKE = "smoke"
"""The table of a suite file that holds its toy sizes."""


@dataclass(frozen=True)
class Budget:
    """Budget of every optimizer, the same for all."""

    unit: Literal["updates", "tokens", "epochs"] = "updates"
    """updates: rollout batches, or batches of data; tokens: sampled tokens, each answer counted at its full length, so
    that an optimizer whose answers are short is given no more updates; epochs: passes over the data."""
    amount: int = 100
    """Number of these units."""

    def __post_init__(self) -> None:
        if self.amount < 1:
            raise SettingsError(f"budget.amount is {self.amount}; expected a number of at least 1")

    def __str__(self) -> str:
        return f"{self.amount:,} {self.unit if self.amount > 1 else self.unit[:-1]}"


@dataclass(frozen=True)
class Recipe:
    """Settings of one row of the tables besides its optimizer's defaults, with the reason."""

    of: str = ""
    """The optimizer, for one that runs a second time under the recipe's name; empty is the one of that name."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """Settings of the optimizer itself; "beta" and "1/beta" stand for the run's coefficient."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the kind, such as train.learning_rate, for this optimizer alone."""
    why: str = ""
    """Why it does not run with what all others have: for who reads the suite."""


@dataclass(frozen=True)
class Measure:
    """The figure that aggregates and comparisons are made of, and its scale."""

    name: str = ""
    """A metric of the kind; empty is the kind's own."""
    margin: float = 0.05
    """Differences of scores up to this one count as none when two results are compared."""

    def __post_init__(self) -> None:
        if not self.margin > 0:
            raise SettingsError(f"measure.margin is {self.margin}; expected a number above 0")


@dataclass(frozen=True)
class Suite:
    """Everything that a suite file can say."""

    name: str
    """Name in its results; letters, digits, - and _."""
    kind: str = "rl"
    """Kind that runs it: see `lmrl.bench.suite_kind`."""
    measure: Measure = field(default_factory=Measure)
    optimizers: list[str] = field(default_factory=list)
    """Names; empty runs all that are installed and that the kind can run."""
    seeds: int = 5
    """Seeds 0 to this number minus one; each is all that is random in a run."""
    betas: list[float] = field(default_factory=lambda: [0.05])
    """Coefficients of the KL to the reference: the frontier has a point for each."""
    budget: Budget = field(default_factory=Budget)
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the kind that all tasks share."""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: what is learned."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: small models that are pretrained when the suite first needs them."""
    recipes: dict[str, Recipe] = field(default_factory=dict)
    """By optimizer: what it is given besides; or, with ``of``, a further row of the tables."""
    only: list[str] = field(default_factory=list)
    """Names of the tasks to run; empty runs all of them."""
    smoke: dict[str, Any] = field(default_factory=dict)
    """Changes of --smoke, written like the file itself."""
    members: list[str] = field(default_factory=list)
    """Of the kind group: the suites that are run one after the other at their smoke sizes."""

    def __post_init__(self) -> None:
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise SettingsError(f"name is {self.name!r}; expected letters, digits, - and _")
        if self.seeds < 1:
            raise SettingsError(f"seeds is {self.seeds}; expected a number of at least 1")
        if not self.betas or any(not 0 <= beta < math.inf for beta in self.betas):
            raise SettingsError(f"betas is {self.betas}; expected one finite number or more, none below 0")
        if len(set(self.betas)) < len(self.betas):
            raise SettingsError(f"betas is {self.betas}; expected each number once")
        for name, recipe in self.recipes.items():
            if recipe.of and self.base_of(recipe.of) != recipe.of:
                raise SettingsError(
                    f"recipes.{name}.of is {recipe.of!r}, a recipe itself; expected {self.base_of(recipe.of)!r}"
                )

    def base_of(self, name: str) -> str:
        """Return the optimizer that a row of the tables is of."""
        recipe = self.recipes.get(name)
        return recipe.of if recipe and recipe.of else name

    def recipe_of(self, name: str) -> Recipe:
        """Return what a row is given: a further row of an optimizer has the optimizer's own recipe beneath its own."""
        mine = self.recipes.get(name, Recipe())
        base = self.recipes.get(mine.of)
        if base is None:
            return mine
        settings = merged(base.settings, mine.settings)
        return replace(mine, optimizer=merged(base.optimizer, mine.optimizer), settings=settings)


def load_suite(
    name: str,
    plugins: PluginManager,
    *,
    smoke: bool = False,
    overrides: Iterable[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> Suite:
    """Return a suite by its name or the path of its file.

    ``smoke`` applies the file's own table of that name, then come ``changes`` (whole fields, from options), then dotted
    ``overrides``. Raises ``SettingsError`` for an unknown suite (with the nearest name), a missing file, or a key that
    no suite has.
    """
    path = suite_path(name, plugins)
    mapping = read_toml(path)
    try:
        toy = merged(mapping, mapping.get(SMOKE, {}))
        build(Suite, toy)  # so that a wrong key in it is found before it is needed
        if smoke:
            mapping = toy
        mapping = apply_overrides(merged(mapping, changes or {}), overrides)
        suite = build(Suite, mapping)
        for name in suite.only:
            if name not in suite.tasks:
                raise SettingsError(unknown("task", name, suite.tasks))
        if suite.only:
            suite = replace(suite, tasks={name: suite.tasks[name] for name in suite.only}, only=[])
        if not suite.tasks and not suite.members:
            raise SettingsError("the suite has no tasks; expected at least one table [tasks.NAME]")
    except SettingsError as error:
        raise SettingsError(f"the suite {path.name}: {error}") from error
    return suite


def suite_path(name: str, plugins: PluginManager) -> Path:
    """Return the file of a suite that is named or is a path itself."""
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    names = plugins.names("benchmark")
    if name not in names:
        raise SettingsError(unknown("suite", name, names, plugins.absences()) + " The path of a file ends in .toml.")
    return Path(plugins.get("benchmark", name).path)


def merged(base: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """Return tables put over one another, later ones on top; lists and numbers are replaced.

    >>> merged({"train": {"updates": 1, "rate": 2}}, {"train": {"updates": 3}})
    {'train': {'updates': 3, 'rate': 2}}
    """
    result: dict[str, Any] = copy.deepcopy(dict(base))
    for other in others:
        for key, value in other.items():
            if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
                result[key] = merged(result[key], value)
            else:
                result[key] = copy.deepcopy(value)
    return result
