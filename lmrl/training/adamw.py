"""AdamW (Loshchilov and Hutter 2019) for every stage: only matrices decay; fused where the device allows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn


class AdamWSettings(Protocol):
    """Settings that AdamW reads; those of the supervised stages and of the policy update have them."""

    weight_decay: float
    adam_beta1: float
    adam_beta2: float


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one peak learning rate; ``role`` says whether they are the policy's or the value function's."""

    parameters: list[nn.Parameter]
    learning_rate: float
    role: str = "policy"


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
            {"params": part, "lr": group.learning_rate, "weight_decay": decay, "role": group.role}
            for part, decay in parts
            if part
        ]
    every = [parameter for group in groups for parameter in group.parameters]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in every)
    kind = {"fused": True} if fused else {"foreach": True}
    return torch.optim.AdamW(torch_groups, betas=(settings.adam_beta1, settings.adam_beta2), **kind)
