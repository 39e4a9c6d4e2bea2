"""An adapter's folder as a model or as a reward: its base model with the adapter merged."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from checkpoint_files import cache_on_hub, edit_json
from safetensors.torch import load_file, save_file

from lmrl.errors import ModelError
from lmrl.models import load
from lmrl.models.adapters import AdapterSettings, add_adapter, save_adapter
from lmrl.models.reward_model import load_reward_model, start_reward_model
from lmrl.testing import write_tiny_model
from lmrl.text.card import load_card
from lmrl.text.chat_setup import add_token_rows
from lmrl.text.reward_card import load_reward_card

peft = pytest.importorskip("peft")
IDS = torch.tensor([[3, 5, 7, 9, 4]])
WEIGHTS = "adapter_model.safetensors"


def disturb(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def adapted(folder, target, new_ids=()):
    """Train an adapter on the model in ``folder``, save it to ``target``/adapter and return its logits."""
    model = load(folder).model
    add_token_rows(model, new_ids)
    result = add_adapter(model, AdapterSettings(method="lora", rank=2), new_ids).eval()
    disturb(result)
    save_adapter(result, target)
    return result(IDS).logits


def scorer(folder, target, labels=1, head=True):
    """Write an adapter on a classification model with a trained head, as PEFT and TRL do."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels, pad_token_id=0)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, modules_to_save=["score"] if head else None)
    result = peft.get_peft_model(model, config).eval()
    disturb(result)
    result.save_pretrained(target)
    return result(IDS).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_adapter_loads_on_its_base(tmp_path, named, architecture):
    base = write_tiny_model(tmp_path / "base", architecture=architecture)
    expected = adapted(base, tmp_path)
    found = load(named(tmp_path / "adapter"))
    torch.testing.assert_close(found.model(IDS).logits, expected, rtol=0, atol=1e-5)
    assert not any("lora" in name for name in found.model.state_dict())
    assert all(parameter.requires_grad for parameter in found.model.parameters()), "training it trains every weight"
    assert found.card.codec.encode("the cat") == [3, 5] and found.card.eos_ids == (1,)


def test_the_base_may_be_a_hub_id(checkpoint, hub_cache, tmp_path):
    name = cache_on_hub(checkpoint, hub_cache)
    expected = adapted(name, tmp_path)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == name
    torch.testing.assert_close(load(tmp_path / "adapter").model(IDS).logits, expected, rtol=0, atol=1e-5)


def test_an_adapter_that_is_trained_on_an_adapter_does_not_pass_for_one_on_the_base(checkpoint, tmp_path):
    adapted(checkpoint, tmp_path / "first")
    expected = adapted(tmp_path / "first" / "adapter", tmp_path / "second")
    with pytest.raises(ModelError, match=r"is an adapter on .*first/adapter, another adapter"):
        load(tmp_path / "second" / "adapter")
    base = load(tmp_path / "first" / "adapter").model
    both = peft.PeftModel.from_pretrained(base, tmp_path / "second" / "adapter").eval()
    torch.testing.assert_close(both(IDS).logits, expected, rtol=0, atol=1e-5)


def test_new_tokens_of_an_adapter_have_rows(checkpoint, tmp_path):
    expected = adapted(checkpoint, tmp_path, new_ids=(15, 16))
    found = load(tmp_path / "adapter")
    torch.testing.assert_close(found.model(IDS).logits, expected, rtol=0, atol=1e-5)
    assert found.card.vocab_size == 17


def test_a_reward_adapter(checkpoint, tmp_path, named):
    expected = scorer(checkpoint, tmp_path / "scores")
    model = load_reward_model(named(tmp_path / "scores"))
    torch.testing.assert_close(model(IDS, torch.tensor([5])), expected[:, 0], rtol=0, atol=1e-5)
    further = start_reward_model(tmp_path / "scores", seed=0)
    assert all(parameter.requires_grad for parameter in further.parameters())
    torch.testing.assert_close(further(IDS, torch.tensor([5])), expected[:, 0], rtol=0, atol=1e-5)
    model.save(tmp_path / "merged")
    again = load_reward_model(tmp_path / "merged")
    torch.testing.assert_close(again(IDS, torch.tensor([5])), expected[:, 0], rtol=0, atol=1e-5)


def test_an_adapter_of_the_other_kind_is_refused(checkpoint, tmp_path):
    adapted(checkpoint, tmp_path)
    with pytest.raises(ModelError, match="is no reward model"):
        load_reward_card(tmp_path / "adapter")
    scorer(checkpoint, tmp_path / "scores")
    with pytest.raises(ModelError, match="adapter for the task SEQ_CLS"):
        load_card(tmp_path / "scores")
    scorer(checkpoint, tmp_path / "labels", labels=2)
    with pytest.raises(ModelError, match="2 labels"):
        load_reward_card(tmp_path / "labels")


def change_config(**changes):
    return lambda folder: edit_json(folder / "adapter_config.json", **changes)


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def on_itself(folder):
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(folder))


def beside_a_model(folder):
    write_tiny_model(folder)


def change_weights(change):
    def apply(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_config(base_model_name_or_path="./gone"), r"base model ./gone, which is missing.*Set base_model_name"),
        (change_config(base_model_name_or_path="someone/gone"), "base model someone/gone, which is missing"),
        (change_config(base_model_name_or_path=None), "names no base model"),
        (change_config(base_model_name_or_path=""), "names no base model"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"holds no {WEIGHTS}"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "is empty"),
        (change_weights(lambda tensors: tensors.pop(sorted(tensors)[0])), "does not fit .*1 tensors are missing"),
        (change_weights(lambda tensors: tensors.update(other=torch.zeros(2))), r"unexpected \(other\)"),
        (change_config(r=4), "size mismatch|does not fit"),
        (pickled, r"adapter_model.bin, a pickle. Convert them once: python -c"),
        (on_itself, "another adapter"),
        (beside_a_model, r"whole model \(model.safetensors\) and an adapter"),
    ],
)
def test_a_damaged_adapter_is_named(checkpoint, tmp_path, named, damage, message):
    adapted(checkpoint, tmp_path)
    damage(tmp_path / "adapter")
    with pytest.raises(ModelError, match=message):
        load(named(tmp_path / "adapter"))


def test_the_conversion_command_of_an_adapter_works(checkpoint, tmp_path):
    expected = adapted(checkpoint, tmp_path)
    pickled(tmp_path / "adapter")
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "adapter")
    command = shlex.split(str(caught.value).split("Convert them once: ")[1])
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    torch.testing.assert_close(load(tmp_path / "adapter").model(IDS).logits, expected, rtol=0, atol=1e-5)


def test_a_config_beside_an_adapter_makes_no_whole_model(checkpoint, tmp_path, named):
    expected = adapted(checkpoint, tmp_path)
    shutil.copyfile(checkpoint / "config.json", tmp_path / "adapter" / "config.json")
    torch.testing.assert_close(load(named(tmp_path / "adapter")).model(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [15, 19, 32])
def test_a_table_of_an_adapter_may_be_smaller_or_larger(checkpoint, tmp_path, named, rows):
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    base.resize_token_embeddings(24)
    base.save_pretrained(checkpoint)
    base.resize_token_embeddings(rows)
    base.name_or_path = str(checkpoint)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2)).eval()
    disturb(model)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    found = load(named(tmp_path / "adapter"))
    torch.testing.assert_close(found.model(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
    assert found.card.vocab_size == rows


def test_the_merged_checkpoint_is_named_where_the_base_is_gone(tmp_path):
    base = write_tiny_model(tmp_path / "base")
    write_tiny_model(tmp_path / "checkpoint")
    adapted(base, tmp_path / "checkpoint")
    shutil.rmtree(base)
    with pytest.raises(ModelError, match=rf"{tmp_path}/checkpoint contains the merged model"):
        load(tmp_path / "checkpoint" / "adapter")


def test_a_prompt_adapter_cannot_be_merged(checkpoint, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ModelError, match="PROMPT_TUNING"):
        load(tmp_path / "prompt")


@pytest.mark.parametrize(
    ("file", "name", "what"),
    [("adapter_config.json", "step-{}", "An adapter"), ("config.json", "epoch-{}", "A model")],
)
def test_a_folder_of_checkpoints_names_the_newest(tmp_path, file, name, what):
    """A trainer's output folder holds its checkpoints, not a model."""
    for step in (500, 1000):
        folder = tmp_path / "output" / name.format(step)
        folder.mkdir(parents=True)
        (folder / file).write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=f"holds no config.json.*{what} is in .*{name.format(1000)}; name that folder"):
        load_card(tmp_path / "output")
