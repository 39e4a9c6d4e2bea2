"""The plugin manager: one per run, so that no state outlives it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from lmrl.errors import PluginError, SettingsError, nearest, unknown
from lmrl.moved import moved_hint
from lmrl.plugins.api import DECLARATION, checked_api, declared_in_file, file_of_entry_point
from lmrl.plugins.checks import check_plugin, new_pluggy_manager
from lmrl.plugins.environments import register_environment
from lmrl.plugins.info import Plugin, PluginInfo, PluginWarning, last_line
from lmrl.plugins.records import KINDS, OBSERVERS, checked
from lmrl.plugins.sources import (
    DISABLE_VARIABLE,
    EntryPointLike,
    disabled_names,
    installed_entry_points,
    load_file,
    ordered,
    origin,
    strict_from_environment,
)
from lmrl.plugins.specs import (
    BenchmarkSpec,
    CommandSpec,
    DatasetSpec,
    EngineSpec,
    EnvironmentSpec,
    OptimizerSpec,
    RewardSpec,
    TrackerSpec,
)
from lmrl.plugins.untouched import first_change, versions

CORE = "lmrl"

PROGRAM = "this program"


class PluginManager:
    """Everything that the core, installed plugins and plugin files offer.

    ``files`` are one-off plugins; ``disabled`` names entry points to leave out (default: ``LMRL_DISABLE_PLUGINS``, a
    comma-separated list). A plugin that cannot be loaded is kept as failed: ``listing()`` shows it, and so does the
    error when a name cannot be found. With ``strict`` (default: ``LMRL_STRICT_PLUGINS=1``) it is a ``PluginError`` at
    once, as it always is for a file, which was asked for by name; ``strict=False`` raises for neither.
    ``entry_points`` replaces those of the installed distributions.
    """

    def __init__(
        self,
        files: Iterable[str | Path] = (),
        disabled: Iterable[str] | None = None,
        strict: bool | None = None,
        entry_points: Iterable[EntryPointLike] | None = None,
    ) -> None:
        self._pluggy = new_pluggy_manager()
        self._plugins: list[Plugin] = []
        self._warned: set[tuple[str, str]] = set()
        self._unregistered: dict[str, str] = {}
        raise_failures = strict_from_environment() if strict is None else strict
        self._add_core()
        points = ordered(installed_entry_points() if entry_points is None else entry_points)
        names = disabled_names(disabled)
        self._check_disabled(names, [point.name for point in points], raise_failures)
        for point in points:
            self._add_entry_point(point, point.name in names, raise_failures)
        by_path = {Path(file).expanduser().resolve(): Path(file).expanduser() for file in reversed(list(files))}
        given = list(reversed(by_path.values()))
        self.files = tuple(file.absolute() for file in given)
        """The absolute paths of the one-off plugins, for another process that needs the same ones."""
        for file in given:
            self._add_file(file, strict is not False)
        if raise_failures and self.conflicts():
            raise PluginError(self.conflicts()[0])

    # What is offered.

    def optimizers(self) -> dict[str, OptimizerSpec]:
        """Return the policy optimizers by name."""
        return self.records("optimizer")

    def rewards(self) -> dict[str, RewardSpec]:
        """Return the rewards by name."""
        return self.records("reward")

    def engines(self) -> dict[str, EngineSpec]:
        """Return the decode engines by name."""
        return self.records("engine")

    def datasets(self) -> dict[str, DatasetSpec]:
        """Return the data sets by name."""
        return self.records("dataset")

    def environments(self) -> dict[str, EnvironmentSpec]:
        """Return the Gymnasium environments by id."""
        return self.records("environment")

    def benchmarks(self) -> dict[str, BenchmarkSpec]:
        """Return the benchmark suites by name."""
        return self.records("benchmark")

    def commands(self) -> dict[str, CommandSpec]:
        """Return the subcommands of `lmrl` by name."""
        return self.records("command")

    def trackers(self) -> dict[str, TrackerSpec]:
        """Return the experiment trackers by name."""
        return self.records("tracker")

    def records(self, kind: str) -> dict[str, Any]:
        """Return the records of a kind by name. A name that two plugins offer is not among them: see ``get``."""
        offered = self._offered(kind)
        return {name: plugins[0].specs[kind][name] for name, plugins in offered.items() if len(plugins) == 1}

    def names(self, kind: str) -> list[str]:
        """Return every name of a kind that is taken, including those that two plugins offer."""
        return list(self._offered(kind))

    def core_commands(self) -> dict[str, CommandSpec]:
        """Return the core's own subcommands, which no conflict can take away."""
        return dict(self._plugins[0].specs["command"])

    def get(self, kind: str, name: str, where: str = "") -> Any:
        """Return one record; ``where`` begins the message of a name that is unknown.

        Raises ``PluginError``, which names both sources, if two plugins offer the name, and ``SettingsError`` with the
        nearest name and the plugins that failed to load if nobody offers it.
        """
        offered = self._offered(kind)
        if name not in offered:
            raise SettingsError(where + unknown(kind, name, offered, self.absences()))
        if len(offered[name]) > 1:
            raise PluginError(_conflict(kind, name, offered[name]))
        return offered[name][0].specs[kind][name]

    def absences(self) -> str:
        """Return a sentence on each plugin that failed or is disabled: what a missing name may be due to."""
        failed = [f"{plugin.title}: {plugin.error}" for plugin in self._plugins if plugin.status == "failed"]
        disabled = [plugin.title for plugin in self._plugins if plugin.status == "disabled"]
        sentences = ["Plugins that failed to load: " + "; ".join(failed) + "."] if failed else []
        sentences += ["Disabled plugins: " + ", ".join(disabled) + "."] if disabled else []
        return " ".join(sentences)

    def listing(self) -> list[PluginInfo]:
        """Return all plugins, the core first, with those that failed or are disabled."""
        return [plugin.info() for plugin in self._plugins]

    def conflicts(self) -> list[str]:
        """Return a sentence for each name that two plugins offer, and for each environment that is not registered."""
        found = [
            _conflict(kind, name, plugins)
            for kind in KINDS
            for name, plugins in self._offered(kind).items()
            if len(plugins) > 1
        ]
        return found + list(self._unregistered.values())

    def register_environments(self) -> None:
        """Register the plugins' environments with Gymnasium; ids that are registered already stay.

        An id that two plugins offer raises an error when it is made. An id that Gymnasium refuses is skipped and listed
        in ``conflicts``.
        """
        for name, plugins in self._offered("environment").items():
            spec = plugins[0].specs["environment"][name]
            refused = _conflict("environment", name, plugins) if len(plugins) > 1 else ""
            problem = register_environment(spec, refused)
            if problem:
                self._unregistered[name] = (
                    f"the environment {name!r} of {plugins[0].title} is not registered: {problem}. To leave it out: "
                    f"{_cure(plugins[0])}."
                )

    def offer_optimizer(self, spec: OptimizerSpec) -> None:
        """Add an optimizer of the program itself, in the place of one that it offered before under this name.

        Raises ``PluginError`` for a record that is none.
        """
        plugin = next((plugin for plugin in self._plugins if plugin.source == PROGRAM), None)
        if plugin is None:
            plugin = Plugin(PROGRAM, "", "", PROGRAM, specs={"optimizer": {}})
            self._plugins.append(plugin)
        plugin.specs["optimizer"] |= checked("optimizer", [spec])

    # What is observed.

    def observe(self, hook: str, **arguments: Any) -> None:
        """Call a hook of every observer in turn; an exception is shown as one warning, and the other observers are
        called.

        An observer that changes a tensor in place which it was given is named in a warning too.
        ``KeyboardInterrupt`` and ``SystemExit`` pass.
        """
        if hook not in OBSERVERS:
            raise ValueError(unknown("observer hook", hook, OBSERVERS))
        for plugin in self._plugins:
            if hook not in plugin.observes:
                continue
            before = versions(arguments)
            try:
                # Each observer gets its own copy of the metrics, so that none can take them away from another.
                given = {name: dict(value) if isinstance(value, dict) else value for name, value in arguments.items()}
                self._call(plugin, hook, given)
            except Exception as error:
                self._warn_once(plugin, hook, f"raised in {hook}", error, "The run goes on")
            if changed := first_change(before, versions(arguments)):
                advice = PluginError("expected it untouched, because the run learns from it; work on a clone()")
                what = f"changed {changed} in {hook}"
                self._warn_once(plugin, what, what, advice, "The run goes on with the changed numbers")

    def observed(self, hook: str) -> bool:
        """Return whether a plugin implements an observer's hook."""
        return any(hook in plugin.observes for plugin in self._plugins)

    def warn(self, kind: str, name: str, error: Exception, doing: str, consequence: str) -> None:
        """Warn that what a plugin offers raised an error: once for each record and activity."""
        [plugin, *_] = self._offered(kind)[name]
        self._warn_once(
            plugin, f"{kind} {name} {doing}", f"raised in {doing} of the {kind} {name!r}", error, consequence
        )

    def _warn_once(self, plugin: Plugin, what: str, happened: str, error: Exception, consequence: str) -> None:
        if (plugin.title, what) not in self._warned:
            self._warned.add((plugin.title, what))
            message = (
                f"the plugin {plugin.title} {happened}: {last_line(error)}. {consequence}, and this warning is not "
                f"repeated; {_cure(plugin)}."
            )
            warnings.warn(message, PluginWarning, stacklevel=3)

    # How plugins are added.

    def _add_core(self) -> None:
        from lmrl import __version__

        # By name, as an entry point is loaded: this package knows nothing of what the core offers.
        core = Plugin(CORE, CORE, __version__, "core")
        self._add(core, lambda: import_module("lmrl.builtin"), lambda: None, raise_failures=True)

    def _add_entry_point(self, point: EntryPointLike, disabled: bool, raise_failures: bool) -> None:
        distribution, version = origin(point)
        plugin = Plugin(point.name, distribution, version, f"entry point {point.name} = {point.value}")
        if disabled:
            plugin.status = "disabled"
            self._plugins.append(plugin)
            return
        self._add(plugin, point.load, lambda: file_of_entry_point(point.value), raise_failures)

    def _add_file(self, file: Path, raise_failures: bool) -> None:
        self._add(Plugin(file.stem, "", "", f"file {file}"), lambda: load_file(file), lambda: file, raise_failures)

    def _add(
        self, plugin: Plugin, load: Callable[[], Any], source: Callable[[], Path | None], raise_failures: bool
    ) -> None:
        """Load a plugin and take in what it offers: all of it, or nothing when any part of it is broken.

        ``source`` returns its file, which is read first: a plugin for another plugin API is not executed.
        """
        self._plugins.append(plugin)
        try:
            checked_api(declared_in_file(source()))
            plugin.module = load()
            plugin.api = checked_api(getattr(plugin.module, DECLARATION, None))
            hooks = check_plugin(plugin.module)
            self._pluggy.register(plugin.module, name=f"{len(self._plugins)}")
            specs = {kind: self._collect(plugin, kind) for kind in KINDS if KINDS[kind].hook in hooks}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin that exits while it is imported must not end the program
            plugin.status = "failed"
            plugin.error = str(error) if isinstance(error, PluginError) else last_line(error)
            hint = moved_hint(error)
            if hint:
                plugin.error += f". {hint}"
            if plugin.module is not None and self._pluggy.is_registered(plugin.module):
                self._pluggy.unregister(plugin.module)
            if raise_failures:
                message = plugin.error.removesuffix(".")
                raise PluginError(
                    f"the plugin {plugin.title} cannot be loaded: {message}. What to do: {_cure(plugin)}."
                ) from error
            return
        plugin.specs = specs
        plugin.observes = tuple(hook for hook in hooks if hook in OBSERVERS)

    def _collect(self, plugin: Plugin, kind: str) -> dict[str, Any]:
        hook = KINDS[kind].hook
        results = self._call(plugin, hook, {})
        # pluggy leaves out None, which is what a hook returns when its author forgot to yield.
        return checked(kind, results[0] if results else None)

    def _call(self, plugin: Plugin, hook: str, arguments: dict[str, Any]) -> list[Any]:
        """Call one plugin's implementation of a hook."""
        others = [other for other in self._pluggy.get_plugins() if other is not plugin.module]
        return cast("list[Any]", self._pluggy.subset_hook_caller(hook, others)(**arguments))

    def _check_disabled(self, names: frozenset[str], installed: list[str], raise_failures: bool) -> None:
        for name in sorted(names - set(installed)):
            guess = nearest(name, installed)
            message = (
                f"no installed plugin is called {name!r}, so it cannot be disabled"
                + (f"; did you mean {guess!r}?" if guess else ".")
                + f" Installed: {', '.join(sorted(set(installed))) or 'none'}."
            )
            if raise_failures:
                raise PluginError(message)
            warnings.warn(message, PluginWarning, stacklevel=3)

    def _offered(self, kind: str) -> dict[str, list[Plugin]]:
        """Return the plugins that offer each name of a kind."""
        if kind not in KINDS:
            raise SettingsError(unknown("kind of plugin", kind, KINDS))
        offered: dict[str, list[Plugin]] = {}
        for plugin in self._plugins:
            for name in plugin.specs.get(kind, {}):
                offered.setdefault(name, []).append(plugin)
        return offered


def _conflict(kind: str, name: str, plugins: list[Plugin]) -> str:
    return (
        f"{len(plugins)} plugins offer the {kind} {name!r}: {' and '.join(plugin.title for plugin in plugins)}. "
        f"To keep one of them: {_cure(plugins[-1])}."
    )


def _cure(plugin: Plugin) -> str:
    if plugin.source.startswith("entry point"):
        return f"repair or uninstall it, or leave it out with {DISABLE_VARIABLE}={plugin.name}"
    if plugin.source.startswith("file"):
        return f"repair {plugin.source.removeprefix('file ')}, or leave it out"
    return "this is an error of lmrl itself, or of its installation"
