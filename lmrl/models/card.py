"""What is known of a model without loading its weights: tokenizer, special ids, sizes.

Importing this module needs neither torch nor transformers, and a folder that holds a ``tokenizer.json`` is read with
``tokenizers`` alone, so an environment can be made in a fraction of a second. Everything else goes through
``AutoTokenizer`` and ``AutoConfig``. Leaves out: weights (``lmrl.models.load``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmrl.errors import ModelError, nearest
from lmrl.models.codec import FastCodec, TextCodec, TransformersCodec, read_json
from lmrl.models.folders import model_folder

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

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
"""Names under which the families keep their context length."""


@dataclass(frozen=True)
class ModelCard:
    """A causal language model's name, tokenizer and sizes.

    ``eos_ids`` holds every id that ends a response (several models have more than one). ``pad_id`` may equal one of
    them: no mask of lmrl is ever derived from it.
    """

    path: str
    codec: TextCodec
    eos_ids: tuple[int, ...]
    bos_id: int | None
    pad_id: int | None
    context_length: int
    vocab_size: int
    sliding_window: int | None = None


def load_card(name_or_path: str | Path, revision: str | None = None) -> ModelCard:
    """Read a model's card from a folder or the hub.

    Raises ``ModelError`` when the path does not exist, the model is an encoder-decoder, or it names no EOS id.
    """
    path = model_folder(name_or_path)
    if path.is_dir():
        config = read_json(path / "config.json")
        generation = read_json(path / "generation_config.json", required=False)
        codec = load_codec(path)
        name = str(path)
    else:
        _refuse_missing_path(str(name_or_path))
        config, generation, codec = _from_hub(str(name_or_path), revision)
        name = str(name_or_path)
    return _card(name, config, generation, codec)


def _card(name: str, config: dict[str, Any], generation: dict[str, Any], codec: TextCodec) -> ModelCard:
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{name} is an encoder-decoder model (model_type {config.get('model_type')!r}); lmrl trains causal "
            "(decoder-only) language models. Choose one that AutoModelForCausalLM loads, a Llama, Qwen or GPT-2, say."
        )
    text = config.get("text_config") or config
    eos = generation.get("eos_token_id", text.get("eos_token_id", config.get("eos_token_id")))
    eos_ids = tuple(sorted(set(eos))) if isinstance(eos, list) else (() if eos is None else (int(eos),))
    if not eos_ids:
        raise ModelError(
            f"{name} names no eos_token_id in generation_config.json or config.json, so a response could never end "
            "by itself; add one there."
        )
    lengths = [text[key] for key in CONTEXT_KEYS if text.get(key)]
    if not text.get("vocab_size"):
        raise ModelError(f"{name}: config.json names no vocab_size; expected the config.json of a language model.")
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    return ModelCard(
        path=name,
        codec=codec,
        eos_ids=eos_ids,
        bos_id=text.get("bos_token_id"),
        pad_id=text.get("pad_token_id"),
        context_length=int(min(lengths)) if lengths else 2048,
        vocab_size=int(text["vocab_size"]),
        sliding_window=int(window) if window else None,
    )


def load_codec(path: Path) -> TextCodec:
    """Return the codec of a folder's tokenizer; raises ``ModelError`` where there is none that can be read."""
    file = path / "tokenizer.json"
    settings = read_json(path / "tokenizer_config.json", required=False)
    plain = settings.get("tokenizer_class", PLAIN_TOKENIZER_CLASSES[0]) in PLAIN_TOKENIZER_CLASSES
    if file.exists() and plain and not any(name in settings for name in CHANGING_SETTINGS):
        return FastCodec(file)
    return TransformersCodec(_auto_tokenizer(str(path), None))


def _auto_tokenizer(name: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=revision or "main")
    except Exception as error:  # transformers raises many kinds; each means that there is no usable tokenizer
        raise ModelError(f"{name}: no tokenizer could be loaded ({type(error).__name__}: {error})") from error


def _refuse_missing_path(name: str) -> None:
    """Tell a mistyped path from a hub id: what looks like a path and does not exist is an error with its neighbour."""
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    parent = Path(name).expanduser().parent
    if not looks_local and not (name.count("/") == 1 and parent.is_dir()):
        return
    siblings = [item.name for item in parent.iterdir()] if parent.is_dir() else []
    guess = nearest(Path(name).name, siblings)
    hint = f" Did you mean {parent / guess}?" if guess else ""
    raise ModelError(f"there is no model folder {name}.{hint} Expected a folder with config.json, or a hub id.")


def _from_hub(name: str, revision: str | None) -> tuple[dict[str, Any], dict[str, Any], TextCodec]:
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(name, revision=revision or "main").to_dict()
    except Exception as error:
        raise ModelError(
            f"{name} is neither a folder here nor a model on the hub that can be reached "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    try:
        generation = GenerationConfig.from_pretrained(name, revision=revision or "main").to_dict()
    except OSError:
        generation = {}
    return config, generation, TransformersCodec(_auto_tokenizer(name, revision))


def response_texts(
    codec: TextCodec,
    prompt_rows: Sequence[Sequence[int]],
    response_rows: Sequence[Sequence[int]],
    eos_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
) -> list[str]:
    """Return the text of each response, as it continues its prompt.

    A trailing EOS is left out, and so is everything from the first stop string on. Decoding prompt and response
    together keeps the space between them, which tokenizers that strip a leading space would lose.
    """
    ended = set(eos_ids)
    bare = [list(row[:-1]) if len(row) and row[-1] in ended else list(row) for row in response_rows]
    distinct = list({tuple(row): None for row in prompt_rows})
    prompt_text = dict(zip(distinct, codec.decode_batch(distinct), strict=True))
    joined = codec.decode_batch([[*prompt, *row] for prompt, row in zip(prompt_rows, bare, strict=True)])
    texts = []
    for prompt, row, whole in zip(prompt_rows, bare, joined, strict=True):
        prefix = prompt_text[tuple(prompt)]
        text = whole[len(prefix) :] if whole.startswith(prefix) else codec.decode_batch([row])[0]
        cut = min((at for at in (text.find(stop) for stop in stop_strings) if at >= 0), default=len(text))
        texts.append(text[:cut])
    return texts


def contains_stop(
    codec: TextCodec, prompt: Sequence[int], response: Sequence[int], stop_strings: Sequence[str]
) -> bool:
    """Say whether the response's text holds a stop string."""
    if not stop_strings:
        return False
    text = response_texts(codec, [prompt], [response])[0]
    return any(stop in text for stop in stop_strings)
