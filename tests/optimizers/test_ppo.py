"""PPO's loss against numbers worked out by hand; its updates are in tests/stages/test_update.py."""

import math

import pytest
import torch

from lmrl.errors import SettingsError

RATIOS = [0.5, 1.25, 1.5, 5.0]


def surrogate(by_hand, reward, **settings):
    """The gradient by the ratios, (4,), of one-token answers whose advantage is the reward."""
    settings = {"whiten_advantages": False, "epochs": 1, "minibatches": 1, "value_coefficient": 0.0, **settings}
    zeros = [[0.0]] * 4
    rollout = by_hand.rollout([[reward]] * 4, values=zeros, bootstrap_values=[9.0] * 4)
    table = by_hand.table([[math.log(ratio)] for ratio in RATIOS], values=zeros)
    optimizer = by_hand.make("ppo", **settings)
    found = by_hand.gradient(optimizer, rollout, table)
    return (-4 * found.squeeze(1) / torch.tensor(RATIOS) / reward).tolist()


@pytest.mark.parametrize(
    ("reward", "settings", "flows"),
    [
        (2.0, {}, [1, 0, 0, 0]),
        (2.0, {"clip_range_high": 0.3}, [1, 1, 0, 0]),
        (2.0, {"clip_range_high": 0.3, "dual_clip": 3.0}, [1, 1, 0, 0]),
        (-2.0, {}, [0, 1, 1, 1]),
        (-2.0, {"clip_range_high": 0.6}, [0, 1, 1, 1]),
        (-2.0, {"clip_range": 0.6, "clip_range_high": 0.1}, [1, 1, 1, 1]),
        (-2.0, {"dual_clip": 3.0}, [0, 1, 1, 0]),
    ],
)
def test_trap_30_the_gradient_flows_where_clipping_lets_it(by_hand, reward, settings, flows):
    assert surrogate(by_hand, reward, **settings) == pytest.approx(flows, abs=1e-5)
    assert by_hand.metrics["optimizer/clip_fraction"] == pytest.approx(1 - sum(flows) / 4)


def test_the_whole_loss_by_hand(by_hand):
    optimizer = by_hand.make("ppo", whiten_advantages=False, gae_lambda=1.0, entropy_coefficient=0.5)
    rollout = by_hand.rollout(
        [[0.0, 2.0], [1.0, 0.0]], [[1, 1], [1, 0]], values=[[1.0, 1.0], [0.0, 0.0]], bootstrap_values=[7.0, 7.0]
    )
    table = by_hand.table([[0.0, 0.0], [0.0, 5.0]], values=[[1.5, 2.0], [1.0, 5.0]], entropy=[[1.0, 3.0], [2.0, 5.0]])
    found = optimizer.loss(table, by_hand.batch(optimizer, rollout))
    # Values may move by 0.2: 1.5, 2 and 1 count as 1.2, 1.2 and 0.2 where that is further from 2, 2 and 1.
    value_losses = [[0.5 * 0.64, 0.5 * 0.64], [0.5 * 0.64, 0.0]]
    assert torch.allclose(found.metrics["value_loss"], torch.tensor(value_losses))
    expected = [[-1 + 0.16 - 0.5, -1 + 0.16 - 1.5], [-1 + 0.16 - 1.0, 0.0]]
    assert torch.allclose(found.losses, torch.tensor(expected))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clip_range": 0.0}, "clip_range is 0"),
        ({"clip_range_high": -0.1}, "clip_range_high"),
        ({"dual_clip": 1.0}, "dual_clip is 1.0; expected a number above 1, or 0"),
        ({"dual_clip": -3.0}, "dual_clip is -3"),
        ({"gamma": 1.5}, "gamma is 1.5; expected a number from 0 to 1"),
        ({"gae_lambda": -0.5}, "gae_lambda is -0.5"),
    ],
)
def test_bad_settings_are_refused(by_hand, settings, words):
    with pytest.raises(SettingsError, match=words):
        by_hand.make("ppo", **settings)
