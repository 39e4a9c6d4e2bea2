"""Columns of preference pairs: those of the rollout's rows, through every way in which an update cuts them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmrl import Loss, Needs, OptimizerSettings, OptimizerSpec, PolicyOptimizer
from lmrl.algorithms.experience import PairBatch, Responses
from lmrl.errors import UnknownColumn
from lmrl.testing.toy_experience import Request, make_rollout
from lmrl.testing.toy_policy import ToyModel
from lmrl.testing.trial import Trial

OWN = ("scores", "sampler_logprobs", "proximal_logprobs")


@pytest.fixture(scope="module")
def rollout():
    made = make_rollout(Request(ToyModel(1), ToyModel(2), seed=3))
    return replace(made, proximal_logprobs=made.sampler_logprobs - 0.25)


@given(data=st.data())
def test_a_pairs_columns_are_those_of_its_rows(rollout, data):
    places = st.lists(st.tuples(*[st.integers(0, len(rollout) - 1)] * 2, st.booleans()), min_size=1, max_size=9)
    chosen, rejected, kept = map(torch.tensor, zip(*data.draw(places), strict=True))
    extra = {"returns": rollout.rewards.sum(1), "turns": rollout.turn}
    pairs = PairBatch.from_rollout(rollout, chosen, rejected, kept, extra)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(chosen) - 1), max_size=9)), dtype=torch.long)
    part = pairs.select(rows)
    for side, places in ((part.chosen, chosen[rows]), (part.rejected, rejected[rows])):
        assert set(side.columns) == {*OWN, *extra}
        for name in OWN:
            assert torch.equal(side[name], getattr(rollout, name)[places])
        for name, column in extra.items():
            assert torch.equal(side[name], column[places])
        assert torch.equal(side.masked(kept[rows])["returns"], extra["returns"][places])
        assert not side.action_mask[~kept[rows]].any()


def test_a_column_that_is_not_there_is_named_with_the_nearest(rollout):
    zero = torch.tensor([0])
    pairs = PairBatch.from_rollout(rollout, zero, zero, zero == 0, {"returns": rollout.scores})
    with pytest.raises(UnknownColumn, match=r"'return'; did you mean 'returns'\? Known: proximal_logprobs, returns, "):
        pairs.chosen["return"]
    with pytest.raises(KeyError, match=r"unknown column 'scores'. None is known.*where every ranking has them"):
        Responses(rollout.inputs, rollout.action_mask)["scores"]


def test_a_column_of_other_rows_is_refused(rollout):
    zero = torch.tensor([0])
    with pytest.raises(
        ValueError, match=rf"'returns' has 3 rows; expected one for each of the rollout's {len(rollout)}"
    ):
        PairBatch.from_rollout(rollout, zero, zero, zero == 0, {"returns": torch.zeros(3)})


class Columns(PolicyOptimizer):
    """Pairs of neighbours, and a loss that reads columns of both shapes and both sides."""

    def pairs(self, rollout):
        rows = torch.arange(0, len(rollout), 2)
        kept = rollout.scored[rows] & rollout.scored[rows + 1]
        return PairBatch.from_rollout(rollout, rows, rows + 1, kept, {"returns": rollout.rewards.sum(1)})

    def loss(self, policy, batch):
        gaps = [
            side["returns"] * (policy.evaluate(side).logprobs - side["proximal_logprobs"]).sum(1)
            for side in (batch.chosen, batch.rejected)
        ]
        return Loss((gaps[0] - gaps[1] - batch.chosen["scores"]) ** 2)


@given(budget=st.integers(1, 60), seed=st.integers(0, 99), share=st.sampled_from([0, 1, 2, 3]))
def test_any_split_into_microbatches_and_ranks_is_one_update(budget, seed, share):
    trial = Trial(OptimizerSpec("columns", Columns, OptimizerSettings, Needs(minimum_group_size=2)))
    data = trial.experience(seed)
    whole = trial.update(data)
    assert trial.difference(whole, trial.update(data, microbatch=budget)) == 0
    cut = 4 * (share + 1)
    shares = [data.select(torch.arange(0, cut)), data.select(torch.arange(cut, len(data)))]
    assert trial.difference(whole, trial.update_over_ranks(shares)) == 0
