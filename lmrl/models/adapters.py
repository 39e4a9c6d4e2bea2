"""Low-rank adapters (Hu et al. 2021, "LoRA") through PEFT: the model stays frozen, small matrices beside it learn.

PEFT is an extra (``pip install lmrl[adapters]``) and imported when an adapter is asked for. A checkpoint holds the
merged model, which needs no PEFT, and the adapter itself in ``adapter/``, from which training continues.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmrl.config.unread import all_but, only_if
from lmrl.errors import ModelError, SettingsError, nearest
from lmrl.text.files import ADAPTER_CONFIG, read_json

ADAPTER_FOLDER = "adapter"
"""Folder of a checkpoint that holds the adapter, in PEFT's layout."""
BACKBONE_FILE = "backbone.json"
"""Name and digest of the model that an adapter was trained on."""
ALL_LINEAR = "all-linear"


@dataclass
class AdapterSettings:
    """Choice between training all weights and an adapter beside them."""

    method: Literal["none", "lora", "rslora", "dora"] = "none"
    """none trains every weight; lora trains low-rank matrices beside the frozen ones, rslora scales them by
    alpha / sqrt(rank), dora also trains the norm of each output's weights. They need the extra `adapters`."""
    rank: int = 16
    """Rank of the matrices."""
    alpha: float = 32.0
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of the adapter's inputs that are dropped in training."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of the layers that get an adapter; all-linear is every linear layer but the output."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SettingsError(f"adapter.rank is {self.rank}; expected a number of at least 1")
        if not self.alpha > 0:
            raise SettingsError(f"adapter.alpha is {self.alpha}; expected a number above 0")
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"adapter.dropout is {self.dropout}; expected a share from 0 to below 1")
        if not self.target_modules:
            raise SettingsError('adapter.target_modules is empty; expected names of layers, or ["all-linear"]')

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(self.method != "none", "method=lora, rslora or dora", *all_but(self, "method"))


def add_adapter(model: Any, settings: AdapterSettings, new_ids: Sequence[int] = ()) -> Any:
    """Return the model with a new adapter, as a ``peft.PeftModel``; everything else is frozen.

    ``new_ids`` are tokens that the model has not seen: their embeddings are trained, too. The model itself is changed:
    ``get_base_model()`` of the result is the same object, with adapters inside. Raises ``ModelError`` without PEFT or
    for a layer that the model does not have.
    """
    peft = import_peft()
    require_targets(model, settings)
    tokens: dict[str, list[int]] | None = None
    if new_ids:
        tokens = {_name_of(model, model.get_input_embeddings()): list(new_ids)}
        if not model.config.get_text_config().tie_word_embeddings:
            tokens[_name_of(model, model.get_output_embeddings())] = list(new_ids)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GPT-2 keeps its matrices transposed, which PEFT finds out and warns of
            return peft.get_peft_model(model, adapter_config(settings, tokens))
    except ValueError as error:
        raise ModelError(
            f"no adapter could be put on {settings.target_modules} ({error}); {_choose_targets(model)}"
        ) from error


def adapter_config(settings: AdapterSettings, tokens: dict[str, list[int]] | None = None) -> Any:
    """Return PEFT's configuration of these settings; ``tokens`` are rows of embeddings that are trained, too."""
    return import_peft().LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=ALL_LINEAR if settings.target_modules == [ALL_LINEAR] else list(settings.target_modules),
        use_rslora=settings.method == "rslora",
        use_dora=settings.method == "dora",
        trainable_token_indices=tokens,
        task_type="CAUSAL_LM",
    )


def require_targets(model: Any, settings: AdapterSettings) -> None:
    """Raise ``ModelError`` for a target module that the model does not have, with the nearest name."""
    if settings.target_modules == [ALL_LINEAR]:
        return
    paths = [name for name, _ in model.named_modules()]
    for target in settings.target_modules:
        if not any(path == target or path.endswith(f".{target}") for path in paths):
            guess = nearest(target, _linear_names(model))
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise ModelError(
                f"adapter.target_modules names {target!r}, which is no module of the model.{hint} "
                f"{_choose_targets(model)}"
            )


def save_adapter(model: Any, folder: Path) -> None:
    """Write a ``PeftModel``'s adapter into ``folder``/adapter, as ``peft.PeftModel.from_pretrained`` reads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # New tokens' rows are part of the adapter; the rest of the embeddings is the base model's own.
        model.save_pretrained(folder / ADAPTER_FOLDER, save_embedding_layers=False)


def load_adapter(model: Any, folder: Path) -> None:
    """Read back into a ``PeftModel`` what ``save_adapter`` wrote, bit for bit."""
    read_adapter(model, folder / ADAPTER_FOLDER, "default")


def read_adapter(model: Any, folder: Path, name: str) -> None:
    """Read the weights of the adapter ``name`` of a ``PeftModel`` from ``folder``, bit for bit.

    Raises ``ModelError`` for a folder without adapter and for one of another kind, shape or model.
    """
    peft = import_peft()
    from peft.utils import load_peft_weights

    if not (folder / ADAPTER_CONFIG).exists():
        raise ModelError(f"{folder} holds no {ADAPTER_CONFIG}; expected a checkpoint with adapter.")
    state = load_peft_weights(str(folder), device="cpu")
    own = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    needed = {key: tuple(tensor.shape) for key, tensor in own.items()}
    held = {key: tuple(tensor.shape) for key, tensor in state.items()}
    wrong = sorted(key for key in needed.keys() | held.keys() if needed.get(key) != held.get(key))
    if wrong:
        key = wrong[0]
        raise ModelError(
            f"the adapter of {folder} does not fit: {len(wrong)} tensors differ, such as {key} "
            f"({held.get(key, 'missing')}; expected {needed.get(key, 'none')}). Use the adapter.* settings and the "
            "base model that it was trained with."
        )
    peft.set_peft_model_state_dict(model, state, adapter_name=name)


def require_backbone(folder: Path, digest: str) -> None:
    """Raise ``ModelError`` if the adapter in ``folder`` was trained on a base model of another digest.

    Adapters of other trainers record none, and are not checked.
    """
    record = read_json(folder / BACKBONE_FILE, required=False)
    if record.get("digest", digest) != digest:
        raise ModelError(
            f"the adapter of {folder} belongs to another base model than the one that is loaded: it was trained on "
            f"{record.get('model')}, whose weights were different. Use it with that model, or train a new adapter."
        )


def merged_copy(model: Any) -> Any:
    """Return a copy of a ``PeftModel``'s model with the adapter added to its weights; the original is not touched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model).merge_and_unload()


def import_peft(who: str = 'adapter.method "lora"') -> Any:
    """Return the module ``peft``; raises ``ModelError`` with the command that installs it."""
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            f'{who} needs PEFT, which is not installed: pip install "lmrl[adapters]", or use a model without adapter '
            '(adapter.method = "none").'
        ) from error
    return peft


def _name_of(model: Any, module: Any) -> str:
    """Return a module's last name in its model: ``embed_tokens``, ``wte``, ``lm_head``."""
    path: str = next(name for name, found in model.named_modules() if found is module)
    return path.rsplit(".", 1)[-1]


def _choose_targets(model: Any) -> str:
    names = ", ".join(_linear_names(model))
    return f'The model\'s linear layers are {names}; set adapter.target_modules to some of them, or to ["all-linear"].'


def _linear_names(model: Any) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)})


def _is_linear(module: Any) -> bool:
    return type(module).__name__ in ("Linear", "Conv1D")
