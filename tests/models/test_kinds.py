"""Checkpoints that are no causal language model are refused by name, before any weights are read."""

import pytest
import torch
import transformers
from checkpoint_files import edit_json, edit_weights

from lmrl.errors import ModelError
from lmrl.models import PolicyModel, load
from lmrl.models.reward_model import load_reward_model, start_reward_model
from lmrl.text.card import load_card

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 15}
ENCODER = {"model_type": "bert", "max_position_embeddings": 48, "is_decoder": ..., **SIZES}


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("LlamaForSequenceClassification", {}, "is a reward model or classifier"),
        ("Qwen2ForRewardModel", {}, "is a reward model"),
        ("LlamaForTokenClassification", {}, "token classification"),
        ("LlamaForQuestionAnswering", {}, "question answering"),
        ("BertForMaskedLM", ENCODER, "encoder-only"),
        ("BertModel", ENCODER, "encoder-only"),
        ("RobertaForSequenceClassification", ENCODER | {"model_type": "roberta"}, "reward model or classifier"),
        ("ModernBertModel", ENCODER | {"model_type": "modernbert"}, "encoder-only"),
        ("BertLMHeadModel", ENCODER, "encoder-only"),
        ("T5ForConditionalGeneration", {"is_encoder_decoder": True, "model_type": "t5"}, "encoder-decoder"),
        ("LlavaForConditionalGeneration", {"model_type": "llava", "vision_config": {}, "text_config": SIZES}, "image"),
        ("Qwen2VLForConditionalGeneration", {"model_type": "qwen2_vl", "vision_config": {}}, "image"),
        ("FuyuForCausalLM", {"model_type": "fuyu", "image_token_id": 3}, "image"),
        ("WhisperForConditionalGeneration", {"model_type": "whisper", "num_mel_bins": 80}, "audio"),
        ("Qwen2AudioForConditionalGeneration", {"model_type": "qwen2_audio", "audio_config": {}}, "audio"),
        ("OmniModel", {"model_type": "omni", "audio_config": {}, "vision_config": {}}, "image and audio"),
        ("OtherModel", {"model_type": "other", "text_config": SIZES}, "composite"),
    ],
)
def test_refused_by_name(checkpoint, named, architecture, changes, message):
    edit_json(checkpoint / "config.json", architectures=[architecture], **changes)
    with pytest.raises(ModelError, match=rf"{message}.*{architecture}"):
        load_card(named(checkpoint))


def test_an_embedding_model_is_refused(checkpoint, named):
    (checkpoint / "modules.json").write_text("[]")
    with pytest.raises(ModelError, match="embedding model"):
        load(named(checkpoint))


def test_a_saved_reward_model_is_refused_as_a_language_model(checkpoint, named, tmp_path):
    start_reward_model(checkpoint, seed=0).save(tmp_path / "scores")
    with pytest.raises(ModelError, match="is a reward model"):
        load(named(tmp_path / "scores"))


@pytest.mark.parametrize("family", ["Mamba", "Cohere"])
def test_a_family_without_a_reward_head_is_named(checkpoint, family):
    sizes = {"vocab_size": 15, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{family}Config")(**sizes, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(checkpoint)
    with pytest.raises(
        ModelError, match=rf"is a '{family.lower()}' model, a family for which transformers has no Auto"
    ):
        start_reward_model(checkpoint, seed=0)


def test_an_unknown_family_is_an_error(checkpoint, named):
    edit_json(checkpoint / "config.json", model_type="tomorrow", architectures=["TomorrowForCausalLM"])
    with pytest.raises(ModelError, match="tomorrow"):
        load(named(checkpoint))


def composite(folder):
    """Write a tiny Gemma 3 with an image part over a checkpoint."""
    text = SIZES | {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 48, "pad_token_id": 0}
    config = transformers.Gemma3Config(
        text_config=text | {"eos_token_id": 1, "bos_token_id": None},
        vision_config={k: v for k, v in SIZES.items() if k != "vocab_size"} | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=14,
        boi_token_index=13,
        eoi_token_index=12,
        eos_token_id=1,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    model.save_pretrained(folder)
    return model.eval()


def rename(tensors):
    for name in [name for name in tensors if name.startswith("model.language_model.")]:
        tensors[name.replace("model.language_model.", "language_model.model.")] = tensors.pop(name)


@pytest.mark.parametrize("old_names", [False, True])
def test_the_language_model_of_a_composite_checkpoint(checkpoint, named, tmp_path, old_names):
    whole = composite(checkpoint)
    if old_names:  # as the first checkpoints of the family have them
        edit_weights(checkpoint, rename)
    found = load(named(checkpoint))
    ids = torch.tensor([[3, 5, 7, 9]])
    torch.testing.assert_close(found.model(ids).logits, whole(input_ids=ids).logits, rtol=0, atol=1e-6)
    assert type(found.model).__name__ == "Gemma3ForCausalLM"
    (tmp_path / "saved").mkdir()
    PolicyModel(found.model).save(tmp_path / "saved", found.card.files)
    again = load(tmp_path / "saved")
    torch.testing.assert_close(again.model(ids).logits, whole(input_ids=ids).logits, rtol=0, atol=1e-6)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(plain).__name__ == "Gemma3ForCausalLM"
    start_reward_model(named(checkpoint), seed=0).save(tmp_path / "scores")
    assert load_reward_model(tmp_path / "scores").score_rows([[3, 5, 7]]).isfinite().all()
