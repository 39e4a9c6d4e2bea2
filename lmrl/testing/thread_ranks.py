"""Data-parallel ranks as threads of one process: what accelerate is to the updater, without processes.

Collectives meet at a barrier; gradients are averaged over ranks before they are clipped, as data-parallel wrappers do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")
PATIENCE = 20.0
"""Seconds that a rank waits for the others."""


class RanksDisagree(RuntimeError):
    """One rank waited for the others in a collective that they did not enter."""


class Meeting:
    """Meeting of ``count`` ranks that hand each other tensors."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count)
        self.slots: list[Any] = [None] * count

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Return what every rank brought."""
        if self.count == 1:
            return [value]
        try:
            self.slots[rank] = value
            self.barrier.wait(PATIENCE)
            found = list(self.slots)
            self.barrier.wait(PATIENCE)
        except threading.BrokenBarrierError as error:
            raise RanksDisagree("the ranks did not enter the same collectives") from error
        return found


class ThreadAccelerator:
    """The part of ``accelerate.Accelerator`` that the updater uses, for one of several threads, on the CPU."""

    def __init__(self, meeting: Meeting | None = None, rank: int = 0) -> None:
        self.meeting = meeting or Meeting(1)
        self.process_index = rank
        self.num_processes = self.meeting.count
        self.is_main_process = rank == 0
        self.device = torch.device("cpu")

    def backward(self, loss: Tensor) -> None:
        """Differentiate."""
        loss.backward()

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Do nothing: gradients are exchanged in ``clip_grad_norm_``."""
        return nullcontext()

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        """Return the sum (or mean) over ranks."""
        total = torch.stack(self.meeting.exchange(self.process_index, tensor)).sum(0)
        return total / self.num_processes if reduction == "mean" else total

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the rows of all ranks below each other."""
        return torch.cat(self.meeting.exchange(self.process_index, tensor))

    def pad_across_processes(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Fill a dimension up with 0 to the longest over all ranks."""
        longest = max(self.meeting.exchange(self.process_index, tensor.shape[dim]))
        shape = list(tensor.shape)
        shape[dim] = longest - shape[dim]
        return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)

    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """Average the gradients over ranks and clip them; return their norm."""
        listed = list(parameters)
        if self.num_processes > 1:
            mine = [torch.zeros_like(p) if p.grad is None else p.grad for p in listed]
            for parameter, others in zip(
                listed, zip(*self.meeting.exchange(self.process_index, mine), strict=True), strict=True
            ):
                parameter.grad = torch.stack(others).mean(0)
        return nn.utils.clip_grad_norm_(listed, limit)


def run_ranks(work: Callable[[ThreadAccelerator, int], Result], count: int) -> Sequence[Result]:
    """Run ``work(accelerator, rank)`` in ``count`` threads and return what each returned; the first error is raised."""
    meeting = Meeting(count)
    results: dict[int, Result] = {}
    errors: list[Exception] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadAccelerator(meeting, rank), rank)
        except Exception as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    real = [error for error in errors if not isinstance(error, RanksDisagree)]
    if errors:
        raise (real or errors)[0]
    return [results[rank] for rank in range(count)]
