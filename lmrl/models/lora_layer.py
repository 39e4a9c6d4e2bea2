"""A LoRA layer that adds the adapter's product in one operation, where PEFT's own makes three tensors of its output.

They would fragment the memory of a forward pass: on a CPU, a microbatch of 512 tokens through SmolLM2-135M needs 0.5
GiB more with them. Leaves out DoRA and dropout, which stay PEFT's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lmrl.models.adapters import import_peft


def fuse(layer: Any) -> None:
    """Let one of PEFT's linear LoRA layers compute as described above; its parameters and their names stay."""
    if type(layer) is import_peft().tuners.lora.Linear:
        layer.__class__ = _fused_class()


@cache
def _fused_class() -> Any:
    peft_linear: Any = import_peft().tuners.lora.Linear

    class FusedLinear(peft_linear):  # type: ignore[misc]
        """PEFT's linear LoRA layer with ``torch.addmm``."""

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            """Return W x + scaling B A x."""
            [name] = self.active_adapters
            plain = not self.lora_variant and isinstance(self.lora_dropout[name], torch.nn.Identity)
            if self.disable_adapters or self.merged or args or kwargs or not plain:
                result: Tensor = super().forward(x, *args, **kwargs)
                return result
            flat = x.reshape(-1, x.shape[-1])
            base: Tensor = self.base_layer(flat)
            low: Tensor = self.lora_A[name](flat).to(base.dtype)
            weight = self.lora_B[name].weight.to(base.dtype)
            # In place: nothing needs the output of a linear layer for its gradient.
            return base.addmm_(low, weight.t(), alpha=self.scaling[name]).view(*x.shape[:-1], -1)

    return FusedLinear
