"""Loading causal language models: weights in safetensors, no remote code unless it is trusted."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmrl.errors import ModelError
from lmrl.models.pretrained import load_weights
from lmrl.text.card import ModelCard, load_card
from lmrl.text.files import find_files
from lmrl.text.turns import record_ends
from lmrl.text.weight_files import stored_dtype

LOADER = "AutoModelForCausalLM"


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its card."""

    model: Any
    """A transformers ``PreTrainedModel`` in evaluation mode."""
    card: ModelCard
    """Tokenizer, special tokens, and limits of the model."""
    stored_dtype: str = ""
    """Precision of the checkpoint's files, such as "bfloat16"; the model in memory may have another."""

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        # Gymnasium deep-copies keyword arguments at every wrapper's .spec; live weights are shared, not copied.
        return self


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load any causal LM that ``AutoModelForCausalLM`` loads, with its tokenizer and every EOS id.

    An adapter's folder gives its base model with the adapter merged. ``dtype`` None keeps float32 on a CPU and the
    checkpoint's own precision elsewhere. Raises ``ModelError`` for a missing folder, a checkpoint of another kind,
    weights that are missing, unexpected, reshaped or pickled, a tokenizer with ids beyond the embedding table, and
    code of the checkpoint without ``trust_remote_code``.
    """
    card = load_card(name_or_path, revision, trust_remote_code=trust_remote_code)
    files = find_files(name_or_path, revision)
    if dtype is None:
        dtype = torch.float32 if torch.device(device or "cpu").type == "cpu" else "auto"  # type: ignore[assignment]
    model, _ = load_weights(files, LOADER, "a causal language model", dtype=dtype, trust_remote_code=trust_remote_code)
    embeddings = model.get_input_embeddings().weight.shape[0]
    highest = max((*card.eos_ids, card.bos_id or 0))
    if highest >= embeddings:
        raise ModelError(
            f"{card.path}: special id {highest} lies beyond the embedding table of {embeddings} rows; "
            "the tokenizer does not belong to this model."
        )
    generation = getattr(model, "generation_config", None)
    if generation is not None and not generation.eos_token_id:  # config.json alone names the ends: saved in both
        record_ends(model, card.eos_ids)
    return LanguageModel(model.to(device or "cpu").eval(), card, stored_dtype(files.folder))


def require_trainable(model: Any, name: str) -> None:
    """Raise ``ModelError`` for a quantised model, whose weights cannot be trained."""
    if getattr(model, "is_quantized", False):
        raise ModelError(
            f"{name} is quantised, and training needs floating point weights, also below an adapter, because engines "
            "sample from weights that the adapter is merged into; use the checkpoint that is not quantised."
        )


def require_trained_trunk(model: Any) -> None:
    """Raise ``ModelError`` for a frozen model: a value function would share a trunk that no gradient reaches."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            f"every weight of {type(model).__name__} is frozen, and a critic cannot share a frozen trunk; expected a "
            "model with an adapter or with weights that are trained. Set adapter.method=lora, or choose an optimizer "
            "without a value function, such as rloo or reinforce"
        )


def freeze_copy(model: Any) -> Any:
    """Return a frozen copy of a model in evaluation mode: the reference that the policy starts from."""
    reference = copy.deepcopy(model).eval()
    reference.requires_grad_(False)
    return reference
