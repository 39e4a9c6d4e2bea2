"""A checkpoint is compared with what it must hold, by the same code for a folder and for a hub id."""

import json
import math
import os
import pickle
import shlex
import subprocess
import sys

import pytest
import torch
import transformers
from checkpoint_files import cache_on_hub, edit_json, edit_weights
from safetensors.torch import load_file, save_file

from lmrl.errors import DataError, ModelError, VocabularyError
from lmrl.models import load
from lmrl.models.reward_model import load_reward_model, start_reward_model
from lmrl.models.saving import save_model
from lmrl.testing import write_tiny_model
from lmrl.text.card import load_card

LAYER = "model.layers.1."
IDS = torch.tensor([[3, 5, 7]])


def without(*parts):
    def change(tensors):
        for name in [name for name in tensors if any(part in name for part in parts)]:
            del tensors[name]

    return lambda folder: edit_weights(folder, change)


def with_tensor(name, shape):
    return lambda folder: edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(shape)}))


def config(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def content(data, name="model.safetensors"):
    return lambda folder: (folder / name).write_bytes(data)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def longer(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"\0" * 64)


def sharded(absent=(), lost=()):
    """Divide the weights into two files with an index; leave out a file, or tensors of one."""

    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = {name: f"model-0000{1 + (LAYER in name)}-of-00002.safetensors" for name in tensors}
        for file in set(names.values()) - set(absent):
            held = {name: tensor for name, tensor in tensors.items() if names[name] == file and name not in lost}
            save_file(held, folder / file, metadata={"format": "pt"})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))

    return change


def other_file(name):
    def change(folder):
        (folder / "model.safetensors").rename(folder / name)

    return change


def value(number):
    return lambda folder: edit_weights(folder, lambda tensors: tensors["model.norm.weight"].view(-1)[:1].fill_(number))


def as_integers(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(16, dtype=torch.int8)}))


def index(text):
    def change(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def dangling(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("gone")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5000000000\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without(LAYER), rf"9 tensors are missing \(no weights for {LAYER}input_layernorm.weight, .* and 3 more\)"),
        (without(LAYER + "mlp.up_proj"), rf"1 tensors are missing \(no weights for {LAYER}mlp.up_proj.weight\)"),
        (without("lm_head"), r"missing \(no weights for lm_head.weight\)"),
        (without("embed_tokens"), r"missing \(no weights for model.embed_tokens.weight\)"),
        (config(num_hidden_layers=3), r"9 tensors are missing \(no weights for model.layers.2."),
        (config(num_hidden_layers=1), rf"9 tensors are unexpected \({LAYER}"),
        (with_tensor("model.extra.weight", (2,)), r"unexpected \(model.extra.weight\)"),
        (with_tensor("model.layers.0.self_attn.bias", (16,)), r"unexpected \(model.layers.0.self_attn.bias\)"),
        (value(math.nan), r"1 tensors hold a NaN or an infinity \(model.norm.weight\)"),
        (value(-math.inf), r"1 tensors hold a NaN or an infinity \(model.norm.weight\)"),
        (as_integers, r"1 weights are stored as integers \(model.norm.weight\)"),
        (index("[1]"), "expected a JSON object"),
        (index('{"weight_map": {"lm_head.weight": 3}}'), "has no weight_map"),
        (dangling, "model.safetensors is a link to a file that does not exist"),
        (with_tensor("lm_head.weight", (15, 8)), r"lm_head.weight is \[15, 8\], and the model needs \[15, 16\]"),
        (config(intermediate_size=64), r"6 tensors have another shape .*\[32, 16\], and the model needs \[64, 16\]"),
        (content(b""), "is empty"),
        (content(POINTER), "Git LFS pointer"),
        (content(b"\x07" * 40), "is damaged"),
        (content(b"{}"), "is damaged"),
        (cut, "is cut short or damaged"),
        (longer, "damaged"),
        (
            sharded(absent=["model-00002-of-00002.safetensors"]),
            r"1 of 2 weight files are missing \(model-00002-of",
        ),
        (sharded(lost=[LAYER + "mlp.up_proj.weight"]), rf"are not in their files \({LAYER}mlp.up_proj.weight\)"),
        (other_file("pytorch_model.bin"), r"could not be loaded: .* in pytorch_model.bin, a pickle.*python -c"),
        (other_file("model-q4.gguf"), "GGUF"),
        (other_file("model.onnx"), "ONNX"),
        (other_file("tf_model.h5"), "TensorFlow"),
        (other_file("flax_model.msgpack"), "Flax"),
        (other_file("consolidated.safetensors"), "found consolidated.safetensors"),
        (other_file("notes.md"), "contains no weights"),
    ],
)
def test_damaged_weights_are_named(checkpoint, named, damage, message):
    damage(checkpoint)
    with pytest.raises(ModelError, match=message):
        load(named(checkpoint))


def untied(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        sharded(),
        lambda folder: (without("lm_head")(folder), config(tie_word_embeddings=True)(folder)),
        lambda folder: (edit_weights(folder, untied), config(tie_word_embeddings=True)(folder)),
        with_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", (2,)),
        with_tensor("model.layers.0.self_attn.masked_bias", ()),
        with_tensor("model.layers.0.attention.bias", (1, 1, 8, 8)),
        with_tensor("model.layers.0.attn.causal_mask", (1, 1, 8, 8)),
        with_tensor("model.embed_positions.weights", (8, 16)),
        lambda folder: (
            with_tensor("model.layers.2.eh_proj.weight", (2, 2))(folder),
            config(num_nextn_predict_layers=1)(folder),
        ),
    ],
    ids=[*["whole", "sharded", "tied", "stored twice"], *[f"unused {number}" for number in range(5)], "next tokens"],
)
def test_complete_weights_load(checkpoint, named, change):
    change(checkpoint)
    found = load(named(checkpoint))
    plain = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    torch.testing.assert_close(found.model(IDS).logits, plain(IDS).logits, rtol=0, atol=0)


def test_tables_that_config_ties_and_that_differ_stay_apart(checkpoint, named, tmp_path, caplog):
    config(tie_word_embeddings=True)(checkpoint)
    found = load(named(checkpoint))
    assert "ties the output layer to the embeddings, and the checkpoint holds two different tables" in caplog.text
    save_model(found.model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is False
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again(IDS).logits, found.model(IDS).logits, rtol=0, atol=0)


def test_a_trunk_without_its_head_is_refused(checkpoint, named):
    transformers.LlamaForCausalLM.from_pretrained(checkpoint).model.save_pretrained(checkpoint)
    with pytest.raises(ModelError, match=r"missing \(no weights for lm_head.weight\)"):
        load(named(checkpoint))


@pytest.mark.parametrize(
    ("kind", "find"),
    [
        ("AutoModelForCausalLM", load),
        ("AutoModelForSequenceClassification", load_reward_model),
        ("AutoModelForCausalLM", lambda folder: start_reward_model(folder, seed=0)),
    ],
    ids=["policy", "reward", "policy that becomes a reward model"],
)
def test_the_conversion_command_works(tmp_path, kind, find):
    folder = write_tiny_model(tmp_path / "old model")
    if "Classification" in kind:
        start_reward_model(folder, seed=0).save(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    expected = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        find(folder)
    command = shlex.split(str(caught.value).split("Convert them once: ")[1])
    assert command[0] == "python" and kind in command[2]
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    find(folder)
    found = (load_reward_model if "Classification" in kind else load)(folder).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "generation",
    [{}, {"eos_token_id": None}, {"eos_token_id": []}, {"eos_token_id": ..., "max_length": 20}],
)
def test_the_end_token_of_config_counts_where_the_generation_config_names_none(checkpoint, named, generation):
    (checkpoint / "generation_config.json").unlink()
    if generation:
        edit_json(checkpoint / "generation_config.json", **generation)
    found = load(named(checkpoint))
    assert found.card.eos_ids == (1,) and found.model.generation_config.eos_token_id in (1, [1])
    edit_json(checkpoint / "config.json", eos_token_id=None)
    edit_json(checkpoint / "tokenizer_config.json", eos_token="<eos>")
    with pytest.raises(ModelError, match=r"names no eos_token_id.*tokenizer's is <eos>: .eos_token_id.: 1"):
        load_card(named(checkpoint))


@pytest.mark.parametrize("value", ["</s>", -1, True, 1.5, [1, None], [[1]]])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_an_end_token_is_a_whole_number(checkpoint, named, value, file):
    edit_json(checkpoint / "generation_config.json", eos_token_id=None)
    edit_json(checkpoint / file, eos_token_id=value)
    with pytest.raises(ModelError, match=r"eos_token_id is .*; expected a token id"):
        load_card(named(checkpoint))


def test_a_hub_id_has_the_card_of_its_files(checkpoint, hub_cache):
    name = cache_on_hub(checkpoint, hub_cache)
    card, twin = load_card(name), load_card(checkpoint)
    assert card.path == name and card.files.is_relative_to(hub_cache) and twin.path == str(checkpoint)
    assert card.eos_ids == twin.eos_ids and card.codec.encode("the cat") == twin.codec.encode("the cat")
    with pytest.raises(ModelError, match="neither a folder here nor a model on the hub"):
        load_card("someone/absent")


@pytest.mark.parametrize("nested", ["gemma3_text", "gemma3"])
def test_a_text_config_has_the_defaults_of_its_family(checkpoint, named, nested):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": sizes}
    if nested == "gemma3_text":  # a flat one
        whole = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **sizes, "eos_token_id": 1}
    (checkpoint / "config.json").write_text(json.dumps(whole))
    card = load_card(named(checkpoint))
    expected = transformers.Gemma3TextConfig(**sizes)
    assert (card.vocab_size, card.context_length) == (expected.vocab_size, expected.max_position_embeddings)
    assert card.eos_ids == (1,) and card.sliding_window == expected.sliding_window


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def test_a_folder_without_a_tokenizer_is_named(checkpoint, named):
    for name in TOKENIZER:
        (checkpoint / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"holds no tokenizer; expected tokenizer.json"):
        load_card(named(checkpoint))


def test_a_sentencepiece_model_names_the_package_that_it_needs(checkpoint, named, monkeypatch):
    (checkpoint / "tokenizer.json").rename(checkpoint / "tokenizer.model")
    edit_json(checkpoint / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    monkeypatch.setattr("lmrl.text.card.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"in tokenizer.model, which needs a package: pip install sentencepiece"):
        load_card(named(checkpoint))


def test_a_quantisation_that_transformers_does_not_know_is_noted_and_not_saved(checkpoint, named, tmp_path, caplog):
    config(quantization_config={"quant_method": "unheard"})(checkpoint)
    found = load(named(checkpoint))
    assert "does not know the quantization_config" in caplog.text
    save_model(found.model, tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def add_tokens(folder, count, special=False, where="tokenizer.json"):
    tokens = [f"<extra{number}>" for number in range(count)]
    if where == "tokenizer.json":
        from tokenizers import AddedToken, Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / where))
        added = [AddedToken(token, special=special) for token in tokens]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
        tokenizer.save(str(folder / where))
    else:
        entries = {str(15 + i): {"content": token, "special": True} for i, token in enumerate(tokens)}
        edit_json(folder / "tokenizer_config.json", added_tokens_decoder=entries)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("where", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("count", [1, 2])
def test_token_ids_beyond_the_table(checkpoint, named, count, where, special):
    add_tokens(checkpoint, count, special, where)
    with pytest.raises(VocabularyError, match=rf"has {15 + count} ids .* table has 15 rows; {count} tokens .*<extra0>"):
        load_card(named(checkpoint))


def test_a_padded_table_and_media_placeholders_are_fine(checkpoint, named):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    model.resize_token_embeddings(32)
    model.save_pretrained(checkpoint)
    add_tokens(checkpoint, 2)
    assert load(named(checkpoint)).card.vocab_size == 32


def test_a_placeholder_for_images_needs_no_row(checkpoint, named):
    add_tokens(checkpoint, 1)
    edit_json(checkpoint / "tokenizer_config.json", image_token="<extra0>")
    card = load(named(checkpoint)).card
    assert card.vocab_size == 15 and card.codec.encode("the cat") == [3, 5]
    for codec in (card.codec, pickle.loads(pickle.dumps(card.codec))):
        for name in ("encode", "encode_plain", "encode_spans"):
            with pytest.raises(DataError, match="contains <extra0>, a placeholder for images"):
                getattr(codec, name)("the <extra0> cat")
        with pytest.raises(DataError, match="contains <extra0>"):
            codec.encode_pair("the cat", "<extra0>")


def test_all_weights_are_checked_before_the_first_model_answers(checkpoint, named, tmp_path, monkeypatch):
    from lmrl.stages.evaluate import comparison as compare

    cut(checkpoint)
    monkeypatch.setattr(compare, "sample_texts", lambda *arguments: pytest.fail("sampled"))
    with pytest.raises(ModelError, match="is cut short"):
        compare.compare([write_tiny_model(tmp_path / "good"), named(checkpoint)], ["the"], progress=False, device="cpu")


def test_a_card_needs_no_torch(checkpoint, hub_cache):
    name = cache_on_hub(checkpoint, hub_cache)
    code = "import sys; from lmrl.text import load_card; [load_card(name) for name in sys.argv[1:]]"
    code += "; assert not {'torch', 'transformers'} & set(sys.modules)"
    environment = dict(os.environ, HF_HUB_CACHE=str(hub_cache))
    subprocess.run([sys.executable, "-c", code, str(checkpoint), name], check=True, env=environment)
