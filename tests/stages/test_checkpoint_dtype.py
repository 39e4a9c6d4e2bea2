"""A checkpoint is saved in the precision that training started from, and a resumed run continues bit for bit."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from lmrl.config import build
from lmrl.errors import ModelError
from lmrl.models import load
from lmrl.models.saving import TRAINING_WEIGHTS, restore_training_weights, save_model
from lmrl.stages.pretrain import PretrainConfig, pretrain
from lmrl.stages.pretrain.task import PretrainTask
from lmrl.stages.reward import RewardConfig, reward
from lmrl.stages.reward.task import RewardTask
from lmrl.stages.rl import RLConfig, rl
from lmrl.stages.sft import SFTConfig, sft
from lmrl.stages.sft.task import SFTTask
from lmrl.testing import write_tiny_model
from lmrl.text.weight_files import stored_dtype
from lmrl.training.checkpoint import list_checkpoints

HALF = ["bfloat16", "float16"]
TASKS = {"sft": SFTTask, "lora": SFTTask, "reward": RewardTask, "pretrain": PretrainTask}
ROWS = [
    {"prompt": f"the {animal}", "completion": f" {verb} home"} for animal in ("cat", "dog") for verb in ("ran", "sat")
]
PAIRS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": " sad"} for row in ROWS]


def half(folder, dtype, tied=False):
    """Rewrite a tiny model in half precision, as a download has it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(write_tiny_model(folder))
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    assert stored_dtype(folder) == dtype
    return folder


def settings_of(stage, model, folder, dtype, root):
    table = {"model": str(model), "run": {"folder": str(folder), "device": "cpu"}, "trackers": []}
    table |= {"checkpoint": {"every": 2, "keep": 9, "dtype": dtype}}
    train = {"steps": 4, "learning_rate": 0.003, "warmup_steps": 0, "evaluate_every": 0}
    if stage == "pretrain":
        (root / "corpus.jsonl").write_text("".join(json.dumps({"text": row["prompt"] * 20}) + "\n" for row in ROWS * 9))
        table["model"] = {"continue_from": str(model), "context_length": 16}
        table |= {"corpus": {"paths": [str(root / "corpus.jsonl")], "folder": str(root / "corpus"), "held_out": 0.2}}
        table |= {"samples": {"prompts": []}, "train": train | {"rows": 2}}
    elif stage == "reward":
        table |= {"train": train | {"rankings_per_step": 2}, "data": {"held_out": 0}, "normalise": {"on": "off"}}
    elif stage == "rl":
        table |= {"train": {"updates": 4, "prompts_per_update": 4, "learning_rate": 0.003}}
        table |= {"sampling": {"max_new_tokens": 4}, "evaluation": {"prompts": 0}}
    else:
        table |= {"train": train | {"examples_per_step": 2}, "data": {"held_out": 0}}
        if stage == "lora":
            table["adapter"] = {"method": "lora", "rank": 2}
    return table


def start(stage, table, resume=False):
    """Run a stage; return its newest checkpoint."""
    if stage == "pretrain":
        return pretrain(build(PretrainConfig, table), resume=resume, progress=False).checkpoint
    if stage == "reward":
        from lmrl.data import load_rankings

        config = build(RewardConfig, table)
        return reward(config, rankings=load_rankings(PAIRS), resume=resume, progress=False).checkpoints[-1]
    if stage == "rl":
        named = {
            "reward": lambda prompts, responses: [len(text) for text in responses],
            "prompts": ["the cat", "a dog"],
        }
        done = rl(build(RLConfig, table), **named, resume=resume, progress=False)
        return list_checkpoints(done.folder)[-1]
    return sft(build(SFTConfig, table), examples=ROWS, resume=resume, progress=False).checkpoint


def tensors(checkpoint):
    return {file.name: load_file(file) for file in sorted(checkpoint.glob("*.safetensors"))}


@pytest.mark.parametrize("stage", [*TASKS, "rl"])
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_stays_and_resumes_bit_for_bit(tmp_path, monkeypatch, stage, dtype):
    model = half(tmp_path / "model", dtype, tied=stage in ("sft", "rl"))
    whole = start(stage, settings_of(stage, model, tmp_path / "whole", "auto", tmp_path))
    config = json.loads((whole / "config.json").read_text())
    assert stored_dtype(whole) == config["dtype"] == dtype
    assert (whole / TRAINING_WEIGHTS).exists() == (stage != "lora")
    table = settings_of(stage, model, tmp_path / "part", "auto", tmp_path)
    if stage == "rl":
        start(stage, table | {"train": table["train"] | {"updates": 2}})
    else:
        usual = TASKS[stage].microbatches

        def killed(self, step, rank, ranks):
            if step == 4:
                raise KeyboardInterrupt
            return usual(self, step, rank, ranks)

        monkeypatch.setattr(TASKS[stage], "microbatches", killed)
        with pytest.raises(KeyboardInterrupt):
            start(stage, table)
        monkeypatch.undo()
    resumed = tensors(start(stage, table, resume=True))
    expected = tensors(whole)
    assert resumed.keys() == expected.keys()
    for file, held in expected.items():
        assert held.keys() == resumed[file].keys()
        assert all(torch.equal(resumed[file][name], tensor) for name, tensor in held.items()), file


@pytest.mark.parametrize(
    ("stored", "setting", "expected"),
    [
        ("bfloat16", "float32", "float32"),
        ("float16", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "bfloat16"),
        ("float32", "auto", "float32"),
    ],
)
def test_the_setting_decides(tmp_path, stored, setting, expected):
    model = half(tmp_path / "model", stored)
    found = start("sft", settings_of("sft", model, tmp_path / "run", setting, tmp_path))
    assert stored_dtype(found) == expected and (found / TRAINING_WEIGHTS).exists() == (expected != "float32")
    plain = transformers.AutoModelForCausalLM.from_pretrained(found, dtype="auto")
    assert str(plain.dtype) == f"torch.{expected}"


def test_the_float32_weights_are_those_that_were_trained(tmp_path):
    model = load(write_tiny_model(tmp_path / "model")).model
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path / "saved", torch.bfloat16)
    rounded = load(half(tmp_path / "other", "bfloat16")).model
    assert restore_training_weights(rounded, tmp_path / "saved")
    assert all(torch.equal(rounded.state_dict()[name], tensor) for name, tensor in expected.items())
    other = load(write_tiny_model(tmp_path / "deep", layers=3)).model
    with pytest.raises(ModelError, match="does not belong to the model"):
        restore_training_weights(other, tmp_path / "saved")


def test_weights_beyond_float16_are_not_saved_as_infinity(tmp_path):
    model = load(write_tiny_model(tmp_path / "model")).model
    model.lm_head.weight.data[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"lm_head.weight has a weight of 1e\+06.*checkpoint.dtype"):
        save_model(model, tmp_path / "saved", torch.float16)
