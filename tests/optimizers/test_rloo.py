"""RLOO against numbers worked out by hand, and against the exact gradient by enumeration."""

import itertools

import pytest
import torch

from lmrl.errors import SettingsError

# Two prompts, labelled 40 and -3, of three and two answers that are no neighbours; the KL shaping is in the rewards.
REWARDS = [[0.0, 3.0], [-1.0, 5.0], [6.0, 0.0], [1.0, 1.0], [0.5, -0.5]]
MASK = [[1, 1], [1, 1], [1, 0], [1, 1], [1, 1]]
GROUP = [40, -3, 40, -3, 40]
RETURNS = [3.0, 4.0, 6.0, 2.0, 0.0]
ADVANTAGES = [3 - (6 + 0) / 2, 4 - 2, 6 - (3 + 0) / 2, 2 - 4, 0 - (3 + 6) / 2]


def rollout(by_hand, rewards=REWARDS):
    return by_hand.rollout(rewards, MASK, scores=[9.0] * 5, group=GROUP)


def test_every_token_gets_the_return_minus_the_mean_of_the_others(by_hand):
    found = by_hand.make("rloo").advantages(rollout(by_hand))
    assert torch.allclose(found.advantages, torch.tensor(ADVANTAGES)[:, None] * torch.tensor(MASK))
    assert torch.allclose(found.metrics["return"], torch.tensor(RETURNS))


def test_trap_25_an_answers_own_return_is_not_in_its_baseline(by_hand):
    moved = [list(row) for row in REWARDS]
    moved[2][0] += 10.0
    before, after = (by_hand.make("rloo").advantages(rollout(by_hand, r)).advantages[:, 0] for r in (REWARDS, moved))
    assert torch.allclose(after - before, torch.tensor([-5.0, 0.0, 10.0, 0.0, -5.0]))


def test_answers_whose_score_was_withheld_are_compared_with_nothing(by_hand):
    cut = [False, True, False, False, False]
    given = by_hand.rollout(REWARDS, MASK, scores=[9.0] * 5, group=GROUP, truncated=cut)
    found = by_hand.make("rloo").advantages(given).advantages[:, 0].tolist()
    assert found == [ADVANTAGES[0], 0.0, ADVANTAGES[2], 0.0, ADVANTAGES[4]], "row 3 has nobody else"


@pytest.mark.parametrize(
    ("aggregation", "divisors"), [("sequence_sum", [5] * 5), ("sequence_mean", [10, 10, 5, 10, 10])]
)
def test_one_step_weighs_whole_answers(by_hand, aggregation, divisors):
    optimizer = by_hand.make("rloo", loss_aggregation=aggregation)
    found = by_hand.gradient(optimizer, rollout(by_hand), by_hand.table([[-1.0] * 2] * 5))
    expected = -torch.tensor(ADVANTAGES)[:, None] * torch.tensor(MASK) / torch.tensor(divisors)[:, None]
    assert by_hand.make("rloo").settings.loss_aggregation == "sequence_sum"
    assert torch.allclose(found, expected)


def test_the_expected_step_is_the_exact_gradient(by_hand):
    """Over all groups of two answers to a prompt with three possible answers, weighted by how likely they are."""
    logits = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64, requires_grad=True)
    score = torch.tensor([1.0, 5.0, -2.0], dtype=torch.float64)
    policy = logits.log_softmax(0)
    exact = torch.autograd.grad((policy.exp() * score).sum(), logits, retain_graph=True)[0]
    optimizer, expected = by_hand.make("rloo"), torch.zeros(3, dtype=torch.float64)
    for pair in itertools.product(range(3), repeat=2):
        answers = torch.tensor(pair)
        rollout = by_hand.rollout(score[answers][:, None].tolist(), group=[0, 0])
        losses = -optimizer.advantages(rollout).advantages[:, 0] * policy[answers]
        likely = policy[answers].sum().exp().detach()
        expected -= likely * torch.autograd.grad(losses.mean(), logits, retain_graph=True)[0]
    assert torch.allclose(expected, exact, atol=1e-6)


def test_a_group_of_one_is_refused(by_hand, train):
    assert by_hand.needs("rloo").minimum_group_size == 2 and not by_hand.needs("rloo").values
    with pytest.raises(SettingsError, match=r"at least 2 responses.*train\.group_size"):
        train("rloo", group_size=1)
    with pytest.raises(ValueError, match="group of one"):
        by_hand.make("rloo").advantages(by_hand.rollout([[1.0], [2.0], [3.0]], group=[0, 0, 1]))


def test_an_unknown_aggregation_is_refused(by_hand):
    with pytest.raises(SettingsError, match="sequence_sum"):
        by_hand.make("rloo", loss_aggregation="sum")
