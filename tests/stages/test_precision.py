"""Every optimizer and every stage in bf16: log-probabilities, values, losses and means stay float32."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from lmrl.algorithms.kl import KLSettings
from lmrl.algorithms.ops import aggregate_losses, masked_mean
from lmrl.algorithms.rollout import Batch, Rollout
from lmrl.config import build
from lmrl.engines.protocol import SamplingSpec
from lmrl.models import PolicyModel, load
from lmrl.models.layouts import LAYOUTS
from lmrl.models.text_policy import TextEvaluation, TextPolicy, score_logprobs, score_values
from lmrl.plugins import PluginManager
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.evaluate import EvaluateConfig, evaluate
from lmrl.stages.prefer import PreferConfig, prefer
from lmrl.stages.pretrain import PretrainConfig, pretrain
from lmrl.stages.reward import RewardConfig, reward
from lmrl.stages.rl import RLConfig, rl
from lmrl.stages.rl.trainer import RLTrainer
from lmrl.stages.sft import SFTConfig, sft
from lmrl_ilql import ILQL, ILQLSettings

PROMPTS = ["the cat", "a dog", "the dog sat", "a cat ran", "the", "a"]
PAIRS = [{"prompt": prompt, "chosen": " happy home .", "rejected": " sad far ."} for prompt in PROMPTS]
DATA = {
    "preferences": PAIRS,
    "labelled": [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in PAIRS
        for side in ("chosen", "rejected")
    ],
    "trajectories": [
        {"prompt": row["prompt"], "completion": row[side], "reward": float(side == "chosen")}
        for row in PAIRS
        for side in ("chosen", "rejected")
    ],
    "demonstrations": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS],
}
OPTIMIZERS = sorted(PluginManager().records("optimizer"))


def likes_cats(prompts, responses):
    return [response.count("cat") - 0.1 * len(response.split()) for response in responses]


def teacher_of(name, model):
    """Return the settings without which an optimizer cannot run: the teacher beside the tiny model."""
    return {name: {"teacher": str(Path(model).parent / "teacher")}} if name == "gkd" else {}


def config_of(model, folder, name, **sections):
    mapping = {
        "model": str(model),
        "run": {"folder": str(folder), "device": "cpu", "precision": "bf16"},
        "sampling": {"max_new_tokens": 6},
        "train": {"updates": 1, "prompts_per_update": 4, "group_size": 4, "learning_rate": 0.01},
        "optimizer": {"name": name} | teacher_of(name, model),
        "evaluation": {"prompts": 2},
        "trackers": [],
    }
    for key, section in sections.items():
        mapping[key] = {**mapping[key], **section} if isinstance(mapping.get(key), dict) else section
    return build(RLConfig, mapping)


def records_of(folder):
    """Return the lines of a run's metrics, all of whose numbers are finite."""
    records = read_metrics(folder)
    assert records
    for record in records:
        assert all(math.isfinite(value) for value in record.values() if isinstance(value, float)), record
    return records


def columns_of(record):
    """Return the floating-point tensors of a dataclass and of all that it holds, by name."""
    found = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            found |= columns_of(value)
        for name, column in value.items() if isinstance(value, dict) else [(field.name, value)]:
            if isinstance(column, torch.Tensor) and column.is_floating_point():
                found[name] = column
    return found


def reads_of(name, evaluation):
    """Return what an optimizer can read of the policy."""
    needs = PluginManager().get("optimizer", name).needs
    columns = ["logprobs", "entropy", "log_distributions"]
    columns += ["values"] * bool(needs.values)
    return {column: getattr(evaluation, column) for column in columns} | dict(evaluation.outputs.heads)


def evaluated(batch):
    """Return what the policy is asked about: rollouts themselves, or the responses of anything else."""
    if isinstance(batch, Batch):
        return [batch]
    return [getattr(batch, name) for name in ("chosen", "rejected", "responses", "mismatched") if hasattr(batch, name)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_an_update(tiny_folder, tmp_path, name):
    data = DATA.get(PluginManager().get("optimizer", name).needs.experience)
    config = config_of(tiny_folder, tmp_path / "run", name)
    rl(config, reward=likes_cats, prompts=PROMPTS, data=data, progress=False)
    metrics = records_of(tmp_path / "run")[1]
    assert metrics["optimizer/steps"] >= 1 and metrics["optimizer/gradient_norm"] > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_policy_agrees_with_itself_before_the_first_step(tiny_folder, tmp_path, name):
    data = DATA.get(PluginManager().get("optimizer", name).needs.experience)
    config = config_of(tiny_folder, tmp_path / "run", name)
    trainer = RLTrainer.from_config(config, reward=likes_cats, prompts=PROMPTS, data=data, plugins=PluginManager())
    maker, policy = trainer.maker, trainer.updater.policy
    offline = trainer.texts.offline is not None
    with trainer.accelerator.autocast():
        batch = rollout = trainer.source.next(0).experience
        if not offline:
            assert {name: column.dtype for name, column in columns_of(rollout).items()} == dict.fromkeys(
                columns_of(rollout), torch.float32
            )
            batch = Batch(rollout, torch.zeros_like(rollout.rewards), {})
    for part in evaluated(batch):
        with torch.no_grad(), trainer.accelerator.autocast():
            before = {name: column.clone() for name, column in reads_of(name, policy.evaluate(part)).items()}
        policy.forget()
        now = reads_of(name, policy.evaluate(part))
        for column, value in now.items():
            assert value.dtype == torch.float32, column
            assert value.requires_grad or column.startswith("target"), column
        ratio = (now["logprobs"] - before["logprobs"]).exp()[part.action_mask]
        assert (ratio - 1).abs().max() < 1e-5
        if maker.processor is None:  # what scores without gradients computes the same
            with trainer.accelerator.autocast():
                scored_alone = score_logprobs(maker.policy, part.inputs, maker.spec, 10**6)
            alone = scored_alone - now["logprobs"]
            assert alone.dtype == torch.float32 and alone[part.action_mask].abs().max() < 1e-5
        if not offline:
            log_ratio = (now["logprobs"] - part.proximal_logprobs)[part.action_mask]
            assert log_ratio.abs().mean() < 0.02
        policy.forget()
    trainer.close()


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"separate_critic": True}},
        {"kl": {"placement": "loss", "estimator": "k3"}},
        {"optimizer": {"ppo": {"entropy_coefficient": 0.1}}},
        {"sampling": {"temperature": 0.7}},
        {"train": {"microbatch_tokens": 20}},
        {"scoring": {"concurrency": "thread"}},
    ],
)
def test_every_part_of_an_update(tiny_folder, tmp_path, sections):
    rl(config_of(tiny_folder, tmp_path / "run", "ppo", **sections), reward=likes_cats, prompts=PROMPTS, progress=False)
    records_of(tmp_path / "run")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_values_and_log_probabilities_are_float32(tiny_folder, layout):
    policy = PolicyModel(load(tiny_folder).model, with_values=True)
    torch.nn.init.normal_(policy.value_head.weight)
    exact, _ = score_values(policy, inputs_of(), 100)
    policy.layout = layout
    with torch.autocast("cpu", torch.bfloat16):
        values, after = score_values(policy, inputs_of(), 100)
        logprobs = score_logprobs(policy, inputs_of(), SamplingSpec(), 100)
        outputs = policy(inputs_of(), need_values=True)
    evaluation = TextEvaluation(outputs, inputs_of().action_ids.flatten(), torch.ones(2, 3).bool(), SamplingSpec())
    for column in (values, after, logprobs, evaluation.logprobs, evaluation.entropy, evaluation.values):
        assert column.dtype == torch.float32
    assert (values - exact).abs().max() < 0.2, "the trunk is rounded, the head is not"


def inputs_of():
    from lmrl.algorithms.sequences import Sequences

    return Sequences.of_pairs([([5, 6], [4, 5, 6]), ([7, 8], [7, 4, 9])])


def test_a_model_whose_weights_are_bf16(tiny_folder):
    optimizer = ILQL(ILQLSettings())
    policy = PolicyModel(load(tiny_folder, dtype=torch.bfloat16).model, with_values=True, optimizer=optimizer)
    values, after = score_values(policy, inputs_of(), 100)
    logprobs = score_logprobs(policy, inputs_of(), SamplingSpec(), 100)
    assert values.dtype == after.dtype == logprobs.dtype == torch.float32
    mask = torch.ones(2, 3).bool()
    batch = Batch(
        Rollout(inputs_of(), mask, logprobs, logprobs, values[:, 0], mask[:, 0], ~mask[:, 0], torch.arange(2)),
        torch.zeros(2, 3),
        {},
    )
    now = TextPolicy(policy, SamplingSpec(), True, True).evaluate(batch)
    columns = (now.logprobs, now.entropy, now.values, now.head("action_values"))
    assert all(column.dtype == torch.float32 for column in columns)
    assert (now.logprobs - logprobs).abs().max() < 1e-5


class HalfEngine:
    """An engine that keeps its log-probabilities in half precision."""

    def __init__(self, engine):
        self.engine, self.publish = engine, engine.publish

    def generate(self, requests):
        for response in self.engine.generate(requests):
            yield dataclasses.replace(response, logprobs=torch.tensor(response.logprobs).bfloat16().tolist())


@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_an_engine_may_return_half_precision(toy, placement):
    here = toy(kl=KLSettings(beta=0.1, placement=placement))
    here.maker.engine = HalfEngine(here.maker.engine)
    rollout = here.rollout()
    columns = columns_of(rollout)
    assert "rewards" in columns and all(column.dtype == torch.float32 for column in columns.values())


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum"])
def test_losses_and_means_are_summed_in_float32(aggregation):
    losses, mask = torch.full((64, 64), 1.01, dtype=torch.bfloat16), torch.ones(64, 64).bool()
    total = aggregate_losses(losses, mask, aggregation, 4096.0, 64.0)
    assert total.dtype == torch.float32
    assert total == pytest.approx(float(losses[0, 0]) * (64 if aggregation == "sequence_sum" else 1), rel=1e-6)
    assert aggregate_losses(losses[:, 0], mask, aggregation, 4096.0, 64.0) == pytest.approx(float(losses[0, 0]))
    assert masked_mean(losses, mask) == pytest.approx(float(losses[0, 0]))
    assert masked_mean(losses.double(), mask).dtype == torch.float64


RUN = {"device": "cpu", "precision": "bf16"}
STEPS = {"steps": 1, "warmup_steps": 0, "evaluate_every": 1, "learning_rate": 0.01}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_pretrain(tmp_path):
    texts = [
        {"text": f"the {animal} {verb} {place} ."}
        for animal in ["cat", "dog"]
        for verb in ["ran", "sat"]
        for place in ["home", "far", "away", "up"]
    ]
    mapping = {
        "model": {"context_length": 16, "hidden_size": 16, "layers": 1, "heads": 2},
        "corpus": {
            "paths": [write_rows(tmp_path / "texts.jsonl", texts)],
            "folder": str(tmp_path / "corpus"),
            "held_out": 0.2,
        },
        "tokenizer": {"kind": "bpe", "vocabulary_size": 300},
        "run": {**RUN, "folder": str(tmp_path / "run")},
        "train": {**STEPS, "rows": 2},
        "samples": {"prompts": ["the"], "max_new_tokens": 4},
        "trackers": [],
    }
    pretrain(build(PretrainConfig, mapping), progress=False)
    assert "train/loss" in records_of(tmp_path / "run")[-1]


@pytest.mark.parametrize("adapters", [False, True])
def test_sft(tiny_folder, tmp_path, adapters):
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    mapping = {
        "model": str(tiny_folder),
        "run": {**RUN, "folder": str(tmp_path / "run")},
        "data": {"held_out": 2},
        "train": {**STEPS, "examples_per_step": 2},
        "adapter": {"method": "lora" if adapters else "none"},
        "samples": {"prompts": 1},
        "sampling": {"max_new_tokens": 4},
        "trackers": [],
    }
    sft(build(SFTConfig, mapping), examples=rows, progress=False)
    assert "train/loss" in records_of(tmp_path / "run")[-1]


def test_reward_and_what_it_scores(tiny_folder, tmp_path):
    mapping = {
        "model": str(tiny_folder),
        "run": {**RUN, "folder": str(tmp_path / "reward")},
        "data": {"path": write_rows(tmp_path / "pairs.jsonl", PAIRS), "held_out": 2},
        "train": {**STEPS, "rankings_per_step": 2},
        "trackers": [],
    }
    folder = reward(build(RewardConfig, mapping), progress=False).checkpoints[0]
    assert "train/loss" in records_of(tmp_path / "reward")[-1]
    learned = {"name": "learned", "learned": {"path": str(folder)}}
    rl(config_of(tiny_folder, tmp_path / "rl", "ppo", reward=learned), prompts=PROMPTS, progress=False)
    records_of(tmp_path / "rl")


def test_prefer_and_evaluate(tiny_folder, tmp_path):
    mapping = {
        "model": str(tiny_folder),
        "run": {**RUN, "folder": str(tmp_path / "prefer")},
        "samples": {"per_prompt": 2},
        "sampling": {"max_new_tokens": 4},
        "annotators": {"length": {"kind": "reward", "reward": "repetition"}},
    }
    assert prefer(build(PreferConfig, mapping), prompts=PROMPTS, progress=False).rankings.exists()
    mapping = {
        "models": [str(tiny_folder)],
        "held_out": {"prompts": 2},
        "reference": str(tiny_folder),
        "run": {**RUN, "folder": str(tmp_path / "eval")},
        "sampling": {"max_new_tokens": 4},
        "rewards": ["repetition"],
    }
    evaluate(build(EvaluateConfig, mapping), prompts=PROMPTS, progress=False)
    assert (tmp_path / "eval" / "report.json").exists() or list((tmp_path / "eval").iterdir())
