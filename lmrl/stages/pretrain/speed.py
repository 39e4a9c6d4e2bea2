"""Model flops utilisation: the arithmetic that training needs by the time it takes, over what the device could do.

Flops per token are those of Chowdhery et al. 2022 (PaLM), appendix B: 6 N + 12 L H Q T, N the parameters, L the layers,
H and Q the heads and their width, T the context length. N leaves out embeddings that are only looked up.
"""

from __future__ import annotations

import time
from typing import Any

import torch

BF16_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 flops per second from the makers' data sheets, by a part of the device's name; the first that fits."""
MEASURED_SIZE = 512
MEASURED_SECONDS = 0.2


def flops_per_token(model: Any, context_length: int) -> float:
    """Return the floating-point operations of a forward and backward pass per token."""
    embeddings = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    looked_up = 0 if head is not None and head.weight is embeddings else embeddings.numel()
    parameters = int(sum(parameter.numel() for parameter in model.parameters()) - looked_up)
    config = model.config
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    head_width = int(getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0))
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    return 6.0 * parameters + 12.0 * layers * heads * head_width * context_length


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """Return the device's flops per second and where the number is from.

    Data sheets for bfloat16 on known GPUs; otherwise a product of two float32 matrices, measured here: what the
    device reaches in practice, so a utilisation by it is higher than one by a data sheet.
    """
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        for part, peak in BF16_PEAKS.items():
            if part in name:
                return peak, f"data sheet of {part}, dense bfloat16"
    return _measured(device), f"measured on this {device.type}: a float32 product of {MEASURED_SIZE} x {MEASURED_SIZE}"


def _measured(device: torch.device) -> float:
    size = MEASURED_SIZE if device.type == "cpu" else 8 * MEASURED_SIZE
    left = torch.ones(size, size, device=device)
    best = 0.0
    deadline = time.perf_counter() + MEASURED_SECONDS
    while time.perf_counter() < deadline or not best:
        _wait(device)
        began = time.perf_counter()
        left @ left
        _wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
