"""Ranks as threads: collectives bring together what every rank holds, and an error ends them all."""

import pytest
import torch

from lmrl.testing import thread_ranks
from lmrl.testing.thread_ranks import RanksDisagree, ThreadAccelerator, run_ranks


def test_collectives():
    def work(accelerator, rank):
        column = torch.full((2, 1 + rank), float(rank + 1))
        gathered = accelerator.gather(accelerator.pad_across_processes(column, dim=1))
        return gathered, accelerator.reduce(torch.tensor(rank + 1.0)), accelerator.process_index

    first, second = run_ranks(work, 2)
    assert first[0].tolist() == second[0].tolist() == [[1, 0], [1, 0], [2, 2], [2, 2]]
    assert first[1] == second[1] == 3 and (first[2], second[2]) == (0, 1)


def test_gradients_are_averaged_and_clipped():
    def work(accelerator, rank):
        weight = torch.nn.Parameter(torch.zeros(2))
        accelerator.backward((weight * torch.tensor([6.0 * rank, 8.0 * rank])).sum())
        norm = accelerator.clip_grad_norm_([weight], 1.0)
        return weight.grad.tolist(), float(norm)

    for gradient, norm in run_ranks(work, 2):
        assert gradient == pytest.approx([0.6, 0.8], abs=1e-5) and norm == pytest.approx(5)


def test_one_rank_meets_nobody():
    accelerator = ThreadAccelerator()
    column = torch.ones(2, 3)
    assert accelerator.num_processes == 1 and accelerator.is_main_process
    assert torch.equal(accelerator.gather(column), column) and torch.equal(accelerator.reduce(column), column)


def test_an_error_on_one_rank_ends_the_others():
    def work(accelerator, rank):
        if rank == 1:
            raise ValueError("rank 1 gave up")
        return accelerator.gather(torch.ones(1))

    with pytest.raises(ValueError, match="rank 1 gave up"):
        run_ranks(work, 2)


def test_a_collective_that_one_rank_leaves_out_is_an_error(monkeypatch):
    monkeypatch.setattr(thread_ranks, "PATIENCE", 0.2)
    with pytest.raises(RanksDisagree, match="did not enter the same collectives"):
        run_ranks(lambda accelerator, rank: accelerator.gather(torch.ones(1)) if rank == 0 else None, 2)
