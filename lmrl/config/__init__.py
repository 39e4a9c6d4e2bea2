"""Configuration: stdlib dataclasses, TOML files and dotted overrides; a plugin's section is its own dataclass."""

from lmrl.config.choices import PluginChoice, choice, resolved
from lmrl.config.files import apply_overrides, read_toml
from lmrl.config.help import FieldHelp, describe
from lmrl.config.values import build
from lmrl.config.writing import to_toml

__all__ = [
    "FieldHelp",
    "PluginChoice",
    "apply_overrides",
    "build",
    "choice",
    "describe",
    "read_toml",
    "resolved",
    "to_toml",
]
