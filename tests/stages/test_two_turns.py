"""Trajectories of two turns through sampling, scoring and the update: what may change nothing, and a resumed run."""

import copy
import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from lmrl.engines.local.engine import TransformersEngine
from lmrl.engines.local.workers import ParallelEngine
from lmrl.engines.settings import TransformersEngineSettings
from lmrl.models.layouts.padded import PaddedLayout
from lmrl.models.text_policy import score_logprobs
from lmrl.plugins import PluginManager
from lmrl.testing.thread_ranks import run_ranks

spec = importlib.util.spec_from_file_location("two_turns", Path(__file__).parent / "two_turns.py")
two_turns = importlib.util.module_from_spec(spec)
spec.loader.exec_module(two_turns)
OPTIMIZERS = ["ppo", "grpo", "reinforce_pp", "cispo"]


def optimizer_of(name, **settings):
    plugin = PluginManager().get("optimizer", name)
    return plugin.build(dataclasses.replace(plugin.settings(), epochs=1, minibatches=1, **settings))


def change_of(world, rollout, name, accelerator=None, **train):
    """Return what one step changes, and its metrics."""
    world = copy.deepcopy(world)
    before = world.parameters()
    metrics = world.updater(optimizer_of(name), accelerator or Accelerator(cpu=True), **train).learn(
        rollout, beta=0.05, update=1, seed=0
    )
    return world.parameters() - before, metrics


@pytest.fixture(scope="module")
def world(tiny_folder):
    made = two_turns.TwoTurns(tiny_folder)
    torch.nn.init.normal_(made.policy.value_head.weight, generator=torch.Generator().manual_seed(0))
    return made


@pytest.fixture(scope="module")
def whole(world):
    return world.rollout(1)


@pytest.fixture(scope="module", params=["whole", "holes"])
def rollout(request, whole):
    """The batch, and the same with actions that count for nothing in the middle of rows, and a row without any."""
    if request.param == "whole":
        return whole
    keep = torch.rand(whole.action_mask.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    keep[7] = False
    mask = whole.action_mask & keep
    assert (mask.int().diff(dim=1) > 0).any(), "there are holes"
    columns = ("sampler_logprobs", "rewards", "policy_version", "turn")
    changed = {name: getattr(whole, name).masked_fill(~mask, 0) for name in columns}
    declared = {
        name: column.masked_fill(~mask, 0) if column.ndim == 2 else column for name, column in whole.declared.items()
    }
    return dataclasses.replace(
        whole, action_mask=mask, loss_mask=None, declared=declared, proximal_logprobs=None, **changed
    )


def test_the_case_is_one_of_several_sequences_turns_and_unscored_rows(whole):
    rollout = whole
    assert rollout.inputs.sequence_counts.unique().tolist() == [1, 2]
    assert rollout.turn[rollout.action_mask].unique().tolist() == [0, 1]
    assert (rollout.turn.diff(dim=1)[rollout.action_mask[:, 1:]] >= 0).all(), "columns are in the order of sampling"
    assert (~rollout.scored).sum() == 2 and (rollout.policy_version[rollout.action_mask] == 1).all()


def test_what_was_recorded_is_what_the_policy_scores(world, whole):
    """Sampled with a cache, turn by turn; scored again in one pass over packed sequences."""
    again = score_logprobs(world.policy, whole.inputs, two_turns.SPEC, two_turns.BUDGET)
    assert torch.allclose(again, whole.sampler_logprobs, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_microbatches_and_order_change_no_step(world, rollout, name):
    expected, metrics = change_of(world, rollout, name)
    assert expected.abs().max() > 1e-4
    for tokens in (60, 1):
        found, _ = change_of(world, rollout, name, microbatch_tokens=tokens)
        assert torch.allclose(found, expected, atol=1e-6)
    order = torch.tensor([9, 10, 11, 3, 4, 5, 0, 1, 2, 6, 7, 8])
    found, again = change_of(world, rollout.select(order), name)
    assert torch.allclose(found, expected, atol=1e-6)
    assert again == pytest.approx(metrics, abs=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_padded_layout_takes_the_same_step(world, rollout, name):
    expected, _ = change_of(world, rollout, name)
    padded = copy.deepcopy(world)
    padded.policy.layout = PaddedLayout()
    found, _ = change_of(padded, rollout, name)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_ranks_take_the_step_of_one(world, rollout, name):
    """Ranks hold equally many trajectories, not sequences."""
    expected, metrics = change_of(world, rollout, name)

    def work(accelerator, rank):
        mine = rollout.select(torch.arange(6 * rank, 6 * rank + 6))
        mine = dataclasses.replace(mine, group=mine.group - int(mine.group.min()))
        return change_of(world, mine, name, accelerator)

    for found, again in run_ranks(work, 2):
        assert torch.allclose(found, expected, atol=1e-6)
        assert again == pytest.approx(metrics, abs=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_junk_outside_the_columns_and_behind_the_sequences_changes_nothing(world, rollout, name):
    expected, _ = change_of(world, rollout, name)
    pad = torch.nn.functional.pad
    inputs = dataclasses.replace(
        rollout.inputs, ids=pad(rollout.inputs.ids, (0, 3), value=7), sampled=pad(rollout.inputs.sampled, (0, 3))
    )
    mask = pad(rollout.action_mask, (0, 2))

    def junk(column):
        return pad(column, (0, 2)).masked_fill(~mask, 100) if column.ndim == 2 else column

    wide = dataclasses.replace(
        rollout,
        inputs=inputs,
        action_mask=mask,
        loss_mask=pad(rollout.loss_mask, (0, 2)),
        declared={key: junk(column) for key, column in rollout.declared.items()},
        rewards=pad(rollout.rewards, (0, 2)),  # 0 outside the mask by contract: methods add them up
        **{
            key: junk(getattr(rollout, key))
            for key in ("sampler_logprobs", "proximal_logprobs", "turn", "policy_version")
        },
    )
    found, _ = change_of(world, wide, name)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unscored_rows_teach_nothing(world, rollout, name):
    """Other scores and rewards in unscored rows change no step."""
    expected, _ = change_of(world, rollout, name)
    hidden = ~rollout.scored
    other = dataclasses.replace(
        rollout,
        scores=rollout.scores.masked_fill(hidden, 50.0),
        rewards=rollout.rewards.masked_fill(hidden[:, None] & rollout.action_mask, 50.0),
    )
    found, _ = change_of(world, other, name)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"rows": 3, "compact_share": 0.0}, {"fast_path": False}, {"workers": 2, "rows": 4}],
    ids=str,
)
def test_episodes_do_not_depend_on_how_they_are_sampled(world, whole, settings):
    engine = (ParallelEngine if "workers" in settings else TransformersEngine)(TransformersEngineSettings(**settings))
    other = two_turns.TwoTurns.__new__(two_turns.TwoTurns)
    other.__dict__ |= world.__dict__ | {"engine": engine}
    found = other.rollout(1)
    engine.close()
    assert torch.equal(found.inputs.ids, whole.inputs.ids) and torch.equal(found.turn, whole.turn)
    assert torch.allclose(found.sampler_logprobs, whole.sampler_logprobs, atol=1e-5)


def test_the_episodes_of_two_ranks_are_those_of_one(world, whole):
    """Seeds derive from the number of a group in the whole batch."""
    for rank in range(2):
        groups = tuple(group for group in range(2 * rank, 2 * rank + 2) for _ in range(3))
        mine = world.rollout(1, groups)
        assert mine.inputs.action_rows() == whole.inputs.action_rows()[6 * rank : 6 * rank + 6]


def train(folder, steps, state=None):
    """Train up to a step, from the beginning or from a state; return the metrics, tokens and state of the end."""
    torch.manual_seed(0)
    world = two_turns.TwoTurns(folder)
    torch_optimizer = torch.optim.AdamW(world.policy.parameters(), lr=0.01)
    first = 0
    if state is not None:
        world.policy.load_state_dict(state["policy"])
        torch_optimizer.load_state_dict(state["torch_optimizer"])
        first = state["step"]
    updater = world.updater(optimizer_of("ppo"), Accelerator(cpu=True), torch_optimizer, updates=4)
    logged = []
    for step in range(first, steps):
        made = world.rollout(step)
        logged.append(
            (
                made.inputs.ids.tolist(),
                made.sampler_logprobs.tolist(),
                updater.learn(made, beta=0.05, update=step + 1, seed=step),
            )
        )
    return logged, copy.deepcopy(
        {"policy": world.policy.state_dict(), "torch_optimizer": torch_optimizer.state_dict(), "step": steps}
    )


def test_a_run_in_lockstep_resumes_bit_for_bit(tiny_folder):
    whole, end = train(tiny_folder, 4)
    first, middle = train(tiny_folder, 2)
    rest, resumed = train(tiny_folder, 4, middle)
    assert first + rest == whole
    for name, tensor in end["policy"].items():
        assert torch.equal(tensor, resumed["policy"][name]), name
    assert whole[0][0] != whole[3][0], "it learned something"
