"""Options that hold several names or numbers."""

from __future__ import annotations


def names(text: str) -> list[str]:
    """Return names with commas between.

    >>> names("ppo, rloo,")
    ['ppo', 'rloo']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(option: str, text: str) -> list[float]:
    """Return numbers with commas between; raises ``SettingsError``, which names the option, for anything else."""
    from lmrl.errors import SettingsError

    try:
        return [float(part) for part in names(text)]
    except ValueError as error:
        raise SettingsError(f"{option} is {text!r}; expected numbers with commas between, such as 0.1,1") from error
