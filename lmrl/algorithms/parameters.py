"""Groups of parameters that learn, as a policy and an optimizer's heads declare them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lmrl.errors import PluginError, SettingsError


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
        if self.role not in ("policy", "value"):
            raise SettingsError(
                f"role of the parameter group {self.name!r} is {self.role!r}; expected 'policy' or 'value'"
            )
        if self.schedule not in (None, "constant", "linear", "cosine"):
            raise SettingsError(
                f"schedule of the parameter group {self.name!r} is {self.schedule!r}; expected constant, linear or "
                "cosine, or None for train.schedule"
            )


def require_groups_of(parameters: Iterable[nn.Parameter], groups: Sequence[TrainedParameters]) -> None:
    """Raise ``PluginError`` for an optimizer's groups of other parameters, of one twice, or with unclear names."""
    grouped = [id(parameter) for group in groups for parameter in group.parameters]
    if not set(grouped) <= {id(parameter) for parameter in parameters}:
        raise PluginError("parameter_groups returned a parameter that is not one of heads() with a gradient")
    if len(set(grouped)) < len(grouped):
        raise PluginError("parameter_groups returned a parameter twice; expected each in one group")
    names = [group.name for group in groups]
    if len({*names} - {"policy", "value", "critic"}) < len(names):
        raise PluginError(
            f"parameter_groups returned groups with the names {names}; expected names that differ, and none of policy, "
            "value and critic"
        )
