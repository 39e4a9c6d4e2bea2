"""Trajectories of several turns: the policy's columns against one forward pass per token, whatever the batch."""

import pytest
import torch

from lmrl.algorithms.experience import Responses
from lmrl.algorithms.sequences import Sequences
from lmrl.engines import SamplingSpec
from lmrl.models import PolicyModel, load
from lmrl.models.layouts.padded import PaddedLayout
from lmrl.models.text_policy import TextPolicy, score_logprobs, score_values
from lmrl.testing import write_tiny_model

TRAJECTORIES = [
    [[([3, 4, 5], False), ([10, 11], True), ([6, 7], False), ([8], True)]],
    [[([6], False), ([12, 3], True)], [([6, 2], False), ([4, 1], True), ([9, 9], False)]],
    [[([7, 1, 0, 8], False), ([5], True), ([2], False)]],
    [[([6], False), ([12], True)], [([3, 4, 5], False), ([10], True)], [([3, 4, 6], False), ([11, 5, 1], True)]],
]


@pytest.fixture(scope="module", params=["llama", "gpt2", "padded"])
def policy(request, tmp_path_factory):
    architecture = "llama" if request.param == "padded" else request.param
    model = load(write_tiny_model(tmp_path_factory.mktemp(request.param), architecture=architecture)).model
    policy = PolicyModel(model, with_values=True)
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    assert policy.layout.name == "packed"
    if request.param == "padded":
        policy.layout = PaddedLayout()
    return policy


@torch.no_grad()
def naive(policy, trajectory):
    """Return log-probabilities and values of a trajectory's actions and the value of its end, token by token."""
    logprobs, values = [], []
    for parts in trajectory:
        seen = []
        for ids, sampled in parts:
            for token in ids:
                if sampled:
                    output = policy.model(torch.tensor([seen]), output_hidden_states=True)
                    logprobs.append(float(output.logits[0, -1].log_softmax(-1)[token]))
                    values.append(float(policy.value_head(output.hidden_states[-1][0, -1])))
                seen.append(token)
    output = policy.model(torch.tensor([seen]), output_hidden_states=True)
    return logprobs, values, float(policy.value_head(output.hidden_states[-1][0, -1]))


def padded(rows, width):
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("budget", [1, 13, 1000])
def test_columns_belong_to_the_actions_and_the_end_to_the_last_sequence(policy, budget):
    rows = Sequences.of(TRAJECTORIES)
    expected = [naive(policy, trajectory) for trajectory in TRAJECTORIES]
    for order in (torch.arange(4), torch.tensor([2, 0, 3, 1])):
        inputs = rows.select(order)
        logprobs, values = (padded([expected[row][kind] for row in order], 5) for kind in (0, 1))
        ends = torch.tensor([expected[row][2] for row in order])
        assert torch.allclose(score_logprobs(policy, inputs, SamplingSpec(), budget), logprobs, atol=1e-5)
        found, bootstrap = score_values(policy, inputs, budget)
        assert torch.allclose(found, values, atol=1e-5) and torch.allclose(bootstrap, ends, atol=1e-5)


def test_holes_in_the_mask_move_no_column(policy):
    rows = Sequences.of(TRAJECTORIES)
    whole = rows.action_mask(7)  # two columns wider than any row
    holes = whole.clone()
    holes[0, 1], holes[1], holes[3, 2] = False, False, False
    full, part = (TextPolicy(policy, SamplingSpec(), True).evaluate(Responses(rows, mask)) for mask in (whole, holes))
    for name in ("logprobs", "values", "entropy"):
        assert getattr(full, name).shape == whole.shape
        assert torch.equal(getattr(part, name), getattr(full, name).masked_fill(~holes, 0))


def test_microbatches_cover_trajectories_with_the_same_gradient(policy):
    batch = Responses(Sequences.of(TRAJECTORIES), Sequences.of(TRAJECTORIES).action_mask())
    face, gradients = TextPolicy(policy, SamplingSpec(), True), []
    for budget in (1, 13, 1000):
        policy.zero_grad()
        pieces = face.microbatches(batch, budget)
        assert sorted(torch.cat(pieces).tolist()) == [0, 1, 2, 3]
        for piece in pieces:
            now = face.evaluate(batch.select(piece))
            (now.logprobs * torch.arange(1.0, 6)).sum().add((now.values**2).sum()).backward()
            face.forget()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() <= 1e-5 * gradients[0].norm()
