"""Microbatches by memory: what is measured is what is kept, and the limit changes no gradient."""

import pytest
import torch

from lmrl.algorithms.sequences import Sequences
from lmrl.errors import SettingsError
from lmrl.models import PolicyModel, load
from lmrl.models.layouts import LAYOUTS
from lmrl.training.memory import CPU_TOKENS, GIB, bytes_per_token, microbatch_budget
from lmrl.training.update_settings import TrainSettings
from lmrl_ppo import PPO, PPOSettings

CPU = torch.device("cpu")


def test_the_budget_is_what_is_set_or_what_fits(tiny_folder):
    policy = PolicyModel(load(tiny_folder).model, with_values=True)
    each = bytes_per_token(policy)
    assert microbatch_budget(TrainSettings(microbatch_tokens=7, microbatch_memory=1.0), CPU, policy) == 7
    assert microbatch_budget(TrainSettings(), CPU, policy) == microbatch_budget(TrainSettings(), CPU) == CPU_TOKENS
    settings = TrainSettings(microbatch_memory=100.5 * each / GIB)
    assert microbatch_budget(settings, CPU, policy) == 100
    assert microbatch_budget(TrainSettings(microbatch_memory=1e-12), CPU, policy) == 1
    with pytest.raises(SettingsError, match="microbatch_memory"):
        TrainSettings(microbatch_memory=-1.0)


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=lambda layout: layout.name)
def test_what_is_measured_is_what_a_microbatch_keeps(tiny_folder, layout):
    policy = PolicyModel(load(tiny_folder).model)
    policy.layout = layout
    rows, size = 8, 12
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor, tensor.untyped_storage().nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(Sequences.of_pairs([([1] * size, [1] * size)] * rows), temperature=1.0)
    kept = sum(count for place, (_, count) in held.items() if place not in own)
    tokens = size + rows * size if layout.name == "packed" else 2 * rows * size
    assert kept == pytest.approx(tokens * bytes_per_token(policy), rel=0.25)


def test_a_memory_limit_changes_no_gradient(toy):
    results = []
    for memory in (0.0, 40.0):
        world = toy()
        limit = memory * bytes_per_token(world.policy) / GIB
        before = world.parameters()
        updater = world.updater(PPO(PPOSettings(epochs=1, minibatches=1)), microbatch_memory=limit)
        assert updater.token_budget in ((39, 40) if memory else (CPU_TOKENS,))
        updater.learn(world.rollout(group_size=3), beta=0.1, update=1, seed=0)
        results.append(world.parameters() - before)
    assert results[0].abs().max() > 1e-4
    assert torch.allclose(results[1], results[0], atol=1e-6)
