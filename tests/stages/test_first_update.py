"""Update 1 stops a run whose policy differs from its own frozen copy before the first optimizer step."""

import pytest
import torch

from lmrl.config import build
from lmrl.errors import ModelError
from lmrl.stages.rl import RLConfig, rl

PAIRS = [
    {"prompt": "the cat", "chosen": " sat", "rejected": " ran"},
    {"prompt": "the dog", "chosen": " ran", "rejected": " sat"},
] * 4
DATA = {
    "dpo": PAIRS,
    "kto": [
        {"prompt": p["prompt"], "completion": p[k], "label": k == "chosen"}
        for p in PAIRS
        for k in ("chosen", "rejected")
    ],
}


def config_of(model, folder, optimizer, **sampling):
    group = {"grpo": 2, "rloo": 2}.get(optimizer, 1)
    return build(
        RLConfig,
        {
            "model": str(model),
            "run": {"folder": str(folder), "device": "cpu"},
            "sampling": {"max_new_tokens": 6, **sampling},
            "train": {"updates": 1, "prompts_per_update": 8, "group_size": group},
            "optimizer": {"name": optimizer},
            "evaluation": {"prompts": 0},
        },
    )


def run(model, folder, optimizer, **sampling):
    prompts = ["the cat", "the dog"] * 8
    data = {"data": DATA[optimizer]} if optimizer in DATA else {}
    return rl(
        config_of(model, folder, optimizer, **sampling),
        prompts=prompts,
        reward=lambda p, r: [float(len(x)) for x in r],
        progress=False,
        **data,
    )


@pytest.mark.parametrize("optimizer", ["ppo", "grpo", "dpo", "kto"])
def test_a_policy_that_differs_from_its_copy_stops_in_update_1(tiny_folder, tmp_path, monkeypatch, optimizer):
    from lmrl.models import text_policy

    def changed_copy(model):
        copy = original(model)
        with torch.no_grad():
            copy.get_output_embeddings().weight.mul_(1.5)
        return copy

    original = text_policy.freeze_copy
    monkeypatch.setattr(text_policy, "freeze_copy", changed_copy)
    with pytest.raises(ModelError, match=r"update 1: .* nats per token on average; expected at most 0.001"):
        run(tiny_folder, tmp_path / "run", optimizer)


@pytest.mark.parametrize("optimizer", ["ppo", "grpo", "dpo", "kto", "nlpo"])
def test_others_pass(tiny_folder, tmp_path, optimizer):
    assert run(tiny_folder, tmp_path / "run", optimizer).updates == 1


@pytest.mark.parametrize("sampling", [{"forbidden_ids": [5, 6]}, {"temperature": 0.05}, {"temperature": 2.0}], ids=str)
@pytest.mark.parametrize("optimizer", ["ppo", "grpo", "dpo", "kto", "nlpo"])
def test_sampling_settings_are_no_difference(tiny_folder, tmp_path, optimizer, sampling):
    assert run(tiny_folder, tmp_path / "run", optimizer, **sampling).updates == 1


def test_a_recurrent_model_starts_with_no_kl(tmp_path, tiny_folder):
    import shutil

    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    from lmrl.reporting.metrics import read_metrics
    from lmrl.text.card import load_card

    card = load_card(tiny_folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = RecurrentGemmaConfig(
        vocab_size=card.vocab_size,
        lru_width=32,
        attention_window_size=16,
        head_dim=8,
        num_key_value_heads=2,
        bos_token_id=card.bos_id,
        eos_token_id=list(card.eos_ids),
        pad_token_id=card.pad_id,
        **sizes,
    )
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "generation*"))
    RecurrentGemmaForCausalLM(config).save_pretrained(folder)
    result = run(folder, tmp_path / "run", "grpo")
    assert abs(read_metrics(result.folder)[-1]["rollout/kl"]) < 1e-4
