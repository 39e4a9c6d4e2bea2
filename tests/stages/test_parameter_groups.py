"""Parameter groups with a learning rate of their own: the critic's warm-up, a plugin's heads, and what is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmrl import Loss, Needs, OptimizerSpec, PluginManager, RLTrainer, SettingsError
from lmrl.algorithms import Advantages, OptimizerSettings, PolicyOptimizer, TrainedParameters
from lmrl.errors import PluginError
from lmrl.testing import check_optimizer
from lmrl.testing.thread_ranks import run_ranks
from lmrl.testing.trial import Trial, parameter_groups
from lmrl.training.schedule import GroupRates, Rate
from lmrl.training.update_settings import TrainSettings

PROMPTS = ["the cat", "a dog", "the dog sat", "a"]
SMALL = {"group_size": 2, "prompts_per_update": 2, "max_new_tokens": 4, "device": "cpu", "learning_rate": 0.01}
PPO = {"name": "ppo", "epochs": 2, "minibatches": 1}


def cats(prompts, completions):
    return [float(completion.split().count("cat")) for completion in completions]


def trainer_of(folder, **changes):
    return RLTrainer(folder, **{"optimizer": PPO, "prompts": PROMPTS, "reward": cats, **SMALL, **changes})


def flat(parameters):
    return torch.cat([parameter.detach().flatten().clone() for parameter in parameters])


def numbers(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


@pytest.mark.parametrize("changes", [{}, {"separate_critic": True}, {"adapter": {"method": "lora"}}], ids=str)
def test_the_policy_stands_still_while_the_value_function_learns(tiny_folder, changes):
    trainer = trainer_of(tiny_folder, critic_warmup_updates=2, **changes)
    policy, head = trainer.policy.policy_parameters(), trainer.policy.value_head.weight
    start, before = flat(policy), head.detach().clone()
    for metrics in trainer.steps(2):
        assert metrics["optimizer/learning_rate"] == 0 and metrics["optimizer/learning_rate_value"] == 1e-3
        assert metrics["optimizer/steps"] == 2 and metrics["optimizer/approximate_kl"] == pytest.approx(0, abs=1e-6)
    assert torch.equal(flat(policy), start) and not torch.equal(head, before)
    state = trainer.updater.torch_optimizer.state
    assert not any(parameter in state for parameter in policy), "no moments of gradients that were dropped"
    assert trainer.step()["optimizer/learning_rate"] == 0.01
    assert not torch.equal(flat(policy), start)


def test_the_limit_of_the_norm_is_of_what_moves(toy):
    """Without the policy's gradient, which would take up the most of it."""
    world = toy()
    norms = {}
    for wait in (0, 1):
        groups = [
            {"params": list(world.policy.model.parameters()), "role": "policy"},
            {"params": list(world.policy.value_head.parameters()), "role": "value"},
        ]
        updater = world.updater(PluginManager().get("optimizer", "ppo").build(ppo_settings()))
        updater.torch_optimizer = torch.optim.SGD(groups, lr=0.0)
        updater.rates = GroupRates(updater.torch_optimizer, TrainSettings(critic_warmup_updates=wait))
        norms[wait] = updater.learn(world.rollout(), beta=0.0, update=1, seed=0)["optimizer/gradient_norm"]
    assert 0 < norms[1] < 0.9 * norms[0]


def ppo_settings():
    return replace(PluginManager().get("optimizer", "ppo").settings(), epochs=1, minibatches=1)


def test_warm_up_and_schedule_of_the_policy_begin_after_the_critics(tiny_folder):
    trainer = trainer_of(tiny_folder, critic_warmup_updates=1, warmup_updates=2, updates=5, schedule="linear")
    found = [(m["optimizer/learning_rate"], m["optimizer/learning_rate_value"]) for m in trainer.steps(5)]
    policy, value = zip(*found, strict=True)
    assert [round(rate / 0.01, 6) for rate in policy] == [0, 0.5, 1, 1, 0.5]
    assert [round(rate / 1e-3, 6) for rate in value] == [0.5, 1, 1, 0.666667, 0.333333]


def test_a_run_resumed_in_the_warm_up_is_the_undisturbed_one(tiny_folder, tmp_path):
    changes = {"critic_warmup_updates": 2, "warmup_updates": 2}
    whole, first, again = (trainer_of(tiny_folder, **changes) for _ in range(3))
    expected = [numbers(metrics) for metrics in whole.steps(4)]
    list(first.steps(1))
    again.restore(first.save(tmp_path / "checkpoint"))
    assert [numbers(metrics) for metrics in again.steps(3)] == expected[1:]
    assert torch.equal(flat(again.policy.parameters()), flat(whole.policy.parameters()))


def test_a_step_of_the_optimizers_own_waits_too(tiny_folder):
    trainer = trainer_of(tiny_folder, optimizer="trpo", critic_warmup_updates=1, separate_critic=True)
    start = flat(trainer.policy.policy_parameters())
    trainer.step()
    assert torch.equal(flat(trainer.policy.policy_parameters()), start)
    trainer.step()
    assert not torch.equal(flat(trainer.policy.policy_parameters()), start)


def test_two_ranks_warm_up_as_one():
    spec = PluginManager().get("optimizer", "ppo")
    trial = Trial(spec)
    data = trial.experience()
    rows = torch.arange(len(data))

    def learned(accelerator, rank):
        share = data.select(rows.chunk(accelerator.num_processes)[rank])
        model, optimizer = trial.policy.moved(0.0, seed=0), trial.build()
        policy = trial.toy_policy(optimizer, model)
        settings = TrainSettings(critic_warmup_updates=1, max_gradient_norm=0.5)
        adamw = torch.optim.AdamW(parameter_groups(model, 0.01))
        updater = trial.updater(optimizer, policy, settings, adamw, accelerator)
        updater.learn(share, update=1, seed=0)
        return flat(model.actor.parameters()), flat(model.critic.parameters())

    [one], (first, second) = run_ranks(learned, 1), run_ranks(learned, 2)
    assert torch.equal(one[0], flat(trial.policy.actor.parameters())) and torch.equal(first[0], one[0])
    assert not torch.equal(one[1], flat(trial.policy.critic.parameters()))
    assert torch.equal(first[1], second[1]) and torch.allclose(first[1], one[1], atol=1e-6)


class Levels(PolicyOptimizer):
    """A value head of its own, and one that it declares a group for."""

    group: TrainedParameters | None = None

    def heads(self, width, actions):
        self.made = nn.ModuleDict({"level": Level(width), "slow": Level(width)})
        return dict(self.made.items())

    def parameter_groups(self, heads):
        trained = list(heads["slow"].parameters())
        return [TrainedParameters(trained, "value", name="slow", learning_rate=0.5, warmup_updates=2, starts_at=2)]

    def advantages(self, rollout):
        return Advantages(rollout.rewards)

    def loss(self, policy, batch):
        now = policy.evaluate(batch)
        targets = batch.rollout.scores[:, None]
        errors = sum((now.head(name) - targets) ** 2 for name in ("level", "slow"))
        return Loss(errors - batch.advantages * now.logprobs)


class Level(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.level = nn.Linear(width, 1)

    def forward(self, hidden, ids):
        return self.level(hidden).squeeze(-1)


LEVELS = OptimizerSpec("levels", Levels, OptimizerSettings, Needs())


def test_heads_declare_a_rate_a_warm_up_and_a_start(tiny_folder):
    trainer = trainer_of(tiny_folder, optimizer=LEVELS, value_learning_rate=0.02)
    heads = trainer.policy.heads
    start, quick = flat(heads["slow"].parameters()), flat(heads["level"].parameters())
    metrics = list(trainer.steps(1))
    assert torch.equal(flat(heads["slow"].parameters()), start)
    assert not torch.equal(flat(heads["level"].parameters()), quick)
    metrics += trainer.steps(3)
    assert [one["optimizer/learning_rate_slow"] for one in metrics] == [0, 0.25, 0.5, 0.5]
    assert {one["optimizer/learning_rate_value"] for one in metrics} == {0.02}
    assert not torch.equal(flat(heads["slow"].parameters()), start)


def test_the_kit_takes_an_optimizer_with_groups():
    check_optimizer(LEVELS, checks=["contract", "microbatches", "ranks", "state"])


def test_a_checkpoint_without_the_keys_of_groups_is_taken(tiny_folder, tmp_path):
    """Version 0.2 before these groups wrote ``lr``, ``weight_decay`` and ``role`` alone."""
    trainer, again = (trainer_of(tiny_folder, warmup_updates=3) for _ in range(2))
    trainer.step()
    folder = trainer.save(tmp_path / "checkpoint")
    state = torch.load(folder / "trainer_state.pt", weights_only=True)
    for group in state["torch_optimizer"]["param_groups"]:
        for key in ("name", "schedule", "warmup_updates", "starts_at"):
            group.pop(key, None)
    torch.save(state, folder / "trainer_state.pt")
    again.restore(folder)
    assert numbers(again.step()) == numbers(trainer.step())


def test_a_rate_that_is_the_runs_changes_nothing_of_ilql(tiny_folder):
    rows = [
        {"prompt": "the cat", "completion": " sat .", "reward": 1.0},
        {"prompt": "a", "completion": " ran", "reward": 0.0},
    ]
    found = []
    for rate in (0.0, 0.02):
        settings = {"name": "ilql", "minibatches": 1, "action_value_learning_rate": rate}
        trainer = RLTrainer(
            tiny_folder, optimizer=settings, data=rows, prompts=PROMPTS, prompts_per_update=2, value_learning_rate=0.02
        )
        metrics = list(trainer.steps(2))[-1]
        assert ("optimizer/learning_rate_action_values" in metrics) == bool(rate)
        found.append(flat(trainer.policy.parameters()))
    assert torch.equal(*found)


@given(
    updates=st.integers(1, 30),
    warmup=st.integers(0, 8),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    late=st.integers(0, 8),
)
def test_a_group_that_starts_later_has_the_course_of_a_run_that_is_shorter(updates, warmup, schedule, late):
    rate = Rate("one", 1.0, schedule, warmup, 1 + late)
    other = replace(rate, starts_at=1)
    assert all(rate.factor(update, updates + late) == 0 for update in range(1, late + 1))
    for update in range(1, updates + 1):
        assert rate.factor(update + late, updates + late) == other.factor(update, updates)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", -1.0, "learning_rate of the parameter group 'one' is -1.0; expected at least 0"),
        ("warmup_updates", -1, "warmup_updates of the parameter group 'one' is -1"),
        ("starts_at", 0, "starts_at of the parameter group 'one' is 0; expected at least 1"),
        (
            "schedule",
            "square",
            "schedule of the parameter group 'one' is 'square'; expected constant, linear or cosine",
        ),
    ],
)
def test_bad_numbers_of_a_group_are_refused(field, value, message):
    with pytest.raises(SettingsError, match=message):
        TrainedParameters([], name="one", **{field: value})


def test_parameters_that_are_not_of_the_heads_are_refused(tiny_folder):
    class Foreign(Levels):
        def parameter_groups(self, heads):
            return [TrainedParameters([nn.Parameter(torch.zeros(1))])]

    with pytest.raises(PluginError, match="parameter_groups returned a parameter that is not one of heads"):
        trainer_of(tiny_folder, optimizer=replace(LEVELS, build=Foreign))


@pytest.mark.parametrize(
    ("names", "message"),
    [(("one", "two"), "a parameter twice"), (("one", "one"), "names that differ"), (("policy",), "none of policy")],
)
def test_groups_that_overlap_or_share_a_name_are_refused(tiny_folder, names, message):
    class Twice(Levels):
        def parameter_groups(self, heads):
            own = list(heads["level"].parameters())
            rest = own if message == "a parameter twice" else []
            return [TrainedParameters(rest if place else own, name=name) for place, name in enumerate(names)]

    with pytest.raises(PluginError, match=message):
        trainer_of(tiny_folder, optimizer=replace(LEVELS, build=Twice))


@pytest.mark.parametrize("name", ["model", "value_head", "a/b", "model-2"])
def test_heads_with_the_name_of_another_file_are_refused(tiny_folder, name):
    class Named(Levels):
        def heads(self, width, actions):
            return {name: Level(width)}

    with pytest.raises(PluginError, match=r"heads\(\) returned the name .*; expected another name"):
        trainer_of(tiny_folder, optimizer=replace(LEVELS, build=Named))


def test_a_warm_up_without_a_value_function_is_refused(tiny_folder):
    with pytest.raises(SettingsError, match=r"train\.critic_warmup_updates is set as a keyword, but this run reads it"):
        trainer_of(tiny_folder, optimizer="grpo", critic_warmup_updates=2)
    with pytest.raises(SettingsError, match=r"train\.critic_warmup_updates is -1"):
        trainer_of(tiny_folder, critic_warmup_updates=-1)

    def plain(groups):
        return torch.optim.SGD([one for group in groups for one in group.parameters], lr=0.1)

    with pytest.raises(SettingsError, match=r"no parameter group is a value function's.*role="):
        trainer_of(tiny_folder, critic_warmup_updates=2, torch_optimizer=plain)

    def with_roles(groups):
        return torch.optim.SGD([{"params": g.parameters, "role": g.role} for g in groups if g.parameters], lr=0.1)

    trainer = trainer_of(tiny_folder, critic_warmup_updates=1, torch_optimizer=with_roles)
    assert trainer.step()["optimizer/learning_rate"] == 0
