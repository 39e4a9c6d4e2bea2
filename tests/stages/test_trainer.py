"""``RLTrainer`` without a recipe: what a notebook does, saves, refuses, and does not compute."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

import lmrl
from lmrl import Loss, OptimizerSpec, PolicyOptimizer, RLTrainer, SettingsError, load
from lmrl.algorithms import Advantages, OptimizerSettings, ops
from lmrl.config import build
from lmrl.errors import JudgeError, NonFiniteError, ResumeError
from lmrl.models import text_policy
from lmrl.plugins import PluginManager
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl

PROMPTS = ["the cat", "a dog", "the dog sat", "a"]
SMALL = {"group_size": 2, "prompts_per_update": 2, "max_new_tokens": 4, "device": "cpu"}


def cats(prompts, completions):
    return [float(completion.split().count("cat")) for completion in completions]


def trainer_of(folder, **changes):
    return RLTrainer(folder, **{"optimizer": "grpo", "prompts": PROMPTS, "reward": cats, **SMALL, **changes})


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.policy.parameters()])


def numbers(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def test_steps_raise_the_reward_and_save_a_model(tiny_folder, tmp_path):
    with trainer_of(tiny_folder, prompts_per_update=8, group_size=8, learning_rate=0.01, beta=0.0) as trainer:
        rewards = [metrics["rollout/reward"] for metrics in trainer.steps(12)]
        assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.5
        folder = trainer.save(tmp_path / "checkpoint")
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(found[name], value) for name, value in trainer.policy.model.state_dict().items())
    assert not list(tmp_path.glob("runs*")), "no run folder is written"


@pytest.mark.parametrize("optimizer", ["grpo", "ppo", "nlpo"])
def test_a_restored_trainer_continues_bit_for_bit(tiny_folder, tmp_path, optimizer):
    changes = {"optimizer": {"name": optimizer, "minibatches": 1}, "learning_rate": 0.01}
    if optimizer == "ppo":
        changes["separate_critic"] = True
    whole = trainer_of(tiny_folder, **changes)
    expected = [numbers(metrics) for metrics in whole.steps(4)]
    first = trainer_of(tiny_folder, **changes)
    assert [numbers(metrics) for metrics in first.steps(2)] == expected[:2]
    first.save(tmp_path / "checkpoint")
    again = trainer_of(tiny_folder, **changes)
    again.restore(tmp_path / "checkpoint")
    assert again.updates == 2
    assert [numbers(metrics) for metrics in again.steps(2)] == expected[2:]
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("optimizer", ["dpo", "kto"])
def test_reference_logprobs_of_rows_are_those_of_an_undisturbed_run(tiny_folder, tmp_path, optimizer):
    """Their last digits depend on the rows that they are computed beside, so on when a row was first drawn."""
    texts = ["the cat", "a dog", "the dog sat", "a", "home", "far ."]
    data = [{"prompt": text, "chosen": " happy .", "rejected": " sad far"} for text in texts]
    if optimizer == "kto":
        data = [{"prompt": text, "completion": " ran far", "label": len(text) % 2 == 0} for text in texts]
    changes = {"optimizer": optimizer, "data": data, "prompts": PROMPTS, "prompts_per_update": 5, "learning_rate": 0.01}
    whole, first, again = (RLTrainer(tiny_folder, device="cpu", **changes) for _ in range(3))
    expected = [numbers(metrics) for metrics in whole.steps(5)]
    list(first.steps(2))
    again.restore(first.save(tmp_path / "checkpoint"))
    assert [numbers(metrics) for metrics in again.steps(3)] == expected[2:]


def test_a_recipe_does_the_same(tiny_folder, tmp_path):
    trainer = trainer_of(tiny_folder, learning_rate=0.01, seed=3)
    expected = [numbers(metrics) for metrics in trainer.steps(2)]
    config = build(
        RLConfig,
        {
            "model": str(tiny_folder),
            "run": {"folder": str(tmp_path / "run"), "device": "cpu", "seed": 3},
            "sampling": {"max_new_tokens": 4},
            "train": {"updates": 2, "prompts_per_update": 2, "group_size": 2, "learning_rate": 0.01},
            "optimizer": {"name": "grpo"},
            "evaluation": {"prompts": 0},
        },
    )
    rl(config, prompts=PROMPTS, reward=cats, progress=False)
    found = [numbers(record) for record in read_metrics(tmp_path / "run")[1:]]
    assert [{name: value for name, value in one.items() if name != "update"} for one in found] == expected


def test_a_model_in_memory_an_accelerator_and_a_torch_optimizer_are_taken(tiny_folder):
    model = load(tiny_folder, device="cpu")
    accelerator = Accelerator(cpu=True)
    sgd = torch.optim.SGD(model.model.parameters(), lr=0.25)
    trainer = trainer_of(model, accelerator=accelerator, torch_optimizer=sgd)
    before = weights(trainer)
    metrics = trainer.step()
    assert trainer.accelerator is accelerator and trainer.policy.model is model.model
    assert metrics["optimizer/learning_rate"] == 0.25
    moved = (weights(trainer) - before).norm()
    assert moved == pytest.approx(0.25 * min(metrics["optimizer/gradient_norm"], 1.0), rel=1e-3)


def test_a_torch_optimizer_moves_everything_that_learns(tiny_folder):
    model = load(tiny_folder, device="cpu")
    with pytest.raises(SettingsError, match="torch_optimizer lacks 2 of the parameters that learn"):
        trainer_of(
            model,
            optimizer={"name": "ppo", "minibatches": 1},
            torch_optimizer=torch.optim.SGD(model.model.parameters(), lr=0.1),
        )

    def sgd(groups):
        return torch.optim.SGD([one for group in groups for one in group.parameters], lr=0.1)

    trainer = trainer_of(tiny_folder, optimizer={"name": "ppo", "minibatches": 1}, torch_optimizer=sgd)
    trainer.step()
    assert trainer.policy.value_head.weight.abs().max() > 0


def test_a_model_of_another_precision_is_trained_in_float32(tiny_folder):
    model = load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    trainer = trainer_of(model)
    trainer.step()
    assert {parameter.dtype for parameter in trainer.policy.parameters()} == {torch.float32}


def test_an_accelerator_that_accumulates_is_refused(tiny_folder):
    accelerator = SimpleNamespace(gradient_accumulation_steps=4, num_processes=1)
    with pytest.raises(SettingsError, match="gradient_accumulation_steps=4; expected 1"):
        trainer_of(tiny_folder, accelerator=accelerator)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_updates_beyond_the_schedule_do_not_climb(tiny_folder, caplog, schedule):
    trainer = trainer_of(tiny_folder, schedule=schedule, updates=2)
    rates = [metrics["optimizer/learning_rate"] for metrics in trainer.steps(5)]
    assert rates[0] > rates[1] > 0 and rates[2:] == [0.0, 0.0, 0.0]
    assert caplog.text.count(f"the {schedule} schedule has ended: train.updates is 2") == 1


def test_an_update_that_fails_does_not_count(tiny_folder):
    trainer = trainer_of(tiny_folder, learning_rate=1e30, max_gradient_norm=0.0)
    with pytest.raises(NonFiniteError):
        list(trainer.steps(9))
    assert trainer.updates < 9 and trainer.updater.updates == trainer.updates


def test_a_run_needs_a_folder(tiny_folder):
    with pytest.raises(SettingsError, match=r"run\(\) writes a run folder; use steps"):
        trainer_of(tiny_folder).run()


def test_an_optimizer_of_the_program_is_trained(tiny_folder):
    class Plain(PolicyOptimizer):
        def advantages(self, rollout):
            return Advantages(ops.returns_to_go(rollout.rewards, rollout.action_mask))

        def loss(self, policy, batch):
            return Loss(-batch.advantages * policy.evaluate(batch).logprobs)

    spec = OptimizerSpec("plain", Plain, OptimizerSettings)
    plugins = PluginManager()
    for _ in range(2):  # a cell that runs twice
        metrics = trainer_of(tiny_folder, optimizer=spec, plugins=plugins).step()
    assert metrics["optimizer/steps"] == 1


def test_data_without_prompts_of_ones_own(tiny_folder):
    pairs = [{"prompt": "the cat", "chosen": " sat", "rejected": " ran"}] * 4
    with RLTrainer(tiny_folder, optimizer="dpo", data=pairs, prompts=PROMPTS, prompts_per_update=2) as trainer:
        losses = [metrics["optimizer/loss"] for metrics in trainer.steps(3)]
    assert losses[-1] < losses[0]


def test_evaluation_is_there_where_prompts_are_held_out(tiny_folder):
    assert trainer_of(tiny_folder).evaluate() is None
    found = trainer_of(tiny_folder, evaluation={"prompts": 2}).evaluate()
    assert found.scored == 2 and found.kl.mean == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_sise": 4}, r"unknown setting 'group_sise'.*group_size"),
        ({"train": {"group_size": 2}}, "group_size is given twice, alone and in train"),
        ({"train": {"grop_size": 2}}, "grop_size"),
        ({"optimizer": {"epochs": 2}}, "optimizer has the keys epochs; expected 'name' among them"),
        ({"optimizer": "grop"}, "grpo"),
        ({"learning_rate": "fast"}, "train.learning_rate"),
        ({"limit": 2}, "unknown setting 'limit'"),
        ({"run": {"folder": "run"}}, "run.folder is of run folders"),
        ({"train": 3}, "train is 3; expected a mapping of settings"),
        ({"clip_range": 0.1}, r"the optimizer grpo; pass optimizer=\{'name': 'grpo', 'clip_range': ...\}"),
        ({"value_learning_rate": 0.1}, "train.value_learning_rate is set as a keyword, but this run reads it"),
        ({"every": 2}, r"the setting 'every' is in 2 sections; say which one: evaluation=\{'every': ...\} or"),
    ],
)
def test_wrong_keywords_are_named(tiny_folder, changes, message):
    with pytest.raises(SettingsError, match=message):
        trainer_of(tiny_folder, **changes)


def test_a_folder_of_something_else_is_kept(tiny_folder, tmp_path):
    trainer = trainer_of(tiny_folder)
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SettingsError, match="holds no checkpoint of a run; choose another folder"):
        trainer.save(tmp_path)
    assert (tmp_path / "note.txt").exists()
    with pytest.raises(ResumeError, match="holds no"):
        trainer.restore(tmp_path)
    trainer.save(tmp_path / "one")
    assert trainer.save(tmp_path / "one").exists(), "a checkpoint is replaced"
    with pytest.raises(ResumeError, match="is of optimizer 'grpo', and this trainer's is 'rloo'"):
        trainer_of(tiny_folder, optimizer="rloo").restore(tmp_path / "one")
    torch.save({"step": 1}, tmp_path / "one" / "trainer_state.pt")
    with pytest.raises(ResumeError, match="was not written by lmrl rl"):
        trainer.restore(tmp_path / "one")
    trainer.save(tmp_path / "one")
    with pytest.raises(ResumeError, match="the prompts or the data have changed"):
        trainer_of(tiny_folder, prompts=["the cat", "a"]).restore(tmp_path / "one")


@pytest.fixture
def copies(monkeypatch):
    """The number of reference models that are made, and of passes of them."""
    counts = {"copies": 0, "passes": 0}
    freeze, score = text_policy.freeze_copy, text_policy.score_logprobs

    def counted_freeze(model):
        counts["copies"] += 1
        return freeze(model)

    def counted_score(*arguments):
        counts["passes"] += 1
        return score(*arguments)

    monkeypatch.setattr(text_policy, "freeze_copy", counted_freeze)
    monkeypatch.setattr(text_policy, "score_logprobs", counted_score)
    return counts


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"beta": 0.0}, (0, 0)),
        ({"beta": 0.0, "log_reference": "never", "evaluation": {"prompts": 1}}, (0, 0)),
        ({"beta": 0.0, "evaluation": {"prompts": 1}}, (1, 0)),
        ({"beta": 0.0, "log_reference": "always"}, (1, 1)),
        ({"beta": 0.1}, (1, 1)),
        ({"beta": 0.1, "kl": {"placement": "loss"}}, (1, 1)),
        ({"beta": 0.1, "log_reference": "never"}, (1, 1)),
        ({"optimizer": "online_dpo", "log_reference": "never"}, (1, 1)),
    ],
    ids=str,
)
def test_the_reference_costs_nothing_where_nothing_needs_it(tiny_folder, copies, changes, expected):
    trainer = trainer_of(tiny_folder, **changes)
    metrics = trainer.step()
    assert (copies["copies"], copies["passes"]) == expected
    assert ("rollout/kl" in metrics) == (expected[1] > 0)
    assert ("rollout/objective" in metrics) == (expected[1] > 0)


def test_without_a_reference_the_update_is_the_same(tiny_folder):
    with_it, without = (trainer_of(tiny_folder, beta=0.0, log_reference=when) for when in ("always", "never"))
    for one, other in zip(with_it.steps(2), without.steps(2), strict=True):
        same = {name: value for name, value in numbers(one).items() if name in other}
        assert same == numbers(other)
    assert torch.equal(weights(with_it), weights(without))


def test_an_evaluation_without_a_reference_has_no_kl(tiny_folder):
    found = trainer_of(tiny_folder, beta=0.0, log_reference="never", evaluation={"prompts": 2}).evaluate()
    assert found.kl is None and "evaluation/kl" not in found.metrics()


MOST_FILES = 24


def test_one_update_passes_through_few_files(tiny_folder):
    trainer = trainer_of(tiny_folder)
    trainer.step()
    root, seen = Path(lmrl.__file__).resolve().parents[1], set()

    def look(frame, event, argument):
        if event == "call":
            seen.add(frame.f_code.co_filename)

    sys.setprofile(look)
    try:
        trainer.step()
    finally:
        sys.setprofile(None)
    own = {file for file in seen if Path(file).is_relative_to(root) and "site-packages" not in file}
    own = {file for file in own if Path(file) != Path(__file__) and "plugins" not in Path(file).parts[:-2]}
    assert 10 < len(own) <= MOST_FILES, sorted(own)


def test_settings_of_a_section_and_of_one_name_are_the_same(tiny_folder):
    one = trainer_of(tiny_folder, train={"learning_rate": 0.5}, sampling={"temperature": 0.7}).config
    other = trainer_of(tiny_folder, learning_rate=0.5, temperature=0.7).config
    assert dataclasses.asdict(one.train) == dataclasses.asdict(other.train)
    assert dataclasses.asdict(one.sampling) == dataclasses.asdict(other.sampling)


@pytest.mark.parametrize("lost", [3, 5])
def test_an_evaluation_that_a_judge_did_not_finish_is_made_on_resume(tiny_folder, tmp_path, lost):
    """Calls of the reward: evaluation, update 1, evaluation, update 2, evaluation."""
    calls = []

    def judge(prompts, responses):
        calls.append(prompts)
        if len(calls) == lost:
            raise JudgeError("the endpoint is gone.")
        return cats(prompts, responses)

    def config(folder):
        table = {
            "model": str(tiny_folder),
            "run": {"folder": str(tmp_path / folder), "device": "cpu"},
            "sampling": {"max_new_tokens": 4},
            "train": {"updates": 2, "prompts_per_update": 2, "group_size": 2},
            "optimizer": {"name": "grpo"},
            "evaluation": {"prompts": 1, "every": 1},
        }
        return build(RLConfig, table)

    whole = rl(config("whole"), prompts=PROMPTS, reward=cats, progress=False)
    with pytest.raises(JudgeError, match="continue with lmrl rl --resume"):
        rl(config("run"), prompts=PROMPTS, reward=judge, progress=False)
    again = rl(config("run"), prompts=PROMPTS, reward=cats, resume=True, progress=False)
    assert again.after.rewards == whole.after.rewards
    records = [[numbers(record) for record in read_metrics(tmp_path / folder)] for folder in ("run", "whole")]
    assert records[0] == records[1]
    texts = [sorted(file.name for file in (tmp_path / folder / "samples").iterdir()) for folder in ("run", "whole")]
    assert texts[0] == texts[1]
