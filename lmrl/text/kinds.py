"""Kinds of checkpoints, told from config.json and the names of files: causal language models and all others.

Needs neither torch nor transformers, except for composite configurations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lmrl.errors import ModelError
from lmrl.text.files import ADAPTER_CONFIG, CheckpointFiles, read_json

CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel", "WithLMHead", "GenerationDecoder")
SCORES = "which scores texts and writes none"
EMBEDS = "which embeds texts and writes none"
ENDINGS = {
    "ForSequenceClassification": f"a reward model or classifier, {SCORES}",
    "ForRewardModel": f"a reward model, {SCORES}",
    "ForProcessRewardModel": f"a reward model, {SCORES}",
    "ForTokenClassification": "a token classification model, which labels tokens and writes none",
    "ForQuestionAnswering": "a question answering model, which marks spans and writes no text",
    "ForMultipleChoice": f"a multiple choice model, {SCORES}",
    "ForNextSentencePrediction": f"an encoder-only model, {EMBEDS}",
    "ForMaskedLM": "an encoder-only model, which fills gaps and does not continue texts",
    "ForTextEncoding": f"an embedding model, {EMBEDS}",
    "ForSentenceEmbedding": f"an embedding model, {EMBEDS}",
    "ForImageClassification": "an image model",
    "ForImageTextToText": "an image model",
    "ForVision2Seq": "an image model",
    "ForCTC": "an audio model",
    "ForAudioClassification": "an audio model",
    "ForSpeechSeq2Seq": "an audio model",
}
"""Architectures by their ending, and their kind in words."""
# fmt: off
ENCODERS = frozenset((
    "albert", "bert", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
    "electra", "ernie", "esm", "eurobert", "flaubert", "fnet", "funnel", "gte", "ibert", "layoutlm",
    "longformer", "luke", "megatron-bert", "mobilebert", "modernbert", "mpnet", "mra", "nomic_bert",
    "nystromformer", "perceiver", "rembert", "roberta", "roberta-prelayernorm", "roformer",
    "squeezebert", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso",
))
# fmt: on
"""Families that read a text as a whole unless ``is_decoder`` is set."""
IMAGE_KEYS = ("vision_config", "vision_tower", "mm_vision_tower", "visual", "image_token_id", "image_token_index")
AUDIO_KEYS = ("audio_config", "audio_encoder", "speech_config", "audio_token_id", "audio_token_index", "num_mel_bins")
EMBEDDING_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
"""Files of sentence-transformers."""


def require_causal(files: CheckpointFiles, config: Mapping[str, Any]) -> None:
    """Raise ``ModelError`` unless config.json is that of a causal language model; the error names the kind."""
    kind = _adapter_kind(files) or other_kind(config, (item.name for item in files.folder.iterdir()))
    if kind:
        raise ModelError(
            f"{files.name} is {kind} ({_named(config)}); expected a causal (decoder-only) language model, which "
            "AutoModelForCausalLM loads, such as a Llama, Qwen or GPT-2."
        )


def other_kind(config: Mapping[str, Any], names: Iterable[str] = ()) -> str:
    """Return the kind of a checkpoint that is no causal language model, in words; empty for one that may be."""
    architectures = [str(name) for name in config.get("architectures") or []]
    media = media_of(config)
    if media and not text_model_type(config):
        return f"{media} model"
    for architecture in architectures:
        for ending, kind in ENDINGS.items():
            if architecture.endswith(ending) and not any(one.endswith(CAUSAL_ENDINGS) for one in architectures):
                return kind
    if config.get("is_encoder_decoder"):
        return "an encoder-decoder model"
    if any(name in EMBEDDING_FILES for name in names):
        return f"an embedding model (sentence-transformers), {EMBEDS}"
    if config.get("model_type") in ENCODERS and not config.get("is_decoder"):
        return f"an encoder-only model, {EMBEDS}"
    nested = config.get("text_config")
    if isinstance(nested, Mapping) and not text_model_type(config) and not config.get("auto_map"):
        return "a composite model without a text-only part that transformers loads"
    return ""


def media_of(config: Mapping[str, Any]) -> str:
    """Return "an image", "an audio" or "an image and audio" if a configuration has such parts, else an empty string."""
    image = any(config.get(key) is not None for key in IMAGE_KEYS)
    audio = any(config.get(key) is not None for key in AUDIO_KEYS)
    return "an image and audio" if image and audio else "an image" if image else "an audio" if audio else ""


def text_model_type(config: Mapping[str, Any]) -> str:
    """Return the model type of a composite checkpoint's causal language model, which loads without the other parts.

    Empty where there is none: both the whole and its ``text_config`` need to be known to ``AutoModelForCausalLM``.
    """
    nested = config.get("text_config")
    if not isinstance(nested, Mapping):
        return ""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    whole = str(config.get("model_type"))
    inner = str(nested.get("model_type") or "")
    if not inner and whole in CONFIG_MAPPING:
        part = CONFIG_MAPPING[whole].sub_configs.get("text_config")
        inner = str(getattr(part, "model_type", ""))
    return inner if whole in CAUSAL and inner in CAUSAL else ""


def _adapter_kind(files: CheckpointFiles) -> str:
    if files.adapter is None:
        return ""
    task = read_json(files.adapter / ADAPTER_CONFIG).get("task_type")
    return "" if task in (None, "CAUSAL_LM") else f"an adapter for the task {task}"


def _named(config: Mapping[str, Any]) -> str:
    architectures = ", ".join(map(str, config.get("architectures") or []))
    return f"config.json names {architectures or 'no architecture'}, model_type {config.get('model_type')!r}"
