"""Tensors of a checkpoint that need no place in its model, and values that no weight may have."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lmrl.errors import ModelError
from lmrl.text.weight_files import listing, read_header

logger = logging.getLogger(__name__)
BUFFER = re.compile(
    r"(^|\.)(inv_freq|masked_bias|causal_mask|scale_attn|position_ids|embed_positions(\.weights)?|decoder\.version)$"
)
"""Names of buffers that families stored once and compute today."""
MASK = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)\.bias$")
"""Names of causal masks, (1, 1, N, N), that were stored as a buffer; a bias of this name has one dimension."""
LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")
DIGEST_VALUES = 256
"""Values of each tensor that a digest reads."""
INTEGERS = ("BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")


def unused_tensors(name: str, unexpected: Iterable[str], paths: Iterable[Path], config: Mapping[str, Any]) -> set[str]:
    """Return the unexpected tensors that the model needs no place for.

    These are buffers of older versions of transformers, and layers that predict further tokens, which are named in a
    note because they are lost when the model is saved.
    """
    names = set(unexpected)
    if not names:
        return set()
    shapes = {tensor: entry["shape"] for path in paths for tensor, entry in read_header(path).items()}
    buffers = {one for one in names if BUFFER.search(one) or (MASK.search(one) and len(shapes.get(one, ())) == 4)}
    first, extra = int(config.get("num_hidden_layers") or 0), int(config.get("num_nextn_predict_layers") or 0)
    places = {one: int(match[2]) for one in names if (match := LAYER.search(one))}
    ahead = {one for one, place in places.items() if first <= place < first + extra}
    if ahead:
        logger.warning(
            "%s: %d tensors of layers that predict further tokens are not used and not saved.", name, len(ahead)
        )
    return buffers | ahead


def require_numbers(model: Any, name: str, paths: Iterable[Path]) -> None:
    """Raise ``ModelError`` for weights that are NaN or infinite, or that were stored as integers."""
    if getattr(model, "is_quantized", False):
        return
    parameters = dict(model.named_parameters())
    broken = [one for one, weight in parameters.items() if not _is_finite(weight)]
    if broken:
        raise ModelError(
            f"{name}: {len(broken)} tensors hold a NaN or an infinity ({listing(broken)}); expected finite weights. "
            "The training that wrote this checkpoint diverged. Use an earlier checkpoint."
        )
    stored = {one: entry["dtype"] for path in paths for one, entry in read_header(path).items()}
    integers = [one for one in parameters if stored.get(one) in INTEGERS]
    if integers:
        raise ModelError(
            f"{name}: {len(integers)} weights are stored as integers ({listing(integers)}), and config.json has no "
            "quantization_config that says how to read them. Use the checkpoint that is not quantised."
        )


def untie(model: Any, name: str) -> None:
    """Record that the output layer is separate where config.json ties it and the checkpoint holds another table."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None or not getattr(config, "tie_word_embeddings", False):
        return
    if head.weight is model.get_input_embeddings().weight:
        return
    config.tie_word_embeddings = model.config.tie_word_embeddings = False
    logger.warning(
        "%s: config.json ties the output layer to the embeddings, and the checkpoint holds two different tables. Both "
        "are used, and saved checkpoints have tie_word_embeddings = false.",
        name,
    )


def weights_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return a digest of named tensors: of their shapes and of values from all over each, in float32.

    It is fast enough for large models, and the same on every device and for a model in bfloat16 that is loaded as
    float32.
    """
    result = hashlib.sha256()
    for name, tensor in sorted(tensors):
        flat = tensor.detach().reshape(-1)
        places = torch.linspace(0, max(len(flat) - 1, 0), min(len(flat), DIGEST_VALUES), dtype=torch.float64)
        values = flat[places.long().to(flat.device)].float().cpu()
        result.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())
    return result.hexdigest()


def drop_quantisation(model: Any, name: str) -> None:
    """Remove a ``quantization_config`` that transformers did not use: the weights that are saved are not quantised."""
    settings = getattr(model.config, "quantization_config", None)
    if settings is None or getattr(model, "is_quantized", False):
        return
    del model.config.quantization_config
    logger.warning(
        "%s: transformers does not know the quantization_config of config.json. The weights are used as they are "
        "stored, and saved checkpoints have no quantization_config.",
        name,
    )


def _is_finite(weight: torch.Tensor) -> bool:
    if not weight.is_floating_point() or not weight.numel() or weight.is_meta:
        return True
    values = weight.detach()
    ends = torch.stack(torch.aminmax(values if values.dtype.itemsize > 1 else values.float()))
    return bool(torch.isfinite(ends).all())
