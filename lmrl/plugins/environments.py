"""Registration of the plugins' environments with Gymnasium."""

from __future__ import annotations

from typing import Any, NoReturn

from lmrl.errors import PluginError
from lmrl.plugins.specs import EnvironmentSpec


class Refused:
    """Entry point of an id that two plugins offer: making the environment raises ``PluginError`` with the message."""

    def __init__(self, message: str) -> None:
        self.message = message

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raise the error."""
        raise PluginError(self.message)


def refused_id(name: str) -> str:
    """Return why Gymnasium does not accept an environment id, or the empty string."""
    from gymnasium.envs.registration import parse_env_id

    try:
        parse_env_id(name)
    except Exception as error:
        return " ".join(str(error).split()).removesuffix(".")
    return ""


def register_environment(spec: EnvironmentSpec, refused: str = "") -> str:
    """Register an environment, and return why that is not possible, or the empty string.

    With ``refused`` the id is registered as an environment that raises this error when it is made.
    """
    import gymnasium

    known = gymnasium.registry.get(spec.name)
    if known is not None and isinstance(known.entry_point, Refused):  # by a manager with other plugins
        del gymnasium.registry[spec.name]
        known = None
    if known is not None:
        same = known.entry_point == spec.entry_point
        return "" if refused or same else f"the id is taken by {known.entry_point}"
    points: tuple[Any, Any] = (Refused(refused),) * 2 if refused else (spec.entry_point, spec.vector_entry_point)
    try:
        gymnasium.register(spec.name, entry_point=points[0], vector_entry_point=points[1])
    except Exception as error:  # an id with a version beside one without, for example
        return " ".join(str(error).split()).removesuffix(".")
    return ""
