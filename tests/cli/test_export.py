"""`lmrl export`: adapters merged or copied, whole models without training state, mistakes in one paragraph."""

import pytest
import torch
import transformers

from lmrl.cli.main import main
from lmrl.models import PolicyModel, load
from lmrl.models.adapted import Adapter
from lmrl.models.adapters import AdapterSettings
from lmrl.testing import write_tiny_model

peft = pytest.importorskip("peft")
IDS = torch.tensor([[3, 5, 7, 9, 4]])


@pytest.fixture
def base(tmp_path):
    return write_tiny_model(tmp_path / "base")


@pytest.fixture
def trained(base, tmp_path):
    """Write a run folder with a checkpoint of a trained policy with adapter; return it and the policy's logits."""
    model = load(base).model
    policy = PolicyModel(model, with_values=True, adapter=Adapter(model, AdapterSettings(method="dora", rank=2)))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) * parameter.requires_grad)
    model.generation_config.eos_token_id = [1, 7]
    policy.save(tmp_path / "run" / "checkpoint-000002", base)
    return tmp_path / "run", policy.model(IDS).logits


def logits_of(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits


def test_a_merged_folder_is_a_plain_model_with_the_same_logits(trained, tmp_path, capsys):
    run, expected = trained
    target = tmp_path / "merged"
    assert main(["export", str(run), str(target), "--merge"]) == 0
    assert f"lmrl chat {target}" in capsys.readouterr().out
    torch.testing.assert_close(logits_of(target), expected, rtol=0, atol=5e-5)
    assert not any("adapter" in file.name for file in target.iterdir())
    assert load(target).card.eos_ids == (1, 7), "what ends a response there ends it here"
    assert main(["export", str(run), str(tmp_path / "half"), "--merge", "--dtype", "bfloat16"]) == 0
    assert load(tmp_path / "half").stored_dtype == "bfloat16"


def test_without_merge_an_adapter_is_copied_without_heads(trained, base, tmp_path):
    run, expected = trained
    assert main(["export", str(run), str(tmp_path / "adapter")]) == 0
    names = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not any("value" in name for name in names)
    read = peft.PeftModel.from_pretrained(load(base).model, tmp_path / "adapter").eval()
    torch.testing.assert_close(read(IDS).logits, expected, rtol=0, atol=1e-6)


def test_a_whole_model_keeps_weights_and_precision_and_loses_training_state(base, tmp_path):
    model = load(base).model
    checkpoint = tmp_path / "run" / "checkpoint-000003"
    PolicyModel(model, with_values=True).save(checkpoint, base, torch.bfloat16)
    (checkpoint / "trainer_state.pt").write_bytes(b"state")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "plain")]) == 0
    names = {file.name for file in (tmp_path / "plain").iterdir()}
    assert not names & {"trainer_state.pt", "value_head.safetensors", "training_weights.safetensors"}
    assert torch.equal(logits_of(tmp_path / "plain"), logits_of(checkpoint))
    assert load(tmp_path / "plain").stored_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base", "new", "--merge"], "is a whole model without an adapter to merge; leave --merge out"),
        (["run", "base"], "already exists and is not empty; expected a new folder"),
        (["run", "new", "--dtype", "float16"], "Add --merge to write a whole model"),
        (["nothing/here/at/all", "new"], "there is no model folder"),
    ],
)
def test_mistakes(trained, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) != 0
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "new").exists()
