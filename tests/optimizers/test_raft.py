"""RAFT against numbers worked out by hand: what is kept, and that nothing else counts."""

import pytest
import torch

from lmrl.errors import SettingsError

# Answers of one to four tokens to two prompts; the third and the fourth are the best of theirs.
LENGTHS, SCORES, GROUP = [1, 4, 3, 1], [0.0, 2.0, 5.0, 8.0], [3, -7, 3, -7]
MASK = [[column < length for column in range(4)] for length in LENGTHS]
BEST = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None] * torch.tensor(MASK)


def rollout(by_hand, scores=SCORES, **kwargs):
    arguments = {"mask": MASK, "scores": scores, "group": GROUP} | kwargs
    return by_hand.rollout([[0.0] * 4] * 4, **arguments)


def kept(by_hand, keep=1, **kwargs):
    found = by_hand.make("raft", keep=keep).advantages(rollout(by_hand, **kwargs))
    return found.advantages.amax(1).bool().tolist()


def test_the_best_of_each_prompt_is_kept(by_hand):
    found = by_hand.make("raft").advantages(rollout(by_hand))
    assert torch.equal(found.advantages, BEST)
    assert found.metrics["kept_score"].mean().item() == pytest.approx((5 + 8) / 2)


def test_more_than_one_may_be_kept_and_the_earlier_of_equals(by_hand):
    three = {"group": [0, 0, 0, 0]}
    assert kept(by_hand, keep=2, **three) == [False, False, True, True]
    assert kept(by_hand, scores=[1.0, 1.0, 1.0, 1.0]) == [True, True, False, False]
    assert kept(by_hand, keep=3, scores=[2.0, 1.0, 2.0, 1.0], **three) == [True, True, True, False]


def test_an_answer_without_a_score_is_never_kept(by_hand):
    """The score of a truncated answer is withheld, and stands as 0 above any penalty."""
    scores = [0.0, -2.0, -5.0, -8.0]
    assert kept(by_hand, scores=scores, truncated=[True, False, False, False]) == [False, True, True, False]
    empty = [MASK[0], MASK[1], MASK[2], [False] * 4]
    assert kept(by_hand, mask=empty) == [False, True, True, False]


@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize("microbatch_tokens", [1000, 1])
@pytest.mark.parametrize(
    ("aggregation", "weights"),
    [("token_mean", {1: (1 / 4, 1 / 4), 2: (1 / 3, 1)}), ("sequence_mean", {1: (1 / 6, 1 / 2), 2: (1 / 3, 1)})],
)
def test_the_mean_is_that_of_the_kept_alone(by_hand, minibatches, microbatch_tokens, aggregation, weights):
    """Each of the kept answers' 3 and 1 tokens, in one minibatch of both prompts or in one of each."""
    optimizer = by_hand.make("raft", loss_aggregation=aggregation, minibatches=minibatches)
    table = by_hand.table([[-1.0] * 4] * 4)
    found = by_hand.gradient(optimizer, rollout(by_hand), table, microbatch_tokens=microbatch_tokens)
    third, fourth = weights[minibatches]
    assert torch.allclose(found, -torch.tensor([0.0, 0.0, third, fourth])[:, None] * BEST)


def test_trap_29_empty_rows_count_for_nothing(by_hand):
    """A prompt whose second answer has no action: the means are over its other one and the other prompt's best."""
    empty = rollout(by_hand, mask=[MASK[0], MASK[1], MASK[2], [False] * 4])
    optimizer = by_hand.make("raft", loss_aggregation="sequence_mean")
    found = by_hand.gradient(optimizer, empty, by_hand.table([[-1.0] * 4] * 4))
    assert torch.allclose(found.sum(1), -torch.tensor([0.0, 1 / 2, 1 / 2, 0.0]))
    assert by_hand.metrics["optimizer/kept_score"] == pytest.approx((2 + 5) / 2)


def test_a_minibatch_with_nothing_to_keep_takes_no_step(by_hand):
    everything = rollout(by_hand, truncated=[True] * 4)
    found = by_hand.gradient(by_hand.make("raft"), everything, by_hand.table([[-1.0] * 4] * 4))
    assert torch.equal(found, torch.zeros(4, 4))
    assert by_hand.metrics["optimizer/loss"] == 0


def test_keeping_everything_is_refused(by_hand, train):
    with pytest.raises(SettingsError, match=r"keep is 2, but there are 2 answers.*train\.group_size"):
        by_hand.make("raft", keep=2).advantages(rollout(by_hand))
    with pytest.raises(SettingsError, match="keep is 0; expected an integer >= 1"):
        by_hand.make("raft", keep=0)
    assert by_hand.needs("raft").minimum_group_size == 2
    with pytest.raises(SettingsError, match=r"at least 2 responses.*train\.group_size"):
        train("raft", group_size=1)


def test_a_run_imitates_the_best(train):
    records = train(
        "raft",
        reward=lambda prompts, responses: [float(response.count("cat")) for response in responses],
        settings={"minibatches": 2},
        group_size=4,
    )
    assert records[-1]["rollout/reward"] > records[1]["rollout/reward"]
    assert all(record["optimizer/kept_score"] >= record["rollout/reward"] for record in records[1:-1])
