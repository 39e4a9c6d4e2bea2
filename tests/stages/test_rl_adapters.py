"""`lmrl rl adapter.method=...`: every optimizer, resumes, checkpoints, export, two ranks, and what is refused."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmrl.cli.main import main
from lmrl.config import build, refuse_unread
from lmrl.errors import ModelError, SettingsError
from lmrl.models import load
from lmrl.models.adapted import Adapter
from lmrl.models.exporting import export
from lmrl.plugins import PluginManager
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl
from lmrl.training.checkpoint import list_checkpoints

peft = pytest.importorskip("peft")
SPECS = {name: PluginManager().get("optimizer", name) for name in sorted(PluginManager().names("optimizer"))}
SAMPLING = [name for name, spec in SPECS.items() if spec.needs.experience == "rollouts"]
FROM_DATA = [name for name, spec in SPECS.items() if spec.needs.experience in ("preferences", "labelled")]
METHODS = ("lora", "rslora", "dora")
PROMPTS = ["the cat", "a dog", "the dog sat", "a cat ran"]
PAIRS = [{"prompt": prompt, "chosen": " happy home .", "rejected": " sad far ."} for prompt in PROMPTS]
LABELLED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in PAIRS
    for side in ("chosen", "rejected")
]
IDS = torch.tensor([[3, 5, 7, 9, 4]])


def cats(prompts, responses):
    return [response.count("cat") - 0.05 * len(response.split()) for response in responses]


def teacher_of(name, model):
    """Return the settings without which an optimizer cannot run: the teacher beside the tiny model."""
    return {name: {"teacher": str(Path(model).parent / "teacher")}} if name == "gkd" else {}


def config_of(model, folder, optimizer="ppo", adapter=None, **sections):
    mapping = {
        "model": str(model),
        "run": {"folder": str(folder), "device": "cpu", "precision": "no"},
        "sampling": {"max_new_tokens": 6},
        "train": {"updates": 2, "prompts_per_update": 4, "learning_rate": 0.01},
        "adapter": adapter or {"method": "lora", "rank": 2},
        "optimizer": {"name": optimizer} | teacher_of(optimizer, model),
        "evaluation": {"prompts": 0},
        "checkpoint": {"every": 1, "keep": 10},
        "trackers": [],
    }
    if optimizer in SAMPLING:
        mapping["train"]["group_size"] = max(2, SPECS[optimizer].needs.minimum_group_size)
    for name, section in sections.items():
        mapping[name] = {**mapping[name], **section} if isinstance(mapping.get(name), dict) else section
    return build(RLConfig, mapping)


def run(config, **wanted):
    return rl(config, reward=cats, prompts=PROMPTS, progress=False, **wanted)


def tensors(folder):
    newest = list_checkpoints(Path(folder))[-1]
    return {file.relative_to(newest): load_file(file) for file in sorted(newest.rglob("*.safetensors"))}


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[file][name], other[file][name]) for file in one for name in one[file])


@pytest.fixture
def backbones(monkeypatch):
    """Return, for every adapter that is made, the backbone before training and the adapter."""
    kept = []
    usual = Adapter.__init__

    def remember(self, model, settings):
        usual(self, model, settings)
        kept.append(({name: tensor.clone() for name, tensor in self.backbone()}, self))

    monkeypatch.setattr(Adapter, "__init__", remember)
    return kept


@pytest.mark.parametrize("optimizer", SAMPLING)
def test_every_optimizer_that_samples_trains_an_adapter(tiny_folder, tmp_path, optimizer, backbones):
    run(config_of(tiny_folder, tmp_path / "run", optimizer))
    [(before, adapter)] = backbones
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter.backbone())
    records = read_metrics(tmp_path / "run")
    if optimizer != "nlpo":  # which draws from a part of the vocabulary
        assert records[1]["rollout/kl"] == pytest.approx(0, abs=1e-5), "the policy starts as its reference"
    newest = list_checkpoints(tmp_path / "run")[-1]
    state = load_file(newest / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.any() for name, tensor in state.items()), "the adapter has learnt"
    assert not (newest / "config.json").exists() and not (newest / "model.safetensors").exists()


@pytest.mark.parametrize("optimizer", FROM_DATA)
def test_optimizers_that_learn_from_data_do_too(tiny_folder, tmp_path, optimizer, backbones):
    data = PAIRS if SPECS[optimizer].needs.experience == "preferences" else LABELLED
    rl(config_of(tiny_folder, tmp_path / "run", optimizer), data=data, progress=False)
    [(before, adapter)] = backbones
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter.backbone())
    state = load_file(list_checkpoints(tmp_path / "run")[-1] / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.any() for name, tensor in state.items())


@pytest.mark.parametrize(
    ("method", "optimizer", "critic"), [("lora", "ppo", True), ("dora", "nlpo", False), ("rslora", "grpo", False)]
)
def test_resumed_equals_undisturbed_bit_for_bit(tiny_folder, tmp_path, method, optimizer, critic):
    def config(folder, updates):
        train = {"updates": updates} | ({"separate_critic": True} if critic else {})
        return config_of(tiny_folder, tmp_path / folder, optimizer, {"method": method, "rank": 2}, train=train)

    run(config("whole", 4))
    run(config("parts", 2))
    run(config("parts", 4), resume=True)
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert equal(whole, parts)
    assert not equal(whole, {file: dict(found) for file, found in tensors_at(tmp_path / "whole", 0).items()})


def tensors_at(folder, place):
    checkpoint = list_checkpoints(Path(folder))[place]
    return {file.relative_to(checkpoint): load_file(file) for file in sorted(checkpoint.rglob("*.safetensors"))}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_checkpoint_loads_in_peft_and_merges_into_the_same_logits(tmp_path, method, architecture):
    from transformers import AutoModelForCausalLM

    from lmrl.testing import write_tiny_model

    base = write_tiny_model(tmp_path / "base", architecture=architecture)
    run(config_of(base, tmp_path / "run", "ppo", {"method": method, "rank": 2}, train={"separate_critic": True}))
    checkpoint = list_checkpoints(tmp_path / "run")[-1]
    plain = AutoModelForCausalLM.from_pretrained(base)
    before = plain(IDS).logits
    expected = peft.PeftModel.from_pretrained(plain, checkpoint).eval()(IDS).logits
    assert (expected - before).abs().max() > 1e-4
    assert export(tmp_path / "run", tmp_path / "merged", merge=True) == "model"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(load(tmp_path / "run").model(IDS).logits, expected, rtol=0, atol=5e-5)
    assert len(list(checkpoint.rglob("adapter_model.safetensors"))) == 2, "the policy's and the critic's"


@pytest.mark.slow
def test_two_ranks_equal_one(tiny_folder, tmp_path):
    location = Path(__file__).with_name("test_ranks.py")
    ranks = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("ranks", location))
    spec.loader.exec_module(ranks)
    script = tmp_path / "run.py"
    script.write_text(ranks.RUN)
    (tmp_path / "watch.py").write_text(ranks.WATCH)
    found = []
    for count in (1, 2):
        folder = tmp_path / f"run{count}"
        mapping = {
            "model": str(tiny_folder),
            "run": {"folder": str(folder), "device": "cpu", "precision": "no"},
            "sampling": {"max_new_tokens": 4},
            "train": {"updates": 1, "prompts_per_update": 4, "separate_critic": True, "learning_rate": 0.003},
            "adapter": {"method": "lora", "rank": 2},
            "optimizer": {"name": "ppo", "ppo": {"minibatches": 1, "epochs": 1}},
            "evaluation": {"prompts": 0},
            "trackers": [],
        }
        assert ranks.run_ranks(count, script, [json.dumps(mapping)]) == count
        found.append(tensors(folder))
    one, two = found
    assert one.keys() == two.keys()
    for file, state in one.items():
        for name, tensor in state.items():
            torch.testing.assert_close(two[file][name], tensor, rtol=1e-3, atol=1e-5)


def test_an_adapter_of_a_run_is_evaluated_and_is_no_start_of_another_adapter(tiny_folder, tmp_path, capsys):
    run(config_of(tiny_folder, tmp_path / "run"))
    with pytest.raises(SettingsError, match=r"an adapter on an adapter.*lmrl export .* --merge, then model=FOLDER"):
        run(config_of(tmp_path / "run", tmp_path / "second"))
    assert not (tmp_path / "second").exists()
    run(config_of(tmp_path / "run", tmp_path / "whole", adapter={"method": "none"}))  # all weights of the merged model
    assert (list_checkpoints(tmp_path / "whole")[-1] / "config.json").exists()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "merged"), "--merge"]) == 0
    run(config_of(tmp_path / "merged", tmp_path / "second"))


@pytest.mark.parametrize(
    ("adapter", "optimizer", "error", "message"),
    [
        ({"method": "lora", "target_modules": ["q_porj"]}, "ppo", ModelError, "Did you mean 'q_proj'"),
        ({"method": "lora", "dropout": 0.1}, "ppo", SettingsError, "adapter.dropout is 0.1; expected 0 in RL"),
        ({"method": "lora"}, "ilql", SettingsError, "optimizer 'ilql' writes another LM head"),
    ],
)
def test_settings_that_are_refused(tiny_folder, tmp_path, adapter, optimizer, error, message):
    rows = [{"prompt": "the", "completion": " cat", "reward": float(number)} for number in range(4)]
    data = rows if optimizer == "ilql" else None
    with pytest.raises(error, match=message):
        rl(config_of(tiny_folder, tmp_path / "run", optimizer, adapter), reward=cats, prompts=PROMPTS, data=data)
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_base_is_refused(tmp_path):
    from lmrl.testing import write_tiny_model

    base = write_tiny_model(tmp_path / "base")
    config = config_of(base, tmp_path / "run", train={"updates": 1})
    run(config)
    checkpoint = list_checkpoints(tmp_path / "run")[-1]
    other = load(base).model
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.1)
    other.save_pretrained(base)  # of the same shape
    with pytest.raises(ModelError, match="belongs to another base model than the one that is loaded"):
        load(checkpoint)
    with pytest.raises(ModelError, match="belongs to another base model than the one that is loaded"):
        run(config_of(base, tmp_path / "run"), resume=True)
    settings = json.loads((checkpoint / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(write_tiny_model(tmp_path / "wider", architecture="gpt2"))
    (checkpoint / "adapter_config.json").write_text(json.dumps(settings))
    (checkpoint / "backbone.json").unlink()
    with pytest.raises(ModelError, match="Use it with the base model that it was trained from"):
        load(checkpoint)


def test_settings_of_an_adapter_need_a_method():
    config = build(RLConfig, {"adapter": {"rank": 8}, "checkpoint": {"dtype": "bfloat16"}})
    with pytest.raises(SettingsError, match=r"adapter\.rank .* only with adapter.method=lora"):
        refuse_unread(config, PluginManager(), ["adapter.rank"])
    config = build(RLConfig, {"adapter": {"method": "lora"}, "checkpoint": {"dtype": "bfloat16"}})
    with pytest.raises(SettingsError, match=r"checkpoint\.dtype .* only with adapter.method=none"):
        refuse_unread(config, PluginManager(), ["checkpoint.dtype"])
