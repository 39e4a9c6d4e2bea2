"""AdamW (Loshchilov and Hutter 2019) for every stage: only matrices decay; fused where the device allows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from lmrl.algorithms.parameters import TrainedParameters
from lmrl.errors import ResumeError
from lmrl.training.update_settings import TrainSettings


class AdamWSettings(Protocol):
    """Settings that AdamW reads; those of the supervised stages and of the policy update have them."""

    weight_decay: float
    adam_beta1: float
    adam_beta2: float


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one peak learning rate; ``role`` says whether they are the policy's or the value function's.

    ``course`` holds further keys of torch's group: its name, and how the rate changes (``schedule.GroupRates``).
    """

    parameters: list[nn.Parameter]
    learning_rate: float
    role: str = "policy"
    course: Mapping[str, object] = field(default_factory=dict)


def policy_adamw(trained: Sequence[TrainedParameters], settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW over what a policy declares as trainable: at a group's own rate, heads else at that of values."""
    groups = []
    for one in trained:
        usual = settings.value_learning_rate if one.head else settings.learning_rate
        rate = usual if one.learning_rate is None else one.learning_rate
        declared = {name: getattr(one, name) for name in ("name", "schedule", "warmup_updates", "starts_at")}
        course = {name: value for name, value in declared.items() if value is not None}
        groups.append(ParameterGroup(one.parameters, rate, one.role, course))
    return make_adamw(groups, settings)


def make_adamw(groups: Sequence[ParameterGroup], settings: AdamWSettings) -> torch.optim.AdamW:
    """Return AdamW over these groups, without those that are empty.

    With weight decay, a group becomes two: matrices decay, norms and biases do not. Fused is 3 to 5 times as fast as
    one operation over all tensors after another; it needs parameters on a CPU or a CUDA device.
    """
    torch_groups: list[dict[str, object]] = []
    for group in groups:
        matrices = [parameter for parameter in group.parameters if parameter.ndim >= 2]
        others = [parameter for parameter in group.parameters if parameter.ndim < 2]
        parts = [(group.parameters, 0.0)]
        if settings.weight_decay:
            parts = [(matrices, settings.weight_decay), (others, 0.0)]
        torch_groups += [
            {"params": part, "lr": group.learning_rate, "weight_decay": decay, "role": group.role, **group.course}
            for part, decay in parts
            if part
        ]
    every = [parameter for group in groups for parameter in group.parameters]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in every)
    kind = {"fused": True} if fused else {"foreach": True}
    optimizer = torch.optim.AdamW(torch_groups, betas=(settings.adam_beta1, settings.adam_beta2), **kind)
    optimizer.register_load_state_dict_pre_hook(_regrouped)
    return optimizer


def _regrouped(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    """Return a state of version 0.1 in the groups of this version, or None where the groups are the same.

    Fine-tuning without weight decay had two groups, first the matrices and then the others; it has one group now.
    Raises ``ResumeError`` for other groups: RL with weight decay had one group, of which all parameters decayed.
    """
    mine, found = [
        [len(group["params"]) for group in groups] for groups in (optimizer.param_groups, state["param_groups"])
    ]
    if mine == found:
        return None
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    order = sorted(range(len(parameters)), key=lambda index: parameters[index].ndim < 2)
    matrices = sum(parameter.ndim >= 2 for parameter in parameters)
    if len(mine) != 1 or found != [matrices, len(parameters) - matrices]:
        raise ResumeError(
            f"the checkpoint's AdamW has groups of {found} parameters; expected {mine}. Version 0.1 of lmrl let all "
            "parameters of a policy decay, and version 0.2 matrices alone, so the run cannot be continued; "
            "docs/migration.md lists what changed. Start a new run from the checkpoint with model=FOLDER."
        )
    group = {**state["param_groups"][0], "params": list(range(len(parameters)))}
    return {"state": {order[place]: moments for place, moments in state["state"].items()}, "param_groups": [group]}
