"""Weights of a checkpoint into a transformers model, compared with what the model needs. Every load goes through here.

Adapters are merged into the weights of their base model, in memory.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lmrl.errors import ModelError
from lmrl.models.stored import drop_quantisation, require_numbers, untie, unused_tensors, weights_digest
from lmrl.text.card import remote_code_message, short_text
from lmrl.text.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CheckpointFiles, read_json
from lmrl.text.kinds import media_of, text_model_type
from lmrl.text.vocabulary import adapted_rows
from lmrl.text.weight_files import listing, read_header, require_weights, stored_dtype

logger = logging.getLogger(__name__)
TEXT_PART = {r"^(model\.)?language_model\.(model\.)?": "model.", r"^model\.lm_head": "lm_head"}
"""Names of a language model's tensors in a composite checkpoint, and in the language model alone."""
ADAPTER_PREFIX = "base_model.model."


def load_weights(
    files: CheckpointFiles,
    loader: str,
    purpose: str,
    *,
    dtype: Any,
    trust_remote_code: bool = False,
    may_miss: Callable[[str], bool] = lambda name: False,
    may_ignore: Callable[[str], bool] = lambda name: False,
    **changes: Any,
) -> tuple[Any, set[str]]:
    """Return the model of the class ``loader`` of transformers, and the missing tensors that ``may_miss`` allows.

    ``purpose`` names the kind of model in messages. ``may_ignore`` allows tensors that the model does not use;
    ``changes`` go to the configuration. Raises ``ModelError`` for weights that are missing, unexpected, of another
    shape, NaN or infinite, for damaged files, and for code that is not trusted.
    """
    paths = require_weights(files)
    config = read_json(files.folder / "config.json")
    inner = text_model_type(config)
    try:
        model, report = _from_pretrained(str(files.folder), loader, dtype, trust_remote_code, bool(inner), changes)
    except Exception as error:  # transformers raises many kinds; all mean that this checkpoint cannot be used
        raise ModelError(
            remote_code_message(files.name, config, trust_remote_code)
            or _unknown_family(files.name, config, loader, error)
            or f"{files.name} could not be loaded as {purpose} ({short_text(error)}){_quantised(config)}"
        ) from error
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    unexpected -= unused_tensors(files.name, unexpected, paths, config)
    trained = _adapter_head(files) if files.adapter is not None else set()
    problems = _problems(
        {name for name in missing if not may_miss(name)} - trained,
        {name for name in unexpected if not may_ignore(name) and not (inner and _is_media(name))},
        report["mismatched_keys"],
    )
    if problems:
        raise ModelError(
            f"{files.name} does not hold the weights of {purpose} ({type(model).__name__}): {problems}. config.json "
            "and weights do not belong together, or the checkpoint is incomplete. Download or save it again."
        )
    require_numbers(model, files.name, paths)
    untie(model, files.name)
    drop_quantisation(model, files.name)
    if inner:
        media = media_of(config) or "another"
        logger.warning("%s: %s part of this checkpoint is not used and not saved.", files.name, media)
        model._weight_conversions = None  # save_pretrained would try to rename the tensors back to the composite's
    # An adapter stores this name as that of its base model, so it is one from any working directory.
    name = files.hub_id or str(files.folder.resolve())
    if files.adapter is not None:
        model = _merged(model, files)
        name = str(files.adapter.resolve())  # a further adapter is one on the merged model, not on the base
    model.name_or_path = model.config._name_or_path = name
    return model, missing - trained


def _from_pretrained(
    folder: str, loader: str, dtype: Any, trust_remote_code: bool, text_part: bool, changes: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return what transformers loads, the language model alone if ``text_part``, and its report on the tensors."""
    import transformers

    named = dict(changes)
    with quiet_transformers():
        if text_part:
            settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            text = settings.get_text_config()
            text.update(changes)
            named = {"config": text, "key_mapping": TEXT_PART}
        loaded: tuple[Any, dict[str, Any]] = getattr(transformers, loader).from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **named,
        )
    return loaded


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the progress bars and warnings of transformers: what its loading reports say is an error here."""
    from transformers.utils import logging as reports

    shown, verbosity = reports.is_progress_bar_enabled(), reports.get_verbosity()
    reports.disable_progress_bar()
    reports.set_verbosity_error()
    try:
        yield
    finally:
        reports.set_verbosity(verbosity)
        if shown:
            reports.enable_progress_bar()


def _problems(missing: set[str], unexpected: set[str], mismatched: Any) -> str:
    """Return the differences of a checkpoint from its model, with the names of the tensors; empty if there are none."""
    found = []
    if missing:
        found.append(f"{len(missing)} tensors are missing (no weights for {listing(missing)})")
    if unexpected:
        found.append(f"{len(unexpected)} tensors are unexpected ({listing(unexpected)})")
    if mismatched:
        shapes = [f"{name} is {list(held)}, and the model needs {list(needed)}" for name, held, needed in mismatched]
        found.append(f"{len(shapes)} tensors have another shape ({listing(shapes)})")
    return "; ".join(found)


def _unknown_family(name: str, config: Mapping[str, Any], loader: str, error: Exception) -> str:
    """Return the message for a family without a class of this kind in transformers; empty for another cause."""
    if not str(error).startswith("Unrecognized configuration class"):
        return ""
    return (
        f"{name} is a {config.get('model_type')!r} model, a family for which transformers has no {loader}; expected a "
        "family with one, such as a Llama, Qwen or GPT-2."
    )


def _is_media(name: str) -> bool:
    """Return True for a tensor of a composite checkpoint's image or audio part."""
    words = ("vision", "visual", "image", "audio", "multi_modal", "multimodal", "projector", "mtp.")
    return any(word in name for word in words)


def _quantised(config: Mapping[str, Any]) -> str:
    settings = config.get("quantization_config")
    if not isinstance(settings, Mapping):
        return ""
    return (
        f". Its weights are quantised ({settings.get('quant_method')}); install the package that this needs, or use "
        "the checkpoint that is not quantised."
    )


def _adapter_head(files: CheckpointFiles) -> set[str]:
    """Return the names of whole layers that an adapter brings along, such as a reward model's head."""
    assert files.adapter is not None
    names = read_header(files.adapter / ADAPTER_WEIGHTS)
    return {name.removeprefix(ADAPTER_PREFIX).replace(".modules_to_save", "") for name in names}


def _merged(model: Any, files: CheckpointFiles) -> Any:
    """Return the model with an adapter added to its weights; raises ``ModelError`` for one that does not fit."""
    from lmrl.models.adapters import import_peft, require_backbone

    folder = files.adapter
    assert folder is not None
    if model.dtype == torch.float32 or str(model.dtype) == f"torch.{stored_dtype(files.folder)}":
        require_backbone(folder, weights_digest(model.state_dict().items()))
    peft = import_peft(f"{files.name} is an adapter; loading it")
    table = model.get_input_embeddings().weight.shape[0]
    rows = adapted_rows(files, table)
    if rows != table:
        model.resize_token_embeddings(rows, mean_resizing=False)
    settings = read_json(folder / ADAPTER_CONFIG)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = peft.PeftModel.from_pretrained(model, str(folder), local_files_only=True)
            needed = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
            held = set(read_header(folder / ADAPTER_WEIGHTS))
            if needed != {name for name in held if name in needed or not _is_embedding(name)}:
                problems = _problems(needed - held, {n for n in held - needed if not _is_embedding(n)}, [])
                raise ModelError(f"the adapter {folder} does not fit {files.folder}: {problems}.")
            merge = getattr(adapted, "merge_and_unload", None)
            if merge is None:
                raise ModelError(
                    f"{folder} is an adapter of the kind {settings.get('peft_type')}, which cannot be merged into the "
                    "model; expected a low-rank adapter (LORA)."
                )
            return merge().requires_grad_(True)  # PEFT froze the base model; the merged one is trained as any other
    except ModelError:
        raise
    except Exception as error:  # PEFT raises many kinds; all mean that this adapter cannot be used
        raise ModelError(
            f"the adapter {folder} could not be put on {files.folder} ({short_text(error)}). Use it with "
            "the base model that it was trained from."
        ) from error


def _is_embedding(name: str) -> bool:
    from lmrl.text.vocabulary import EMBEDDINGS

    return any(part in EMBEDDINGS for part in name.split("."))
