"""Groups of parameters that learn, as a policy and an optimizer's heads declare them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lmrl.errors import SettingsError


@dataclass(frozen=True)
class TrainedParameters:
    """Parameters that share a learning rate and its course. None stands for the run's own setting.

    Raises ``SettingsError`` for numbers out of range.
    """

    parameters: list[nn.Parameter]
    """Parameters of the group."""
    role: Literal["policy", "value"] = "policy"
    """Owner of the parameters, the policy or a value function: a step of an optimizer's own moves the policy's
    alone."""
    head: bool = False
    """True for new layers that start at zero; they learn at ``train.value_learning_rate``."""
    name: str = ""
    """Name of the group in metrics."""
    learning_rate: float | None = None
    """Learning rate of the group."""
    schedule: Literal["constant", "linear", "cosine"] | None = None
    """Course of the learning rate after the warm-up."""
    warmup_updates: int | None = None
    """Updates over which the learning rate rises."""
    starts_at: int | None = None
    """Number of the first update that moves them; warm-up and schedule count from there. By default it is 1, and for
    the policy's parameters the first after ``train.critic_warmup_updates``."""

    def __post_init__(self) -> None:
        for field, least in (("learning_rate", 0), ("warmup_updates", 0), ("starts_at", 1)):
            value = getattr(self, field)
            if value is not None and not value >= least:
                raise SettingsError(
                    f"{field} of the parameter group {self.name!r} is {value}; expected at least {least}"
                )
        if self.schedule not in (None, "constant", "linear", "cosine"):
            raise SettingsError(
                f"schedule of the parameter group {self.name!r} is {self.schedule!r}; expected constant, linear or "
                "cosine, or None for train.schedule"
            )
