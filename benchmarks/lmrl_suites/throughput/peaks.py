"""Peak rates of the machine, measured: matrix products and copies of memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lmrl_suites.throughput.timing import synchronise

SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class Peaks:
    """Floating-point operations and bytes per second, at the threads and the precision of the run."""

    flops: float
    bandwidth: float


def measure_peaks(device: str, dtype: torch.dtype, smoke: bool = False) -> Peaks:
    """Return the best of a few square products and of a few copies far larger than any cache."""
    sizes = (128,) if smoke else SIZES[device]
    rates = []
    for size in sizes:
        left = torch.randn(size, size, device=device, dtype=dtype)
        out = torch.empty_like(left)

        def product(left: torch.Tensor = left, out: torch.Tensor = out) -> None:
            torch.mm(left, left, out=out)

        rates.append(2 * size**3 / _least_seconds(product, device))
    count = (COPY_BYTES[device] >> (6 if smoke else 0)) // 4
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    seconds = _least_seconds(lambda: target.copy_(source), device)
    return Peaks(flops=max(rates), bandwidth=2 * 4 * count / seconds)


def _least_seconds(work: Callable[[], object], device: str, repeats: int = 7) -> float:
    found = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])
