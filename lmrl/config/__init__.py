"""Configuration: stdlib dataclasses, TOML files and dotted overrides; a plugin's section is its own dataclass."""

from lmrl.config.choices import PluginChoice, choice, resolved, select_by_path
from lmrl.config.files import apply_overrides, override_names, read_toml
from lmrl.config.help import FieldHelp, describe
from lmrl.config.unread import all_but, only_if, refuse_unread, unread, unread_note
from lmrl.config.values import build
from lmrl.config.writing import to_toml

__all__ = [
    "FieldHelp",
    "PluginChoice",
    "all_but",
    "apply_overrides",
    "build",
    "choice",
    "describe",
    "only_if",
    "override_names",
    "read_toml",
    "refuse_unread",
    "resolved",
    "select_by_path",
    "to_toml",
    "unread",
    "unread_note",
]
