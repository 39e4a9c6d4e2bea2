"""Plain Gymnasium tasks, trained by the optimizers of language models: a quick test of a new policy gradient."""

from __future__ import annotations

from collections.abc import Iterable

from lmrl import CommandSpec, hookimpl
from lmrl_control.command import SPEC
from lmrl_control.train import ControlConfig, ControlResult, evaluate_control, train_control

__all__ = ["ControlConfig", "ControlResult", "evaluate_control", "lmrl_commands", "train_control"]


@hookimpl
def lmrl_commands() -> Iterable[CommandSpec]:
    """Offer `lmrl control`."""
    return [SPEC]
