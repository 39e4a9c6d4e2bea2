"""GMPO against numbers worked out by hand; what it shares with GRPO is in test_grpo."""

import math

import pytest
import torch

from lmrl.errors import SettingsError

CENTRED = {"normalise_std": False}


def answers(by_hand, log_ratios, rewards, mask):
    """Return a rollout of one group, in which log pi_old is -1 everywhere, and a table of the policy now."""
    scored = [[reward, *[0.0] * (len(mask[0]) - 1)] for reward in rewards]
    behavior = [[-1.0 * there for there in row] for row in mask]
    now = [[ratio - 1.0 for ratio in row] for row in log_ratios]
    return by_hand.rollout(scored, mask, group=[6] * len(rewards), behavior=behavior), by_hand.table(now)


def test_the_ratio_is_the_geometric_mean_of_the_tokens(by_hand):
    """Rows of two and three tokens with the advantages 1 and -1; outside the mask stands what must not count."""
    mask = [[1, 1, 0], [1, 1, 1]]
    rollout, table = answers(by_hand, [[0.3, -0.1, 9.0], [-0.2, 0.5, 0.3]], [1.0, -1.0], mask)
    optimizer = by_hand.make("gmpo", **CENTRED)
    found = optimizer.loss(table, by_hand.batch(optimizer, rollout))
    ratios = torch.tensor([0.1, 0.2]).exp()
    assert found.losses.shape == (2,) and torch.allclose(found.losses, torch.tensor([-1.0, 1.0]) * ratios)
    expected = torch.tensor([[-ratios[0] / 2] * 2 + [0.0], [ratios[1] / 3] * 3]) / 2
    assert torch.allclose(by_hand.gradient(optimizer, rollout, table), expected)
    assert by_hand.metrics["optimizer/clip_fraction"] == 0


def test_tokens_are_clipped_before_the_mean_on_the_side_that_the_advantage_pushes_to(by_hand):
    """By 0.4 above where A > 0, by 0.4 below where A < 0; tokens within keep their gradient."""
    case = [[0.6, -0.6], [0.6, -0.6]], [1.0, -1.0], [[1, 1], [1, 1]]
    rollout, table = answers(by_hand, *case)
    found = by_hand.gradient(by_hand.make("gmpo", **CENTRED), rollout, table)
    expected = [[0.0, -math.exp((0.4 - 0.6) / 2)], [math.exp((0.6 - 0.4) / 2), 0.0]]
    assert torch.allclose(found, torch.tensor(expected) / 4)
    assert by_hand.metrics["optimizer/clip_fraction"] == pytest.approx(2 / 4)
    wide = by_hand.make("gmpo", **CENTRED, clip_range_high=0.7)
    assert torch.allclose(by_hand.gradient(wide, *answers(by_hand, *case))[0], torch.tensor([-1.0, -1.0]) / 4), (
        "one side alone"
    )


def test_within_the_range_it_is_gspo(by_hand):
    case = [[0.3, -0.1], [0.2, 0.1], [0.0, 0.3]], [1.0, -1.0, 0.5], [[1, 1], [1, 1], [1, 0]]
    gmpo = by_hand.gradient(by_hand.make("gmpo"), *answers(by_hand, *case))
    gspo = by_hand.gradient(by_hand.make("gspo", clip_range=0.9, clip_range_high=9.0), *answers(by_hand, *case))
    assert torch.allclose(gmpo, gspo, atol=1e-6)


def test_a_row_without_actions_counts_for_nothing(by_hand):
    mask, log_ratios = [[1, 1], [1, 0], [0, 0]], [[0.1, 0.1], [0.1, 5.0], [5.0, 5.0]]
    rollout = by_hand.rollout([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], mask, group=[0, 0, 1])
    found = by_hand.gradient(by_hand.make("gmpo", **CENTRED), rollout, by_hand.table(log_ratios))
    ratio = math.exp(0.1)
    assert torch.allclose(found, torch.tensor([[-ratio / 4] * 2, [ratio / 2, 0.0], [0.0, 0.0]]))


def test_a_run_raises_the_reward(train):
    def cats(prompts, responses):
        return [float(response.split().count("cat")) for response in responses]

    settings = {"epochs": 2, "minibatches": 2}
    records = train("gmpo", reward=cats, settings=settings, group_size=8, updates=10, learning_rate=0.02)
    assert records[-1]["evaluation/reward"] > records[0]["evaluation/reward"] + 0.2


@pytest.mark.parametrize("settings", [{"clip_range": 0.0}, {"clip_range_high": -1.0}])
def test_bad_settings_are_refused(by_hand, settings):
    with pytest.raises(SettingsError, match=r"expected clip_range > 0 and clip_range_high >= 0"):
        by_hand.make("gmpo", **settings)
