"""A new language model of any family that ``AutoModelForCausalLM`` knows, or a checkpoint to continue from."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmrl.corpus import DocumentEncoder, TokenizerSettings, bring_tokenizer
from lmrl.corpus.tokenizer import load_tokenizer
from lmrl.errors import ModelError, SettingsError, nearest, unknown
from lmrl.models import load
from lmrl.models.loading import require_trainable
from lmrl.models.saving import save_model
from lmrl.seeds import derive_seed
from lmrl.stages.pretrain.config import PretrainModelSettings
from lmrl.text.card import CONTEXT_KEYS, load_card

OURS = {
    "context_length": CONTEXT_KEYS,
    "tie_embeddings": ("tie_word_embeddings",),
    "vocabulary": ("vocab_size",),
}
"""Settings of [model] and of the tokenizer, which [model.config] may not name again."""
EXPANSION = 8 / 3
"""Width of a gated feed-forward layer by that of the model: as many parameters as four times the width without a gate
(Shazeer 2020)."""


@dataclass(frozen=True)
class SpecialIds:
    """The ids that a model's configuration names."""

    eos: int
    pad: int
    bos: int | None = None

    @classmethod
    def of(cls, encoder: DocumentEncoder) -> SpecialIds:
        """Return those of a tokenizer."""
        return cls(encoder.eos_id, encoder.pad_id, encoder.prefix[0] if encoder.prefix else None)


def make_config(settings: PretrainModelSettings, vocabulary_size: int, ids: SpecialIds) -> Any:
    """Return the configuration of a new model.

    Raises ``SettingsError`` for a family that is unknown or is no causal language model, and for a name in
    ``[model.config]`` that the family does not have.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if settings.architecture not in CONFIG_MAPPING:
        raise SettingsError(f"model.architecture: {_unknown_family(settings.architecture, list(CONFIG_MAPPING))}")
    family = CONFIG_MAPPING[settings.architecture]
    if family not in AutoModelForCausalLM._model_mapping:
        raise SettingsError(
            f"model.architecture is {settings.architecture!r}, which is no causal language model in transformers; "
            "choose one such as llama, qwen3 or gpt2."
        )
    plain = family()
    names = {*plain.to_dict(), *plain.attribute_map}
    for name in settings.config:
        if name not in names:
            raise SettingsError(f"model.config: {unknown(f'setting of {settings.architecture}', name, names)}")
        ours = next((key for key, theirs in OURS.items() if name in theirs), "")
        if ours:
            raise SettingsError(f"model.config.{name} is set by " + _where(ours))
    values = _sizes(settings, names, plain) | settings.config
    values |= {"vocab_size": vocabulary_size, "tie_word_embeddings": settings.tie_embeddings}
    values |= {"eos_token_id": ids.eos, "pad_token_id": ids.pad, "bos_token_id": ids.bos}
    try:
        return family(**values)
    except Exception as error:  # each family checks in its own way
        raise SettingsError(
            f"[model.config] makes no {settings.architecture} ({type(error).__name__}: {error})"
        ) from error


def _where(ours: str) -> str:
    return "the tokenizer" if ours == "vocabulary" else f"model.{ours}; set that instead"


def _unknown_family(name: str, families: list[str]) -> str:
    guess = nearest(name, families)
    return f"unknown model type {name!r}" + (f"; did you mean {guess!r}?" if guess else "; expected one such as llama.")


def _sizes(settings: PretrainModelSettings, names: set[str], plain: Any) -> dict[str, Any]:
    """Return the sizes by the names that nearly all families have, some of them through their attribute map."""
    values: dict[str, Any] = {
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        # Defaults of a family are those of its large model; these follow from the width.
        "num_key_value_heads": settings.heads,
        "head_dim": settings.hidden_size // settings.heads,
    }
    values |= dict.fromkeys(CONTEXT_KEYS, settings.context_length)
    found = {name: value for name, value in values.items() if name in names}
    gated = any("silu" in str(getattr(plain, key, "")) for key in ("hidden_act", "hidden_activation"))
    width = 8 * max(1, round(settings.hidden_size * (EXPANSION if gated else 4) / 8))
    inner = {"intermediate_size": width, "ffn_dim": width, "word_embed_proj_dim": settings.hidden_size}
    return found | {name: value for name, value in inner.items() if getattr(plain, name, None) is not None}


def new_model(settings: PretrainModelSettings, vocabulary_size: int, ids: SpecialIds, seed: int) -> Any:
    """Return an untrained model; the same seed gives the same one."""
    from transformers import AutoModelForCausalLM

    config = make_config(settings, vocabulary_size, ids)
    torch.manual_seed(derive_seed(seed, "model"))
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # sizes that do not fit together show here, in each family's own words
        raise SettingsError(
            f"no {settings.architecture} can be made of [model] ({type(error).__name__}: {error}); hidden_size is "
            f"{settings.hidden_size}, heads {settings.heads}."
        ) from error
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id, generation.bos_token_id = ids.eos, ids.pad, ids.bos
    generation.do_sample = True
    return model


def require_model(settings: PretrainModelSettings, vocabulary_size: int) -> None:
    """Raise ``SettingsError`` if no model can be made of the settings, without taking memory for one.

    Also if what comes out reads the future: encoders are in transformers' list of causal models.
    """
    ids = SpecialIds(0, 0)
    config = make_config(settings, vocabulary_size, ids)
    with torch.device("meta"):
        new_model(settings, vocabulary_size, ids, 0)
    if getattr(config, "is_decoder", None) is False and "is_decoder" in config.to_dict():
        raise SettingsError(
            f"model.architecture is {settings.architecture!r}, an encoder, which reads the tokens it is to predict; "
            "set model.config.is_decoder=true, or choose a decoder such as llama."
        )


def require_context(settings: PretrainModelSettings) -> None:
    """Raise ``ModelError`` if there is no model to continue from, or if a block is longer than its context."""
    context = load_card(settings.continue_from, trust_remote_code=settings.trust_remote_code).context_length
    if settings.context_length > context:
        raise ModelError(
            f"model.context_length is {settings.context_length}, and {settings.continue_from} was made for {context}; "
            f"lower it to {context} or less."
        )


def continued_model(settings: PretrainModelSettings, encoder: DocumentEncoder, device: Any) -> Any:
    """Return the model to continue from.

    Raises ``ModelError`` when the corpus is encoded by another tokenizer, or when the tokenizer has ids that the model
    has not.
    """
    _require_same_tokenizer(settings, encoder)
    language_model = load(
        settings.continue_from, device=device, dtype=torch.float32, trust_remote_code=settings.trust_remote_code
    )
    require_trainable(language_model.model, settings.continue_from)
    rows = language_model.model.get_input_embeddings().weight.shape[0]
    if encoder.vocabulary_size > rows:
        raise ModelError(
            f"the tokenizer has {encoder.vocabulary_size} ids and {settings.continue_from} {rows} rows of embeddings; "
            "they do not belong together. Leave [tokenizer] out to use the checkpoint's own."
        )
    return language_model.model


def _require_same_tokenizer(settings: PretrainModelSettings, encoder: DocumentEncoder) -> None:
    """Raise ``ModelError`` if the corpus was encoded by another tokenizer: its ids mean other things to the model."""
    source, trust = settings.continue_from, settings.trust_remote_code
    with tempfile.TemporaryDirectory() as folder:
        bring_tokenizer(source, TokenizerSettings(trust_remote_code=trust), Path(folder))
        own = load_tokenizer(Path(folder), trust)
    theirs, ours = (one.get_vocab(with_added_tokens=True) for one in (own, encoder.tokenizer))
    if theirs != ours:
        different = sum(theirs.get(token) != number for token, number in ours.items())
        raise ModelError(
            f"the corpus is encoded by another tokenizer than that of {source}: {different} of its {len(ours)} tokens "
            "have another id there or none. Leave [tokenizer] out to use the checkpoint's own."
        )


def count_parameters(model: Any) -> int:
    """Return how many parameters are trained; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_with_tokenizer(model: Any, tokenizer_folder: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write model, configuration, generation settings and tokenizer in the transformers layout."""
    save_model(model, folder, dtype)
    for file in tokenizer_folder.iterdir():
        shutil.copy(file, folder / file.name)
