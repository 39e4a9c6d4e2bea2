"""Plugins: found, loaded in isolation, checked, and asked by name.

``PluginManager`` is made anew for each run; ``hookimpl`` marks a plugin's hooks, whose signatures are in
``lmrl.hookspecs``. Importing this package needs neither torch nor transformers; making a manager imports the plugins.
"""

import pluggy

from lmrl.hookspecs import PROJECT

hookimpl = pluggy.HookimplMarker(PROJECT)

# Below the marker: the core's own registrations, which the manager imports, use it.
from lmrl.plugins.info import PluginInfo, PluginWarning  # noqa: E402
from lmrl.plugins.manager import PluginManager  # noqa: E402

__all__ = ["PluginInfo", "PluginManager", "PluginWarning", "hookimpl"]
