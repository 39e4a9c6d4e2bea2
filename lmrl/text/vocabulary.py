"""Vocabularies against embedding tables, and of one model against another. Needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lmrl.errors import VocabularyError
from lmrl.text.codec import Placeholders
from lmrl.text.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CheckpointFiles, read_json
from lmrl.text.weight_files import listing, read_header

if TYPE_CHECKING:
    from lmrl.text.card import ModelCard

MEDIA_TOKENS = ("image_token", "audio_token", "video_token")
"""Settings of a tokenizer that name placeholders of media; a family's text-only model has no rows for these."""
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "embeddings", "lm_head", "embed_out")


def require_rows(card: ModelCard) -> None:
    """Raise ``VocabularyError`` if the tokenizer has ids beyond the embedding table, whose padding is fine.

    Placeholders for media without a row are fine too; the codec then refuses texts that contain them.
    """
    vocabulary = card.codec.vocabulary()
    highest = max(vocabulary.values(), default=-1)
    if highest < card.vocab_size:
        return
    media = _media_tokens(card) & vocabulary.keys()
    if isinstance(card.codec, Placeholders):
        card.codec.placeholders = tuple(sorted(token for token in media if vocabulary[token] >= card.vocab_size))
    beyond = {token: i for token, i in vocabulary.items() if i >= card.vocab_size and token not in media}
    if beyond:
        raise VocabularyError(
            f"{card.path}: the tokenizer has {highest + 1} ids and reaches token id {highest}, and the embedding table "
            f"has {card.vocab_size} rows; {len(beyond)} tokens have no row ({listing(beyond)}). The tokenizer does not "
            "belong to this model. Use the model's own tokenizer, or give these tokens rows and train them "
            "(model.resize_token_embeddings)."
        )


def require_same_vocabulary(reference: ModelCard, card: ModelCard, role: str = "reference") -> None:
    """Raise ``VocabularyError`` unless each token id of ``card`` is the same token of ``reference``."""
    if reason := vocabulary_difference(reference, card):
        raise VocabularyError(
            f"the {role} {reference.path} has another vocabulary than the model {card.path}: {reason}. Expected models "
            "with one tokenizer, because probabilities are compared token id by token id."
        )


def vocabulary_difference(reference: ModelCard, card: ModelCard) -> str:
    """Return the difference of two vocabularies in words; empty if ids of ``card`` mean the same to ``reference``."""
    if reference.vocab_size < card.vocab_size:
        return f"it has a vocabulary of {reference.vocab_size} rows, and the model one of {card.vocab_size}"
    ours, theirs = card.codec.vocabulary(), reference.codec.vocabulary()
    if ours == theirs:
        return ""
    different = {token: i for token, i in ours.items() if theirs.get(token) != i}
    if not different:
        return ""  # it knows further tokens, which the model never samples
    token, number = min(different.items(), key=lambda item: item[1])
    other = f"id {theirs[token]}" if token in theirs else "no id"
    return (
        f"{len(different)} of the model's {len(ours)} tokens have another id or none, such as {token!r}, which "
        f"has id {number} in the model and {other} in {reference.path}"
    )


def same_tokens(reference: ModelCard, card: ModelCard, ids: Iterable[int]) -> bool:
    """Return True if these token ids mean the same to both models, and the reference has rows for all of them."""
    ours, theirs = ({i: token for token, i in one.codec.vocabulary().items()} for one in (card, reference))
    return all(i < reference.vocab_size and ours.get(i) == theirs.get(i) for i in ids)


def adapted_rows(files: CheckpointFiles, rows: int) -> int:
    """Return the rows of a table of ``rows`` with the checkpoint's adapter.

    An adapter that brings its own table sets the number, larger or smaller; one that trains new tokens adds their rows.
    """
    if files.adapter is None:
        return rows
    settings = read_json(files.adapter / ADAPTER_CONFIG)
    trained = settings.get("trainable_token_indices") or []
    lists = trained.values() if isinstance(trained, Mapping) else [trained]
    weights = files.adapter / ADAPTER_WEIGHTS
    tables = [
        int(tensor["shape"][0])
        for name, tensor in (read_header(weights) if weights.exists() else {}).items()
        if name.endswith(".weight") and name.split(".")[-2] in EMBEDDINGS
    ]
    return max([max(tables, default=rows), *(int(i) + 1 for ids in lists for i in ids)])


def _media_tokens(card: ModelCard) -> set[str]:
    settings = read_json(card.files / "tokenizer_config.json", required=False) if card.files else {}
    return {str(settings.get(key)) for key in MEDIA_TOKENS}
