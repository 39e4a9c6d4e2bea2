"""Gymnasium's ``AutoresetMode``, and a stand-in for it with Gymnasium 1.0, which has none yet."""

from __future__ import annotations

from typing import Any

from lmrl.errors import SettingsError, unknown

try:
    from gymnasium.vector import AutoresetMode
except ImportError:
    from enum import Enum

    class AutoresetMode(Enum):  # type: ignore[no-redef]
        """What happens after the end of an episode: reset with the next step, with the same one, or not at all."""

        NEXT_STEP = "NextStep"
        SAME_STEP = "SameStep"
        DISABLED = "Disabled"


__all__ = ["AutoresetMode", "autoreset_mode_of"]


def autoreset_mode_of(mode: Any) -> AutoresetMode:
    """Return the mode that a string or an ``AutoresetMode`` names, or raise ``SettingsError``."""
    for known in AutoresetMode:
        if mode in (known, known.value, known.name):
            return known
    raise SettingsError(unknown("autoreset_mode", str(mode), [known.value for known in AutoresetMode]))
