"""Replay: what is stored and computed anew, that weights make it unbiased, resumes, ranks, and what is refused."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrl import Needs, PluginManager, RLTrainer, SettingsError
from lmrl.algorithms import KLSettings, Samples, Sequences
from lmrl.algorithms.kl import shape_rewards
from lmrl.algorithms.rollout import Scored
from lmrl.models.text_policy import score_logprobs
from lmrl.stages.rl.config import ReplaySettings
from lmrl.stages.rl.replay import ReplayBuffer, restored, stored
from lmrl.testing.exact import policy_parameters
from lmrl.testing.exact_policy import EnumeratedPolicy
from lmrl.testing.exact_problems import random_problem
from lmrl.testing.exact_rollouts import make_rollout
from lmrl.testing.thread_ranks import ThreadAccelerator
from lmrl.training.update import Updater
from lmrl.training.update_settings import TrainSettings

TEXTS = ["the cat", "a dog", "the dog sat", "a", "home", "far .", "a cat ran", "the"]
SMALL = {"group_size": 3, "prompts_per_update": 4, "max_new_tokens": 5, "device": "cpu", "learning_rate": 0.01}


def cats(prompts, completions):
    return [float(completion.split().count("cat")) for completion in completions]


def trainer_of(folder, **changes):
    return RLTrainer(folder, **{"optimizer": "reinforce", "prompts": TEXTS, "reward": cats, **SMALL, **changes})


def numbers(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def rollouts(trainer, count):
    """Make updates; return their rollouts and metrics, and the policy's log-probabilities at the start of each."""
    found, now = [], []
    trainer.drawn = lambda one: (
        found.append(one.experience),
        now.append(score_logprobs(trainer.policy, one.experience.inputs, trainer.texts.spec, 10_000)),
    )
    return found, list(trainer.steps(count)), now


def test_old_groups_stand_below_the_new_ones_and_are_completed_by_todays_policy(tiny_folder):
    trainer = trainer_of(tiny_folder, replay={"share": 0.5, "window": 2}, beta=0.3, importance_cap=100.0)
    found, metrics, now = rollouts(trainer, 4)
    assert [len(rollout) for rollout in found] == [12, 24, 24, 24]
    assert [one["replay/share"] for one in metrics] == [0, 0.5, 0.5, 0.5] and "replay/age" not in metrics[0]
    rows_of = [{row: place for place, row in enumerate(rows(rollout)[:12])} for rollout in found]
    for number, (rollout, logprobs, one) in enumerate(zip(found, now, metrics, strict=True)):
        mask, versions = rollout.action_mask, rollout.policy_version
        assert rollout.group.unique(return_counts=True)[1].tolist() == [3] * (len(rollout) // 3)
        assert torch.allclose(rollout.proximal_logprobs, logprobs, atol=1e-5)
        assert (versions[:12][mask[:12]] == number).all()
        ages = [number - int(versions[row, 0]) for row in range(12, len(rollout))]
        assert all(1 <= age <= 2 for age in ages)
        assert not ages or one["replay/age"] == pytest.approx(sum(ages) / len(ages))
        reference = reference_of(trainer, rollout)
        kl = KLSettings(beta=0.3)
        expected = shape_rewards(rollout.scores, rollout.proximal_logprobs, reference, mask, kl, 0.3)
        assert torch.allclose(rollout.rewards, expected, atol=1e-4)
        for row, age in zip(range(12, len(rollout)), ages, strict=True):
            before = found[number - age]
            place = rows_of[number - age][rows(rollout)[row]]
            actions = int(mask[row].sum())
            assert rollout.scores[row] == before.scores[place]
            assert torch.equal(rollout.sampler_logprobs[row, :actions], before.sampler_logprobs[place, :actions])


def rows(rollout):
    """Return the tokens of each row."""
    lengths = rollout.inputs.lengths.tolist()
    return [tuple(row[:length]) for row, length in zip(rollout.inputs.ids.tolist(), lengths, strict=True)]


def reference_of(trainer, rollout):
    return trainer.maker.reference_logprobs(rollout)


def test_metrics_of_the_rollout_are_of_the_new_groups(tiny_folder):
    trainer = trainer_of(tiny_folder, replay={"share": 0.75}, beta=0.1)
    found, metrics, now = rollouts(trainer, 3)
    last, one, logprobs = found[-1], metrics[-1], now[-1]
    assert len(last) == 36, "two updates of 12 rows are stored: less than the share asks for"
    assert one["rollout/reward"] == pytest.approx(float(last.scores[:12].mean()), abs=1e-6)
    kl = (logprobs - reference_of(trainer, last))[:12].sum(1).mean()
    assert one["rollout/kl"] == pytest.approx(float(kl), abs=1e-5)
    assert one["rollout/scored"] == 12 and 0 < one["optimizer/effective_sample_share"] <= 1


@pytest.mark.parametrize("optimizer", ["grpo", "ppo", {"name": "grpo", "dynamic_sampling": True}], ids=str)
def test_a_restored_trainer_continues_bit_for_bit(tiny_folder, tmp_path, optimizer):
    changes = {"optimizer": optimizer, "replay": {"share": 0.5, "window": 3}, "reward": cats}
    whole, first, again = (trainer_of(tiny_folder, **changes) for _ in range(3))
    expected = [numbers(metrics) for metrics in whole.steps(5)]
    list(first.steps(2))
    again.restore(first.save(tmp_path / "checkpoint"))
    assert [numbers(metrics) for metrics in again.steps(3)] == expected[2:]
    for one, other in zip(again.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_a_share_nothing_is_stored(tiny_folder):
    trainer = trainer_of(tiny_folder)
    assert trainer.source.replay is None and trainer.source.state_dict() == {}
    assert not any(name.startswith("replay/") for name in trainer.step())


def test_a_group_survives_storing(toy):
    world = toy()
    scored = world.maker.sample(world.prompts(12, 3), 0)
    group = scored.select(torch.arange(3, 6))
    record = json.loads(json.dumps(stored(group), default=lambda tensor: tensor.tolist()))
    again = restored(stored(group), torch.device("cpu"))
    assert record["responses"] == group.responses == again.responses
    width = int(group.samples.action_mask.sum(1).max())
    assert torch.equal(again.samples.sampler_logprobs, group.samples.sampler_logprobs[:, :width])
    assert torch.equal(again.samples.inputs.ids, group.samples.inputs.ids) and torch.equal(again.scores, group.scores)


@settings(max_examples=20)
@given(share=st.floats(0.25, 0.8), kept=st.integers(1, 4), batch=st.integers(2, 6), seed=st.integers(0, 3))
def test_choices_are_distinct_recent_and_as_many_as_the_share_says(share, kept, batch, seed):
    buffer = ReplayBuffer(ReplaySettings(share, kept), batch, seed, ThreadAccelerator())
    fresh = scored_rows(batch)
    for update in range(1, 7):
        there = min(update - 1, kept) * batch
        joined, metrics = buffer.mixed(update, fresh)
        count = min(round(batch * share / (1 - share)), there)
        assert len(joined.scores) == batch + count and len(buffer.groups) == min(update, kept) * batch
        assert metrics["replay/share"] == pytest.approx(count / (batch + count))
        assert joined.samples.group.tolist() == list(range(batch + count))
        assert len(set(joined.responses[batch:])) == count or update > 2
        assert {group.update for group in buffer.groups} == set(range(max(1, update - kept + 1), update + 1))


def scored_rows(count):
    inputs = Sequences.of_pairs([([2], [3, 1])] * count)
    mask, no = torch.ones(count, 2, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    zeros = torch.zeros(count, 2)
    samples = Samples(inputs, mask, zeros, ~no, no, no.to(torch.int8), torch.arange(count), zeros.long())
    return Scored(samples, ["p"] * count, [f"r{row}" for row in range(count)], torch.arange(count).float(), {})


class Recorder(torch.optim.Optimizer):
    """Adds up weighted gradients where an optimizer of torch would step."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1.0})
        self.parameters = parameters
        self.sums, self.weight = [torch.zeros_like(one, dtype=torch.float64) for one in parameters], 1.0

    def step(self, closure=None):
        for one, total in zip(self.parameters, self.sums, strict=True):
            if one.grad is not None:
                total.add_(one.grad, alpha=self.weight)


def mean_update(problem, policy, sampler, level):
    """Return the mean gradient of REINFORCE from samples of ``sampler``, by enumeration of all responses."""
    spec = PluginManager().get("optimizer", "reinforce")
    options = replace(spec.settings(), loss_aggregation="sequence_sum", epochs=1, minibatches=1)
    kl, needs = KLSettings(beta=0.0), Needs()
    old, new = problem.table(sampler), problem.table(policy)
    recorder = Recorder(policy_parameters(policy))
    face = EnumeratedPolicy(problem, policy, needs)
    train = TrainSettings(max_gradient_norm=0.0, importance_cap=1e9, importance_level=level)
    for row, weight in enumerate(old.log_probabilities.detach().exp().flatten().tolist()):
        method = spec.build(options)
        rows = torch.tensor([row])
        rollout = make_rollout(problem, old, rows, torch.zeros(1, dtype=torch.long), kl, needs)
        rollout = replace(rollout, proximal_logprobs=new.logprobs.detach()[rows])
        recorder.weight = weight / len(problem.prompts)
        updater = Updater(method, face, train, kl=kl, accelerator=ThreadAccelerator(), torch_optimizer=recorder)
        updater.learn(rollout, update=1, seed=0)
    return torch.cat([total.flatten() for total in recorder.sums])


@pytest.mark.parametrize(
    ("tokens", "level", "exact"), [(1, "token", True), (3, "sequence", True), (3, "token", False)], ids=str
)
def test_weights_without_a_cap_give_the_update_of_the_policys_own_samples(tokens, level, exact):
    """Exactly so at the level of sequences; of tokens only where a response has one."""
    problem = random_problem(prompts=2, vocabulary=3, max_new_tokens=tokens)
    policy, sampler = problem.policy(), problem.policy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in policy_parameters(policy):
            one.add_(0.3 * torch.randn(one.shape, generator=generator))
    expected = mean_update(problem, policy, policy, level)
    plain = problem.gradient(policy, 0.0)
    assert torch.allclose(-expected.float(), plain, atol=1e-5), "the objective's own gradient"
    found = mean_update(problem, policy, sampler, level)
    assert expected.abs().max() > 1e-2
    assert torch.allclose(found, expected, atol=1e-5) == exact


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_old_samples_are_learned_from(tiny_folder, level):
    changes = {"prompts_per_update": 4, "group_size": 8, "max_new_tokens": 4, "beta": 0.0, "importance_level": level}
    trainer = trainer_of(tiny_folder, replay={"share": 0.75, "window": 3}, **changes)
    rewards = [metrics["rollout/reward"] for metrics in trainer.steps(12)]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "online_dpo"}, "optimizer 'online_dpo' learns from pairs, which have no advantages to weight"),
        ({"optimizer": "raft"}, r"optimizer 'raft' declares Needs\(importance=False\)"),
        ({"optimizer": "remax"}, "optimizer 'remax' makes further requests"),
        ({"optimizer": "nlpo"}, "optimizer 'nlpo' restricts the tokens that are drawn"),
        ({"kl": {"placement": "loss"}}, "kl.placement is loss, where no importance weight corrects the penalty"),
        ({"replay": {"share": 1.0}}, "replay.share is 1.0; expected a number from 0 to below 1"),
        ({"replay": {"share": 0.5, "window": 0}}, "replay.window is 0"),
        ({"replay": {"share": 0.01}}, "replay.share is 0.01, so 0 groups are replayed beside the 4 new ones"),
        ({"replay": {"window": 3}}, r"replay\.window is set as a keyword, but this run reads it only with"),
    ],
    ids=str,
)
def test_what_cannot_be_replayed_is_refused(tiny_folder, changes, message):
    with pytest.raises(SettingsError, match=message):
        trainer_of(tiny_folder, **{"replay": {"share": 0.5}, **changes})


def test_data_are_not_replayed(tiny_folder):
    pairs = [{"prompt": "the cat", "chosen": " sat", "rejected": " ran"}] * 4
    with pytest.raises(SettingsError, match=r"replay\.share is set as a keyword, but this run reads it only with"):
        RLTrainer(tiny_folder, optimizer="dpo", data=pairs, prompts=TEXTS, replay={"share": 0.5})


WATCH = """
import json
from pathlib import Path
from accelerate import PartialState
from lmrl import hookimpl

@hookimpl
def lmrl_rollout(run, rollout):
    state = PartialState()
    half = 12 // state.num_processes
    rows = rollout.inputs.action_rows()
    with Path(__file__).with_name(f"{state.num_processes}-{state.process_index}.jsonl").open("a") as file:
        file.write(json.dumps([rows[:half], rows[half:]]) + chr(10))
"""


@pytest.mark.slow
def test_two_processes_replay_the_groups_of_one(tiny_folder, tmp_path):
    spec = importlib.util.spec_from_file_location("ranks", Path(__file__).with_name("test_ranks.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    script = tmp_path / "run.py"
    script.write_text(module.RUN)
    (tmp_path / "watch.py").write_text(WATCH)
    for count in (1, 2):
        config = {
            "model": str(tiny_folder),
            "run": {"folder": str(tmp_path / f"run{count}"), "device": "cpu", "precision": "no"},
            "sampling": {"max_new_tokens": 4},
            "train": {"updates": 3, "prompts_per_update": 4, "group_size": 3, "learning_rate": 0.003},
            "optimizer": {"name": "grpo", "grpo": {"minibatches": 1}},
            "replay": {"share": 0.5, "window": 2},
            "evaluation": {"prompts": 0},
            "trackers": [],
        }
        module.run_ranks(count, script, [json.dumps(config)])
    actions = [[json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()] for name in ("1-0", "2-0", "2-1")]
    one, first, second = actions
    assert [len(rows) for rows in one[2]] == [12, 12]
    assert [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(first, second, strict=True)] == one
