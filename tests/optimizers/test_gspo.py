"""GSPO against numbers worked out by hand; what it shares with GRPO is in test_grpo."""

import math

import pytest
import torch

from lmrl.errors import SettingsError

WIDE = {"clip_range": 0.2, "clip_range_high": 0.3, "normalise_std": False}


def answers(by_hand, log_ratios, rewards, mask):
    """Return a rollout of one group, in which log pi_old is -1 everywhere, and a table of the policy now."""
    scored = [[reward, *[0.0] * (len(mask[0]) - 1)] for reward in rewards]
    behavior = [[-1.0 * there for there in row] for row in mask]
    now = [[ratio - 1.0 for ratio in row] for row in log_ratios]
    return by_hand.rollout(scored, mask, group=[6] * len(rewards), behavior=behavior), by_hand.table(now)


def test_trap_31_the_ratio_is_that_of_whole_answers(by_hand):
    """Rows of two and three tokens with the advantages 1 and -1; outside the mask stands what must not count."""
    mask = [[1, 1, 0], [1, 1, 1]]
    log_ratios = [[0.3, -0.1, 9.0], [-0.2, 0.5, 0.3]]
    rollout, table = answers(by_hand, log_ratios, [1.0, -1.0], mask)
    optimizer = by_hand.make("gspo", **WIDE)
    found = optimizer.loss(table, by_hand.batch(optimizer, rollout))
    ratios = torch.tensor([0.1, 0.2]).exp()
    assert found.losses.shape == (2,) and torch.allclose(found.losses, torch.tensor([-1.0, 1.0]) * ratios)
    assert torch.allclose(found.metrics["ratio"], ratios)
    expected = torch.tensor([[-ratios[0] / 2] * 2 + [0.0], [ratios[1] / 3] * 3]) / 2
    assert torch.allclose(by_hand.gradient(optimizer, rollout, table), expected)
    assert by_hand.metrics["optimizer/clip_fraction"] == 0


def test_trap_30_whole_answers_are_clipped_and_the_bounds_are_not_swapped(by_hand):
    """One token beyond the bound clips nothing while the answer's mean is within it, and the other way round."""
    mask = [[1, 1]] * 6
    ratios = [1.25, 1.35, 0.75, 0.75, 1.35, 0.85]
    log_ratios = [[math.log(ratio) + 1.0, math.log(ratio) - 1.0] for ratio in ratios]
    rollout, table = answers(by_hand, log_ratios, [1.0, 1.0, 1.0, -1.0, -1.0, -1.0], mask)
    found = by_hand.gradient(by_hand.make("gspo", **WIDE), rollout, table) * 12
    weights = torch.tensor([-1.25, 0.0, -0.75, 0.0, 1.35, 0.85])
    assert torch.allclose(found, weights[:, None].expand(6, 2), atol=1e-5)
    assert by_hand.metrics["optimizer/clip_fraction"] == pytest.approx(2 / 6)


def test_the_token_form_of_the_paper_has_the_same_gradient(by_hand):
    """GSPO-token differs where tokens of an answer differ in advantage (Zheng et al. 2025, sec. 4.3): nowhere here."""
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    log_ratios = [[0.3, -0.1, 0.0], [-0.2, 0.5, 0.3]]
    rollout, table = answers(by_hand, log_ratios, [1.0, -1.0], mask.long().tolist())
    now = torch.tensor(log_ratios, requires_grad=True)
    means = (now.detach() * mask).sum(1) / mask.sum(1)
    ratios = (means[:, None] + now - now.detach()).exp()
    advantages = torch.tensor([[1.0], [-1.0]])
    objective = torch.minimum(ratios * advantages, ratios.clamp(0.8, 1.3) * advantages)
    loss = ((-objective * mask).sum(1) / mask.sum(1)).mean()
    found = by_hand.gradient(by_hand.make("gspo", **WIDE), rollout, table)
    assert torch.allclose(found, torch.autograd.grad(loss, now)[0], atol=1e-6)


def test_trap_29_a_row_without_actions_counts_for_nothing(by_hand):
    mask, log_ratios = [[1, 1], [1, 0], [0, 0]], [[0.1, 0.1], [0.1, 5.0], [5.0, 5.0]]
    scored = [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]
    rollout = by_hand.rollout(scored, mask, group=[0, 0, 1])
    found = by_hand.gradient(by_hand.make("gspo", **WIDE), rollout, by_hand.table(log_ratios))
    ratio = math.exp(0.1)
    assert torch.allclose(found, torch.tensor([[-ratio / 4] * 2, [ratio / 2, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
def test_the_first_step_is_grpos_with_a_mean_over_each_answer(by_hand, aggregation):
    rollout = by_hand.rollout([[0.0, 2.0], [0.5, 0.0], [1.0, 1.5]], [[1, 1], [1, 0], [1, 1]], group=[2, 2, 2])
    gspo = by_hand.gradient(by_hand.make("gspo", loss_aggregation=aggregation), rollout, by_hand.table([[0.0] * 2] * 3))
    grpo = by_hand.gradient(by_hand.make("grpo"), rollout, by_hand.table([[0.0] * 2] * 3))
    assert torch.allclose(gspo, grpo, atol=1e-6)


def test_a_run_raises_the_reward(train):
    def cats(prompts, responses):
        return [float(response.split().count("cat")) for response in responses]

    settings = {"epochs": 2, "minibatches": 2, "clip_range": 0.1, "clip_range_high": 0.2}
    records = train("gspo", reward=cats, settings=settings, group_size=8, updates=10, learning_rate=0.02)
    assert records[-1]["evaluation/reward"] > records[0]["evaluation/reward"] + 0.2


@pytest.mark.parametrize("settings", [{"clip_range": 0.0}, {"clip_range_high": -1.0}])
def test_bad_settings_are_refused(by_hand, settings):
    with pytest.raises(SettingsError, match=r"expected clip_range > 0 and clip_range_high >= 0"):
        by_hand.make("gspo", **settings)
