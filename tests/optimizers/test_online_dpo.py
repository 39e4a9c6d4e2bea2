"""Online DPO: which answers become pairs, that ties and the trainer's KL say nothing, and a whole run."""

from types import SimpleNamespace

import pytest
import torch

from lmrl.algorithms.rollout import Rollout
from lmrl.errors import SettingsError
from lmrl_online_dpo import OnlineDPO, OnlineDPOSettings, best_and_worst


class Rows(SimpleNamespace):
    def select(self, rows):
        return Rows(places=self.places[rows])


def rollout(scores, group, truncated=()):
    count = len(scores)
    gone = torch.tensor([row in truncated for row in range(count)])
    columns = torch.zeros(count, 2)
    return Rollout(
        inputs=Rows(places=torch.arange(count)),
        action_mask=torch.ones(count, 2, dtype=torch.bool),
        sampler_logprobs=columns,
        rewards=columns,
        scores=torch.tensor(scores),
        terminated=~gone,
        truncated=gone,
        group=torch.tensor(group),
        declared={"reference_logprobs": columns},
    )


def test_the_best_is_paired_with_the_worst_of_its_group():
    pairs = OnlineDPO(OnlineDPOSettings()).pairs(rollout([0.1, 3.0, -1.0, 9.0, 2.0, 2.0], [4, 4, 4, 0, 0, 0]))
    assert pairs.chosen.inputs.places.tolist() == [3, 1], "one pair per group, in the order of their numbers"
    assert pairs.rejected.inputs.places.tolist() == [4, 2]
    assert pairs.action_mask.all()


def test_ties_stay_as_pairs_that_count_for_nothing():
    pairs = OnlineDPO(OnlineDPOSettings()).pairs(rollout([1.0, 1.0, 0.0, 2.0], [0, 0, 1, 1]))
    assert len(pairs) == 2, "every rank computes as many"
    assert pairs.action_mask.any(1).tolist() == [False, True]


def test_a_withheld_score_is_no_score():
    """A truncated row's score stands as 0; it must neither beat -1 nor lose to 1."""
    best, worst, differ = best_and_worst(
        torch.tensor([-1.0, -2.0, 0.0, 1.0, 0.0, 0.0]),
        torch.tensor([0, 0, 0, 1, 1, 1]),
        torch.tensor([True, True, False, True, False, False]),
    )
    assert (best[0], worst[0]) == (0, 1)
    assert differ.tolist() == [True, False], "one scored answer makes no pair"
    everything_withheld = best_and_worst(torch.zeros(4), torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.bool))
    assert not everything_withheld[2].any()


def cats(prompts, responses):
    return [float(response.split().count("cat")) for response in responses]


def test_a_run_raises_the_reward(train):
    settings = {"beta": 0.05, "epochs": 2}
    records = train("online_dpo", reward=cats, settings=settings, group_size=6, updates=12, learning_rate=0.02)
    assert records[1]["optimizer/margin"] != 0, "the second epoch's pairs have moved"
    assert records[-1]["evaluation/reward"] > records[0]["evaluation/reward"] + 0.2
    assert records[-1]["rollout/kl"] > 0.01


def test_the_trainers_kl_changes_nothing(tiny_folder, tmp_path):
    """The KL is in DPO's loss; shaping rewards or adding a penalty would count it twice."""
    from lmrl.config import build
    from lmrl.reporting.metrics import read_metrics
    from lmrl.stages.rl import RLConfig, rl

    losses = []
    for number, kl in enumerate(({"beta": 0.0}, {"beta": 5.0}, {"beta": 5.0, "placement": "loss", "estimator": "k3"})):
        config = {
            "model": str(tiny_folder),
            "run": {"folder": str(tmp_path / str(number)), "device": "cpu"},
            "sampling": {"max_new_tokens": 4},
            "train": {"updates": 3, "prompts_per_update": 2, "group_size": 3, "learning_rate": 0.01},
            "optimizer": {"name": "online_dpo"},
            "evaluation": {"prompts": 0},
            "kl": kl,
        }
        rl(build(RLConfig, config), reward=cats, prompts=["the cat", "a dog"], progress=False)
        losses.append([record["optimizer/loss"] for record in read_metrics(tmp_path / str(number))[1:]])
    assert losses[0] == losses[1] == losses[2]


def test_a_batch_of_ties_moves_nothing(train):
    records = train("online_dpo", group_size=2, updates=2)
    assert records[-1]["optimizer/loss"] == 0 and records[-1]["optimizer/gradient_norm"] == 0


def test_microbatches_change_nothing(train):
    logged = []
    for tokens in (1, 100_000):
        records = train("online_dpo", reward=cats, group_size=4, microbatch_tokens=tokens, folder=str(tokens))
        logged.append([record["optimizer/loss"] for record in records[1:]])
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)


def test_what_it_cannot_learn_from_is_refused(train, pairs):
    with pytest.raises(SettingsError, match=r"compares at least 2 responses.*group_size is 1"):
        train("online_dpo", reward=cats)
    with pytest.raises(SettingsError, match="learns from what it samples"):
        train("online_dpo", pairs, group_size=2)
    with pytest.raises(SettingsError, match="beta is 0"):
        train("online_dpo", reward=cats, group_size=2, settings={"beta": 0.0})
