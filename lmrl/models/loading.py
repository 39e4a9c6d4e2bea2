"""Loading causal language models: weights in safetensors, no remote code unless asked for.

Leaves out adapters and quantisation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmrl.errors import ModelError
from lmrl.models.card import ModelCard, load_card
from lmrl.models.codec import read_json
from lmrl.models.reward_card import has_reward_head


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its card: ``model`` is a transformers ``PreTrainedModel`` in evaluation mode."""

    model: Any
    card: ModelCard

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

    ``dtype`` None keeps float32 on a CPU and the checkpoint's own precision elsewhere. Raises ``ModelError`` for a
    missing folder, a reward model, an encoder-decoder, a pickled-only checkpoint, or a tokenizer with ids beyond the
    embedding table.
    """
    card = load_card(name_or_path, revision)
    # Without this, transformers would draw a language model's head at random and only remark on it.
    if has_reward_head(read_json(Path(card.path) / "config.json", required=False)):
        raise ModelError(
            f"{card.path} is a reward model, which scores texts and writes none; expected a causal language model, "
            "such as the one that it was trained from"
        )
    import transformers

    if dtype is None:
        dtype = torch.float32 if torch.device(device or "cpu").type == "cpu" else "auto"  # type: ignore[assignment]
    try:
        with no_transformers_bars():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                card.path,
                dtype=dtype,
                revision=revision or "main",
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
    except Exception as error:  # transformers raises many kinds; all mean that this checkpoint cannot be used
        raise ModelError(
            f"{card.path} could not be loaded as a causal language model ({type(error).__name__}: {error})"
        ) from error
    embeddings = model.get_input_embeddings().weight.shape[0]
    highest = max((*card.eos_ids, card.bos_id or 0))
    if highest >= embeddings:
        raise ModelError(
            f"{card.path}: special id {highest} lies beyond the embedding table of {embeddings} rows; "
            "the tokenizer does not belong to this model."
        )
    return LanguageModel(model.to(device or "cpu").eval(), card)


@contextmanager
def no_transformers_bars() -> Iterator[None]:
    """Hide the progress bars of transformers: a run has one bar, its own."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def freeze_copy(model: Any) -> Any:
    """Return a frozen copy of a model in evaluation mode: the reference that the policy starts from."""
    reference = copy.deepcopy(model).eval()
    reference.requires_grad_(False)
    return reference
