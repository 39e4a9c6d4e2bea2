"""Groups of parameters that learn, as a policy declares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class TrainedParameters:
    """Parameters that share a learning rate.

    ``role`` says whether they are the policy's or a value function's: a step of an optimizer's own moves the policy's
    alone. ``head`` marks new layers that start at zero; they learn at ``train.value_learning_rate``.
    """

    parameters: list[nn.Parameter]
    role: Literal["policy", "value"] = "policy"
    head: bool = False
