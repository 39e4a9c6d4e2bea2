"""Records about one plugin, for people and for error messages."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lmrl import moved

Status = Literal["loaded", "disabled", "failed"]


class PluginWarning(UserWarning):
    """An observer raised, or the list of disabled plugins names one that is not installed."""


@dataclass(frozen=True)
class PluginInfo:
    """One plugin: origin, state, and contributions."""

    name: str
    """Name of the entry point, or of the file."""
    distribution: str
    """Name of the installed package; empty for a file."""
    version: str
    """Version of that package."""
    source: str
    """Entry point or file that it was loaded from."""
    status: Status
    """State of the plugin: "loaded", "disabled" or "failed"."""
    error: str = ""
    """Reason of a failure."""
    offers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names that the plugin registered, by kind ("optimizer", "reward" ...)."""
    observes: tuple[str, ...] = ()
    """Observer hooks that it implements."""
    api: int | None = None
    """Plugin API that it declares (``LMRL_PLUGIN_API``), None where it declares none."""


@dataclass
class Plugin:
    """The manager's own record of a plugin; ``specs`` maps kinds to names to the records offered."""

    name: str
    distribution: str
    version: str
    source: str
    status: Status = "loaded"
    error: str = ""
    module: Any = None
    specs: dict[str, dict[str, Any]] = field(default_factory=dict)
    observes: tuple[str, ...] = ()
    api: int | None = None

    @property
    def title(self) -> str:
        """The name with the distribution and its version, as error messages show it."""
        origin = f"{self.distribution} {self.version}".strip() or self.source
        return f"{self.name} ({origin})"

    def info(self) -> PluginInfo:
        """Return the frozen record that users see."""
        offers = {kind: tuple(specs) for kind, specs in self.specs.items() if specs}
        return PluginInfo(
            self.name,
            self.distribution,
            self.version,
            self.source,
            self.status,
            self.error,
            offers,
            self.observes,
            self.api,
        )


def last_line(error: BaseException) -> str:
    """Return the last line of the error's traceback and where it was raised, ``ImportError: no x (plugin.py:3)``."""
    line = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError) and error.filename:
        return f"{line} ({error.filename}:{error.lineno})"
    own = __file__.rpartition("info.py")[0]
    # The import system, and the parts of it that plugin files have and that explain what has moved.
    unseen = ("<frozen", f"{own}files", moved.__file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(unseen)]
    # The innermost frame is this package's own when the plugin's module could not even be found.
    if not frames or frames[-1].filename.startswith(own):
        return line
    return f"{line} ({frames[-1].filename}:{frames[-1].lineno})"
