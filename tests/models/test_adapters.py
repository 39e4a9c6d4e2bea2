"""Low-rank adapters: the base is frozen, what is merged equals what was trained, and plain PEFT reads it."""

import builtins

import pytest
import torch
import transformers

from lmrl.errors import ModelError, SettingsError
from lmrl.models import load
from lmrl.models.adapters import AdapterSettings, add_adapter, load_adapter, merged_copy, save_adapter
from lmrl.testing import write_tiny_model
from lmrl.text.chat_setup import add_token_rows

peft = pytest.importorskip("peft")
IDS = torch.tensor([[3, 5, 7, 9, 4]])
LORA = AdapterSettings(method="lora", rank=4)
METHODS = [AdapterSettings(method=method, rank=4) for method in ("lora", "rslora", "dora")]


@pytest.fixture(params=["llama", "gpt2"])
def folder(request, tmp_path):
    return write_tiny_model(tmp_path / "model", architecture=request.param)


def disturb(model):
    """Change everything that is trained, as training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def test_only_the_adapter_learns_and_starts_without_effect(folder):
    start = load(folder).model
    expected = start(IDS).logits
    adapted = add_adapter(load(folder).model, LORA)
    torch.testing.assert_close(adapted(IDS).logits, expected, rtol=0, atol=0)
    frozen = {name: one.clone() for name, one in adapted.named_parameters() if "lora" not in name}
    optimizer = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        adapted(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(dict(adapted.named_parameters())[name], one) for name, one in frozen.items())
    assert (adapted(IDS).logits - expected).abs().max() > 0.01
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(IDS).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("settings", METHODS, ids=lambda settings: settings.method)
@pytest.mark.parametrize("new_ids", [(), (15, 16)])
def test_merged_weights_and_plain_peft_give_the_adapters_logits(folder, tmp_path, new_ids, settings):
    ids = torch.tensor([[3, *new_ids, 7, 4]])
    base = load(folder).model
    add_token_rows(base, new_ids)
    adapted = add_adapter(base, settings, new_ids).eval()
    disturb(adapted)
    expected = adapted(ids).logits
    before = {name: one.clone() for name, one in adapted.state_dict().items()}
    save_adapter(adapted, tmp_path)
    merged_copy(adapted).save_pretrained(tmp_path)
    after = adapted.state_dict()
    assert all(torch.equal(after[name], one) for name, one in before.items()), "saving changes nothing"

    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(merged(ids).logits, expected, rtol=0, atol=1e-5)
    assert not any("lora" in name for name in merged.state_dict())

    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    if new_ids:
        plain.resize_token_embeddings(max(new_ids) + 1, mean_resizing=False)
    read = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    torch.testing.assert_close(read(ids).logits, expected, rtol=0, atol=1e-6)

    again = load(folder).model
    add_token_rows(again, new_ids)
    resumed = add_adapter(again, settings, new_ids)
    load_adapter(resumed, tmp_path)
    assert all(torch.equal(resumed.state_dict()[name], one) for name, one in before.items()), "bit for bit"


def test_new_tokens_start_as_the_mean_of_the_old_ones(folder):
    model = load(folder).model
    old = model.get_input_embeddings().weight.clone()
    add_token_rows(model, (15, 16))
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == 17 and torch.equal(weight[:15], old)
    torch.testing.assert_close(weight[15], old.mean(0))
    torch.testing.assert_close(
        model.get_output_embeddings().weight[16], model.get_output_embeddings().weight[:15].mean(0)
    )
    add_token_rows(model, ())
    with pytest.raises(ModelError, match="tokenizer holds 20 tokens and the embedding table 17"):
        add_token_rows(model, (20,))


def test_what_does_not_fit(folder, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"names 'nothing', .*linear layers are .*; set adapter.target_modules"):
        add_adapter(load(folder).model, AdapterSettings(method="lora", target_modules=["nothing"]))
    name = "down_proj" if "llama" in type(load(folder).model).__name__.lower() else "c_proj"
    with pytest.raises(ModelError, match=f"Did you mean '{name}'"):  # PEFT takes one name of several that is wrong
        add_adapter(load(folder).model, AdapterSettings(method="lora", target_modules=[name, name.replace("_", "")]))
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        load_adapter(add_adapter(load(folder).model, LORA), tmp_path)
    usual = builtins.__import__

    def without_peft(name, *arguments, **named):
        if name.split(".")[0] == "peft":
            raise ImportError(name)
        return usual(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ModelError, match=r'pip install "lmrl\[adapters\]"'):
        add_adapter(load(folder).model, LORA)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"alpha": 0.0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"target_modules": []}, "target"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(SettingsError, match=f"adapter.{message}"):
        AdapterSettings(**setting)
