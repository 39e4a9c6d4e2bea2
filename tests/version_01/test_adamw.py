"""AdamW takes on the state that fine-tuning in version 0.1 left: two groups, the matrices before the others."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lmrl.errors import ResumeError
from lmrl.training.adamw import ParameterGroup, make_adamw


@dataclass
class Settings:
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95


def parameters():
    """Matrices and vectors in turns, as the layers of a model have them."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (2,), (2, 4), (4,), (2,), (3, 2)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def step(optimizer, params, number):
    generator = torch.Generator().manual_seed(number)
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_its_moments_stay_with_their_parameters():
    old = parameters()
    groups = [[p for p in old if p.ndim >= 2], [p for p in old if p.ndim < 2]]
    before = torch.optim.AdamW([{"params": group} for group in groups], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)
    step(before, old, 1)
    new = [nn.Parameter(parameter.detach().clone()) for parameter in old]
    now = make_adamw([ParameterGroup(new, 0.1)], Settings())
    now.load_state_dict(copy.deepcopy(before.state_dict()))  # as from a file: the moments are not shared
    step(before, old, 2)
    step(now, new, 2)
    assert len(now.param_groups) == 1
    for mine, its in zip(new, old, strict=True):
        torch.testing.assert_close(mine, its)


def test_a_state_of_this_version_is_taken_as_it_is():
    old, new = parameters(), parameters()
    before, now = (make_adamw([ParameterGroup(params, 0.1)], Settings(weight_decay=0.1)) for params in (old, new))
    step(before, old, 1)
    now.load_state_dict(before.state_dict())
    for mine, its in zip(new, old, strict=True):
        assert torch.equal(now.state[mine]["exp_avg"], before.state[its]["exp_avg"])


@pytest.mark.parametrize("counts", [[6], [3, 1, 2], [2, 4]])
def test_other_groups_are_an_error_that_says_what_changed(counts):
    old, new = parameters(), parameters()
    parts = torch.arange(len(old)).split(counts)
    before = torch.optim.AdamW([{"params": [old[index] for index in part]} for part in parts])
    now = make_adamw([ParameterGroup(new, 0.1)], Settings(weight_decay=0.1 if counts == [6] else 0.0))
    with pytest.raises(ResumeError, match=r"let all parameters of a policy decay.*docs/migration.md.*model=FOLDER"):
        now.load_state_dict(before.state_dict())
