"""Card of a model, read without its weights: tokenizer, special ids, sizes.

Importing this module needs neither torch nor transformers, and a folder that holds a ``tokenizer.json`` is read with
``tokenizers`` alone, so an environment can be made in a fraction of a second. Everything else goes through
``AutoTokenizer`` and ``AutoConfig``. A hub id is read from its snapshot, by the same code as a folder. Leaves out:
weights (``lmrl.models.load``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmrl.errors import ModelError
from lmrl.text.codec import FastCodec, TextCodec, TransformersCodec, response_texts
from lmrl.text.files import CheckpointFiles, find_files, read_json
from lmrl.text.kinds import require_causal
from lmrl.text.responses import contains_stop
from lmrl.text.vocabulary import adapted_rows, require_rows

__all__ = [
    "FastCodec",
    "ModelCard",
    "TextCodec",
    "TransformersCodec",
    "contains_stop",
    "load_card",
    "load_codec",
    "response_texts",
]

PLAIN_TOKENIZER_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that add nothing to what ``tokenizer.json`` says; others may, so they go through ``AutoTokenizer``."""

CHANGING_SETTINGS = ("add_bos_token", "add_eos_token", "split_special_tokens", "add_prefix_space")
"""Settings by which transformers changes what ``tokenizer.json`` says."""

GENERATION_CONFIG = "generation_config.json"
VOCABULARIES = ("*.model", "tokenizer.json", "vocab*", "*.tiktoken", "tekken.json")
"""Files that hold a tokenizer's vocabulary, as patterns."""

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
"""Names under which the families keep their context length."""


@dataclass(frozen=True)
class ModelCard:
    """A causal language model's name, tokenizer and sizes."""

    path: str
    """Folder or hub id of the model."""
    codec: TextCodec
    """Tokenizer."""
    eos_ids: tuple[int, ...]
    """Every token id that ends a response; several models have more than one."""
    bos_id: int | None
    """Token id that begins a text, if there is one."""
    pad_id: int | None
    """Token id of padding, if there is one. It may equal an EOS id: no mask of lmrl is derived from it."""
    context_length: int
    """Limit of the tokens of prompt and response together."""
    vocab_size: int
    """Number of rows of the embedding table."""
    sliding_window: int | None = None
    """Number of tokens that attention reads back, if it is limited."""
    files: Path | None = None
    """Folder of the tokenizer's files; of a hub id, in the local cache."""
    trust_remote_code: bool = False
    """Permission to run the checkpoint's own Python code."""


def load_card(name_or_path: str | Path, revision: str | None = None, *, trust_remote_code: bool = False) -> ModelCard:
    """Read a model's card from a folder or the hub.

    Raises ``ModelError`` when the path does not exist, the checkpoint is no causal language model, its tokenizer has
    more ids than the embedding table has rows, or it names no EOS id.
    """
    files = find_files(name_or_path, revision)
    config = read_json(files.folder / "config.json")
    require_causal(files, config)
    return read_card(files, config, trust_remote_code)


def read_card(
    files: CheckpointFiles, config: dict[str, Any], trust_remote_code: bool = False, needs_end: bool = True
) -> ModelCard:
    """Return the card of a checkpoint of any kind; ``needs_end``: raise ``ModelError`` if it names no EOS id."""
    name = files.name
    generation = read_json(files.folder / GENERATION_CONFIG, required=False)
    if files.adapter is not None:
        generation |= read_json(files.adapter / GENERATION_CONFIG, required=False)
    codec = load_codec(files.tokenizer, trust_remote_code)
    text = text_settings(files, config, trust_remote_code)
    nested = config.get("text_config")
    sources = (generation, nested if isinstance(nested, dict) else {}, config, text if nested else {})
    eos_ids = _end_ids(name, sources)
    if not eos_ids and needs_end:
        raise ModelError(
            f"{name} names no eos_token_id in generation_config.json or config.json, so a response could never end "
            f"by itself; add one there.{_tokenizer_end(codec)}"
        )
    lengths = [text[key] for key in CONTEXT_KEYS if text.get(key)]
    if not text.get("vocab_size"):
        raise ModelError(f"{name}: config.json names no vocab_size; expected the config.json of a language model.")
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    card = ModelCard(
        path=name,
        codec=codec,
        eos_ids=eos_ids,
        bos_id=text.get("bos_token_id"),
        pad_id=text.get("pad_token_id"),
        context_length=int(min(lengths)) if lengths else 2048,
        vocab_size=adapted_rows(files, int(text["vocab_size"])),
        sliding_window=int(window) if window else None,
        files=files.tokenizer,
        trust_remote_code=trust_remote_code,
    )
    require_rows(card)
    return card


def _end_ids(name: str, sources: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the EOS ids of the first configuration that names any."""
    for source in sources:
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(one) is int and one >= 0 for one in ids):
            raise ModelError(
                f"{name}: eos_token_id is {json.dumps(value)}; expected a token id, a whole number from 0, or a list "
                "of them. Correct generation_config.json or config.json."
            )
        if ids:
            return tuple(sorted(set(ids)))
    return ()


def _tokenizer_end(codec: TextCodec) -> str:
    """Return a sentence about the EOS token that the tokenizer names, or the empty string."""
    token = codec.special_tokens.get("eos_token", "")
    found = codec.vocabulary().get(token)
    return "" if found is None else f' The tokenizer\'s is {token}: "eos_token_id": {found}.'


def text_settings(files: CheckpointFiles, config: dict[str, Any], trust_remote_code: bool) -> dict[str, Any]:
    """Return the configuration of the language model with the defaults of its family where config.json names none.

    A flat config.json that names the sizes is complete as it is, and reading it needs no transformers.
    """
    complete = bool(config.get("vocab_size")) and any(config.get(key) for key in CONTEXT_KEYS)
    if complete and not isinstance(config.get("text_config"), dict):
        return config
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(str(files.folder), trust_remote_code=trust_remote_code)
        return dict(found.get_text_config().to_dict())
    except Exception as error:  # transformers raises many kinds; each means that there is no usable configuration
        raise ModelError(
            remote_code_message(files.name, config, trust_remote_code)
            or f"{files.name}: config.json could not be loaded ({short_text(error)})"
        ) from error


def load_codec(path: Path, trust_remote_code: bool = False) -> TextCodec:
    """Return the codec of a folder's tokenizer; raises ``ModelError`` where there is none that can be read."""
    file = path / "tokenizer.json"
    settings = read_json(path / "tokenizer_config.json", required=False)
    plain = settings.get("tokenizer_class", PLAIN_TOKENIZER_CLASSES[0]) in PLAIN_TOKENIZER_CLASSES
    if file.exists() and plain and not any(name in settings for name in (*CHANGING_SETTINGS, "auto_map")):
        codec = FastCodec(file)
        if _named_tokens(settings) <= codec.vocabulary().keys():
            return codec
    from transformers import AutoTokenizer

    try:
        return TransformersCodec(AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code))
    except Exception as error:  # transformers raises many kinds; each means that there is no usable tokenizer
        raise ModelError(
            remote_code_message(str(path), settings, trust_remote_code)
            or _no_tokenizer(path)
            or f"{path}: no tokenizer could be loaded ({short_text(error)})"
        ) from error


def _no_tokenizer(path: Path) -> str:
    """Return the message for a folder without a vocabulary, or with a SentencePiece model that cannot be read here."""
    held = [file.name for pattern in VOCABULARIES for file in path.glob(pattern)]
    if not held:
        return (
            f"{path} holds no tokenizer; expected tokenizer.json, vocab.json with merges.txt, or tokenizer.model. Copy "
            "the tokenizer's files of the model there."
        )
    if "tokenizer.json" not in held and held[0].endswith(".model") and not find_spec("sentencepiece"):
        return (
            f"{path}: the tokenizer is in {held[0]}, which needs a package: pip install sentencepiece protobuf. Or "
            "save it once as tokenizer.json, with save_pretrained of transformers."
        )
    return ""


def remote_code_message(name: str, settings: Mapping[str, Any], trust_remote_code: bool) -> str:
    """Return the message for a checkpoint with Python code that lmrl may not run; empty where that is no cause."""
    code = settings.get("auto_map")
    if trust_remote_code or not code:
        return ""
    return (
        f"{name} needs Python code of its own (auto_map: {json.dumps(code)}), and lmrl runs no code of a checkpoint by "
        "default. Read that code; if you trust it, set trust_remote_code=true (chat, compare: --trust-remote-code)."
    )


def short_text(error: Exception, limit: int = 300) -> str:
    """Return an error's kind and the beginning of its text: transformers appends lists of all that it knows."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}" + (" ..." if len(text) > limit else "")


def _named_tokens(settings: Mapping[str, Any]) -> set[str]:
    """Return the added tokens that tokenizer_config.json lists: tokenizer.json may lack some of them."""
    listed = settings.get("added_tokens_decoder")
    entries = listed.values() if isinstance(listed, Mapping) else ()
    return {entry["content"] for entry in entries if isinstance(entry, Mapping) and "content" in entry}
