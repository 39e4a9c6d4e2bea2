"""Heads that an optimizer adds to the policy: what they read, where they are saved, and the LM head that is sampled."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lmrl.algorithms import OptimizerSettings, PolicyOptimizer, Sequences
from lmrl.algorithms.experience import Responses
from lmrl.engines import SamplingSpec
from lmrl.models import PolicyModel, load
from lmrl.models.text_policy import TextPolicy
from lmrl.stories import MODEL_PATH
from lmrl.testing import write_tiny_model
from lmrl.training.adamw import policy_adamw
from lmrl.training.update_settings import TrainSettings


class Bound(nn.Module):
    """One number per state, and a frozen table of one number per action."""

    def __init__(self, width, actions):
        super().__init__()
        self.level = nn.Linear(width, 1)
        self.table = nn.Parameter(torch.randn(actions), requires_grad=False)

    def forward(self, hidden, ids):
        assert hidden.dtype == torch.float32
        return torch.stack([self.level(hidden).squeeze(-1), self.table[ids]])


class Headed(PolicyOptimizer):
    """Two heads; the LM head that is sampled has the second one's table in its bias."""

    def heads(self, width, actions):
        self.made = {"first": Bound(width, actions), "second": Bound(width, actions)}
        return self.made

    def sampled_head(self, lm_head):
        head = nn.Linear(lm_head.in_features, lm_head.out_features, bias=False)
        head.weight = nn.Parameter(lm_head.weight + self.made["second"].table[:, None])
        return head


@pytest.fixture
def folder(tmp_path):
    return write_tiny_model(tmp_path / "model")


def policy_of(folder, dtype=None):
    optimizer = Headed(OptimizerSettings())
    return PolicyModel(load(folder, dtype=dtype).model, with_values=True, optimizer=optimizer)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_read_the_states_and_actions_of_a_batch(folder, dtype):
    policy = policy_of(folder, dtype)
    inputs = Sequences.of_pairs([([3, 4], [6, 7, 1]), ([5], [8, 1])])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = TextPolicy(policy, SamplingSpec(), True, with_heads=True).evaluate(Responses(inputs, mask)).head("first")
    hidden = policy.model.base_model(torch.tensor([[3, 4, 6, 7]])).last_hidden_state[0, 1:]
    assert found.shape == (2, 2, 3) and found.dtype == torch.float32 and not found[:, ~mask].any()
    expected = policy.heads.first(hidden.float(), torch.tensor([6, 7, 1]))
    assert torch.allclose(found[:, 0], expected, atol=1e-5 if dtype == torch.float32 else 5e-2)


def test_what_requires_gradients_is_trained_at_the_rate_of_the_value_head(folder):
    policy = policy_of(folder)
    settings = TrainSettings(value_learning_rate=0.5)
    [group] = [group for group in policy_adamw(policy.trainable(), settings).param_groups if group["lr"] == 0.5]
    heads = [policy.value_head, policy.heads.first.level, policy.heads.second.level]
    assert {id(p) for p in group["params"]} == {id(p) for head in heads for p in head.parameters()}
    assert group["role"] == "value"


@torch.no_grad()
def test_heads_are_saved_by_name_and_restored_with_the_lm_head_that_is_trained(folder, tmp_path):
    policy = policy_of(folder)
    own = copy.deepcopy(policy.model.get_output_embeddings().weight)
    (tmp_path / "saved").mkdir()
    policy.save(tmp_path / "saved", folder)
    sampled = load(tmp_path / "saved").model.get_output_embeddings().weight
    assert torch.allclose(sampled, own + policy.heads.second.table[:, None])
    first, second = (load_file(tmp_path / "saved" / f"{name}.safetensors") for name in ("first", "second"))
    assert torch.equal(first.pop("language_model_head.weight"), own)
    assert first.keys() == second.keys() == {"level.weight", "level.bias", "table"}
    again = policy_of(tmp_path / "saved")
    again.load_value_head(tmp_path / "saved")
    expected = policy.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


class OwnHead(Headed):
    """Samples from the head that is trained."""

    def sampled_head(self, lm_head):
        return lm_head


@torch.no_grad()
def test_the_trained_head_may_be_the_one_that_is_sampled(tmp_path):
    policy = PolicyModel(load(MODEL_PATH).model, optimizer=OwnHead(OptimizerSettings()))
    assert policy.model.config.tie_word_embeddings
    (tmp_path / "saved").mkdir()
    policy.save(tmp_path / "saved", MODEL_PATH)
    expected = policy.model.state_dict()
    found = load(tmp_path / "saved").model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
