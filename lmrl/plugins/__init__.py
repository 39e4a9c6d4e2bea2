"""Plugins: found, loaded in isolation, checked, and asked by name.

``PluginManager`` is made anew for each run. ``hookimpl`` marks a plugin's hooks, whose signatures are in
``lmrl.plugins.hookspecs``. Importing this package needs neither torch nor transformers; making a manager imports the
plugins.
"""

from lmrl.plugins.api import PLUGIN_API
from lmrl.plugins.hookspecs import hookimpl
from lmrl.plugins.info import PluginInfo, PluginWarning
from lmrl.plugins.manager import PluginManager

__all__ = ["PLUGIN_API", "PluginInfo", "PluginManager", "PluginWarning", "hookimpl"]
