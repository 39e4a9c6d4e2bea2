"""Groups of parameters that learn, as a policy and an optimizer's heads declare them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lmrl.errors import SettingsError


@dataclass(frozen=True)
class TrainedParameters:
    """Parameters that share a learning rate and its course. None stands for the run's own setting.

    ``role`` says whether they are the policy's or a value function's: a step of an optimizer's own moves the policy's
    alone. ``head`` marks new layers that start at zero; they learn at ``train.value_learning_rate``. ``starts_at`` is
    the number of the first update that moves them, and warm-up and schedule count from there: by default update 1, and
    for the policy's the first after ``train.critic_warmup_updates``. ``name`` is the group's name in metrics.

    Raises ``SettingsError`` for numbers out of range.
    """

    parameters: list[nn.Parameter]
    role: Literal["policy", "value"] = "policy"
    head: bool = False
    name: str = ""
    learning_rate: float | None = None
    schedule: Literal["constant", "linear", "cosine"] | None = None
    warmup_updates: int | None = None
    starts_at: int | None = None

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
