"""A second stream of data in the loss: gradients add up, whatever the microbatches and ranks; resumes; refusals."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from lmrl import PluginManager, RLTrainer, SettingsError
from lmrl.algorithms import KLSettings
from lmrl.errors import NonFiniteError, ResumeError
from lmrl.models import load
from lmrl.models.text_policy import TextPolicy, score_logprobs
from lmrl.stages.rl.config import LearningData
from lmrl.stages.rl.offline import load_offline
from lmrl.testing.thread_ranks import run_ranks
from lmrl.testing.trial import Trial, parameter_groups
from lmrl.training.auxiliary import Auxiliary
from lmrl.training.update_settings import TrainSettings

TEXTS = ["the cat", "a dog", "the dog sat", "a", "home", "far .", "a cat ran", "the"]
SHOWN = [{"prompt": text, "completion": " ran home happy ."} for text in TEXTS[:6]]
PAIRS = [{"prompt": text, "chosen": " happy .", "rejected": " sad far"} for text in TEXTS[:6]]
LABELLED = [{"prompt": text, "completion": " ran far", "label": len(text) % 2 == 0} for text in TEXTS[:6]]
DATA = {"imitation": SHOWN, "dpo": PAIRS, "kto": LABELLED, "simpo": PAIRS}
SMALL = {"group_size": 2, "prompts_per_update": 4, "max_new_tokens": 4, "device": "cpu", "learning_rate": 0.01}


def cats(prompts, completions):
    return [float(completion.split().count("cat")) for completion in completions]


def trainer_of(folder, **changes):
    return RLTrainer(folder, **{"optimizer": "grpo", "prompts": TEXTS, "reward": cats, **SMALL, **changes})


def numbers(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def flat(policy):
    return torch.cat([parameter.detach().flatten().clone() for parameter in policy.parameters()])


def built(name, **settings):
    spec = PluginManager().get("optimizer", name)
    return spec.build(spec.settings(epochs=1, minibatches=1, **settings)), spec.needs


def stream(world, name, weight, tokens):
    """Return the second stream on a toy's policy, of all rows of the data in each step."""
    method, needs = built(name)
    card = world.language_model.card
    data = load_offline(LearningData(), DATA[name], card, needs, torch.device("cpu"))
    if needs.reference:
        data.scorer = lambda inputs: score_logprobs(world.reference, inputs, world.spec, 10_000)
    face = TextPolicy(world.policy, world.spec, with_values=False)
    return Auxiliary(method, face, lambda step: data.batch(range(len(data))), weight, tokens), method, needs


def moved(world, optimizer, experience, auxiliary=None, tokens=10_000, needs=None):
    """Return how far one step of plain SGD moves the policy, and the metrics."""
    updater = world.updater(optimizer, microbatch_tokens=tokens)
    updater.auxiliary, updater.needs = auxiliary, needs or updater.needs
    before = world.parameters()
    metrics = updater.learn(experience, beta=0.0, update=1, seed=0)
    return world.parameters() - before, metrics


@pytest.mark.parametrize("tokens", [10_000, 1])
@pytest.mark.parametrize("name", ["imitation", "dpo", "kto", "simpo"])
def test_the_gradient_is_the_sum_of_both(toy, name, tokens):
    first, second, third = (toy(kl=KLSettings(beta=0.0), values=False) for _ in range(3))
    rollout = first.rollout(12)
    alone, _ = moved(first, built("reinforce")[0], rollout)
    auxiliary, method, needs = stream(second, name, 0.3, tokens)
    other, _ = moved(second, method, auxiliary.draw(0), needs=needs)
    auxiliary, _, _ = stream(third, name, 0.3, tokens)
    both, metrics = moved(third, built("reinforce")[0], rollout, auxiliary, tokens)
    assert other.abs().max() > 1e-4 and alone.abs().max() > 1e-4
    assert torch.allclose(both, alone + 0.3 * other, atol=1e-6)
    assert metrics["auxiliary/loss"] > 0 and auxiliary.drawn == 1
    assert not any(one.startswith("optimizer/logprob") for one in metrics)


def test_a_weight_of_zero_changes_nothing(toy, tiny_folder):
    found = []
    for weight in (None, 0.0):
        world = toy(kl=KLSettings(beta=0.0), values=False)
        auxiliary = None if weight is None else stream(world, "imitation", weight, 10_000)[0]
        found.append(moved(world, built("reinforce")[0], world.rollout(12), auxiliary)[0])
    assert torch.equal(*found)
    assert trainer_of(tiny_folder, auxiliary={"weight": 0.0}).updater.auxiliary is None


def test_two_ranks_add_what_one_adds():
    spec = PluginManager().get("optimizer", "reinforce")
    trial, shown = Trial(spec), Trial(PluginManager().get("optimizer", "imitation"))
    data, demonstrations = trial.experience(), shown.experience()

    def learned(accelerator, rank):
        both = (data, demonstrations)
        share, part = (one.select(torch.arange(len(one)).chunk(accelerator.num_processes)[rank]) for one in both)
        model, optimizer = trial.policy.moved(0.0, seed=0), trial.build()
        policy = trial.toy_policy(optimizer, model)
        settings = TrainSettings(max_gradient_norm=0.5, microbatch_tokens=7)
        sgd = torch.optim.SGD(parameter_groups(model, 1.0), lr=1.0)
        updater = trial.updater(optimizer, policy, settings, sgd, accelerator)
        updater.auxiliary = Auxiliary(shown.build(), policy, lambda step: part, 0.7, 7)
        metrics = updater.learn(share, update=1, seed=0)
        return flat(model), metrics

    [one], (first, second) = run_ranks(learned, 1), run_ranks(learned, 2)
    assert torch.equal(first[0], second[0]) and torch.allclose(first[0], one[0], atol=1e-6)
    assert not torch.allclose(one[0], flat(trial.policy), atol=1e-3)
    assert first[1] == pytest.approx(one[1], abs=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_step(toy):
    world = toy(kl=KLSettings(beta=0.0), values=False)
    auxiliary, method, _ = stream(world, "imitation", 1.0, 10_000)
    plain = method.loss
    method.loss = lambda policy, batch: type(plain(policy, batch))(plain(policy, batch).losses * torch.nan)
    before = world.parameters()
    with pytest.raises(NonFiniteError, match="update 1, epoch 1, minibatch 1: the auxiliary loss is nan"):
        moved(world, built("reinforce")[0], world.rollout(12), auxiliary)
    assert torch.equal(world.parameters(), before)


PTX = {"weight": 0.5, "data": SHOWN, "rows": 4}
PPO = {"name": "ppo", "epochs": 2, "minibatches": 2}


def test_ppo_with_imitation_keeps_what_demonstrations_say(tiny_folder):
    def likelihood(**changes):
        trainer = trainer_of(tiny_folder, optimizer=PPO, **changes)
        metrics = list(trainer.steps(6))
        inputs = (
            load_offline(LearningData(), SHOWN, trainer.texts.start.card, built("imitation")[1], torch.device("cpu"))
            .batch(range(6))
            .responses.inputs
        )
        return float(score_logprobs(trainer.policy, inputs, trainer.texts.spec, 10_000).sum()), metrics

    without, _ = likelihood()
    found, metrics = likelihood(auxiliary=PTX)
    assert found > without + 5
    assert metrics[-1]["auxiliary/loss"] < metrics[0]["auxiliary/loss"] - 0.2
    assert metrics[0]["auxiliary/loss"] == pytest.approx(-metrics[0]["auxiliary/logprob"], abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {**PPO, "target_kl": 1e-5}, "auxiliary": PTX},
        {"auxiliary": {"weight": 0.2, "optimizer": {"name": "dpo", "beta": 0.3}, "data": PAIRS, "rows": 5}},
        {"auxiliary": {"weight": 0.2, "optimizer": "kto", "data": LABELLED, "rows": 4}, "beta": 0.0},
    ],
    ids=["ptx", "dpo", "kto"],
)
def test_a_restored_trainer_continues_bit_for_bit(tiny_folder, tmp_path, changes):
    whole, first, again = (trainer_of(tiny_folder, **changes) for _ in range(3))
    expected = [numbers(metrics) for metrics in whole.steps(4)]
    assert "auxiliary/loss" in expected[0]
    list(first.steps(2))
    again.restore(first.save(tmp_path / "checkpoint"))
    assert again.updater.auxiliary.drawn == first.updater.auxiliary.drawn > 0
    assert [numbers(metrics) for metrics in again.steps(2)] == expected[2:]
    assert torch.equal(flat(again.policy), flat(whole.policy))
    others = {**changes, "auxiliary": {**changes["auxiliary"], "data": changes["auxiliary"]["data"][:5]}}
    with pytest.raises(ResumeError, match="have changed since"):
        trainer_of(tiny_folder, **others).restore(tmp_path / "checkpoint")


def test_dpo_beside_grpo_prefers_what_the_pairs_prefer(tiny_folder):
    auxiliary = {"weight": 1.0, "optimizer": "dpo", "data": PAIRS, "rows": 6}
    metrics = list(trainer_of(tiny_folder, auxiliary=auxiliary, beta=0.0).steps(6))
    assert metrics[0]["auxiliary/margin"] == pytest.approx(0, abs=1e-5)
    assert metrics[-1]["auxiliary/margin"] > 0.05 and metrics[-1]["auxiliary/accuracy"] == 1


def test_every_row_comes_once_per_pass(tiny_folder):
    trainer = trainer_of(tiny_folder, auxiliary={**PTX, "rows": 3})
    drawn = [trainer.updater.auxiliary.draw(step).responses.inputs for step in range(2)]
    rows = [tuple(row[:length]) for one in drawn for row, length in zip(one.ids.tolist(), one.lengths, strict=True)]
    assert len(rows) == len(set(rows)) == 6


def test_data_in_a_file_and_an_adapter(tiny_folder, tmp_path):
    file = tmp_path / "shown.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in SHOWN), encoding="utf-8")
    auxiliary = {"weight": 0.5, "data": str(file), "rows": 3}
    metrics = trainer_of(tiny_folder, auxiliary=auxiliary, adapter={"method": "lora"}).step()
    assert metrics["auxiliary/loss"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer": "trpo"},
            "optimizer 'trpo' moves the policy by a step of its own, which is made for",
        ),
        ({"auxiliary": {**PTX, "optimizer": "grpo"}}, "'grpo', which learns from what it samples; expected one that"),
        ({"auxiliary": {**PTX, "optimizer": "ilql"}}, "'ilql', which has heads of its own"),
        ({"auxiliary": {**PTX, "optimizer": "imitatoin"}}, "did you mean 'imitation'"),
        ({"auxiliary": {**PTX, "weight": -1.0}}, "auxiliary.weight is -1.0"),
        ({"auxiliary": {**PTX, "rows": 0}}, "auxiliary.rows is 0"),
        ({"auxiliary": {**PTX, "row": 3}}, r"unknown setting 'auxiliary\.row'; did you mean 'auxiliary\.rows'"),
        (
            {"auxiliary": {"weight": 1.0}},
            r"learns from answers or texts to imitate; name them with auxiliary\.data",
        ),
        (
            {"auxiliary": {**PTX, "optimizer": "kto", "rows": 1}},
            "rows is 1; expected at least 2",
        ),
        ({"auxiliary": {"data": SHOWN}}, "auxiliary has data, but its weight is 0"),
        ({"auxiliary": {"weight": 0.0, "rows": 3}}, r"auxiliary\.rows is set as a keyword, but this run reads it only"),
    ],
    ids=str,
)
def test_what_cannot_be_added_is_refused(tiny_folder, changes, message):
    with pytest.raises(SettingsError, match=message):
        trainer_of(tiny_folder, **{"auxiliary": PTX, **changes})


def test_the_updater_refuses_a_step_of_its_own(toy):
    world = toy()
    auxiliary, _, _ = stream(world, "imitation", 1.0, 10_000)
    with pytest.raises(SettingsError, match="TRPO moves the policy by a step of its own"):
        type(world.updater(built("reinforce")[0]))(built("trpo")[0], auxiliary.policy, auxiliary=auxiliary)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tiny_folder, tmp_path):
    spec = importlib.util.spec_from_file_location("ranks", Path(__file__).with_name("test_ranks.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    script, file = tmp_path / "run.py", tmp_path / "shown.jsonl"
    script.write_text(re.sub(r"plugins = .*", "plugins = PluginManager()", module.RUN))
    file.write_text("".join(json.dumps(row) + "\n" for row in SHOWN), encoding="utf-8")
    weights = []
    for count in (1, 2):
        config = {
            "model": str(tiny_folder),
            "run": {"folder": str(tmp_path / f"run{count}"), "device": "cpu", "precision": "no"},
            "sampling": {"max_new_tokens": 4},
            "train": {"updates": 2, "prompts_per_update": 4, "group_size": 3, "learning_rate": 0.003},
            "optimizer": {"name": "ppo", "ppo": {"minibatches": 1, "epochs": 2}},
            "auxiliary": {"weight": 0.5, "rows": 4, "data": {"path": str(file)}},
            "evaluation": {"prompts": 0},
            "trackers": [],
        }
        module.run_ranks(count, script, [json.dumps(config)])
        weights.append(flat(load(tmp_path / f"run{count}").model))
    assert torch.allclose(*weights, atol=1e-4) and not torch.equal(weights[0], flat(load(tiny_folder).model))
