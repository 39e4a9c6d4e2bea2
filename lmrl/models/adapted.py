"""Adapters on one frozen backbone: switched on and off, merged for sampling, saved and read back.

Nothing here changes a tensor of the backbone or a ``requires_grad`` flag after construction, so switching is safe
between a forward pass and its backward pass.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmrl.errors import ModelError
from lmrl.models.adapters import (
    BACKBONE_FILE,
    AdapterSettings,
    adapter_config,
    add_adapter,
    import_peft,
    read_adapter,
    require_backbone,
)
from lmrl.models.lora_layer import fuse
from lmrl.models.stored import weights_digest
from lmrl.text.files import ADAPTER_CONFIG

POLICY_ADAPTER = "default"
CRITIC_ADAPTER = "critic"


class Adapter:
    """The policy's adapter inside ``model``, and the critic's, if there is one.

    ``model`` is a transformers model; its linear layers are replaced by PEFT's, which hold the original ones. Raises
    ``ModelError`` for target modules that the model does not have.
    """

    def __init__(self, model: Any, settings: AdapterSettings) -> None:
        self.model, self.settings = model, settings
        self.adapted = add_adapter(model, settings)
        self._refuse_tied(model)
        for _, layer in self._layers():
            fuse(layer)
        self.has_critic = False
        self._plain: nn.Module | None = None
        self._open = 0
        """Number of ``plain`` contexts that are entered."""

    def add_critic(self) -> None:
        """Add a second adapter, "critic", for a separate value function on the same backbone."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.adapted.add_adapter(CRITIC_ADAPTER, adapter_config(self.settings))
        for name, parameter in self.model.named_parameters():
            if f".{CRITIC_ADAPTER}." in name:
                parameter.requires_grad_(True)  # PEFT leaves those of an inactive adapter frozen
        self.has_critic = True

    def parameters(self, name: str = POLICY_ADAPTER) -> list[nn.Parameter]:
        """Return the trained parameters of one adapter."""
        return [one for path, one in self.model.named_parameters() if one.requires_grad and f".{name}." in path]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Compute what the backbone alone computes, bit for bit."""
        with self._switched("_disable_adapters", True):
            yield

    @contextmanager
    def critic(self) -> Iterator[None]:
        """Compute with the critic's adapter in place of the policy's."""
        with self._switched("_active_adapter", [CRITIC_ADAPTER]):
            yield

    @cached_property
    def base(self) -> Any:
        """The backbone as a plain model, without any layer of PEFT; it shares every tensor and never changes."""
        plain = _shared_copy(self.model)
        for path, layer in self._layers():
            _put(plain, path, layer.get_base_layer())
        return plain

    @contextmanager
    def plain(self) -> Iterator[Any]:
        """Give the model with the policy's adapter merged: the same module each time, without any layer of PEFT.

        Layers without adapter share their tensors with the backbone. Merged weights are computed on entry and freed on
        exit. Enter it again only while the adapter has not changed.
        """
        if self._plain is None:
            self._plain = _shared_copy(self.model)
        if not self._open:
            for path, layer in self._layers():
                _put(self._plain, path, _merged(layer))
        self._open += 1
        try:
            yield self._plain
        finally:
            self._open -= 1
            if not self._open:
                for path, _ in self._layers():
                    _put(self._plain, path, nn.Identity())

    def backbone(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the backbone's parameters and buffers by the names of the plain model."""
        for name, tensor in self.model.state_dict().items():
            if ".lora_" not in name:
                yield name.replace(".base_layer.", "."), tensor

    @cached_property
    def digest(self) -> str:
        """Digest of the backbone, which never changes."""
        return weights_digest(self.backbone())

    def save(self, folder: Path) -> None:
        """Write the adapter into ``folder`` in PEFT's layout, the critic's into ``folder``/critic."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.adapted.save_pretrained(folder, save_embedding_layers=False)
        generation = getattr(self.model, "generation_config", None)
        record = {"model": self.model.name_or_path, "digest": self.digest}
        (folder / BACKBONE_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if generation is not None:  # the ids that end a response, which the base model may not name
            generation.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Read back what ``save`` wrote, bit for bit; raises ``ModelError`` for an adapter of another shape or base."""
        require_backbone(folder, self.digest)
        read_adapter(self.adapted, folder, POLICY_ADAPTER)

    def load_critic(self, folder: Path) -> bool:
        """Read back the critic's adapter if ``folder`` has one; return whether it has."""
        if not (folder / CRITIC_ADAPTER / ADAPTER_CONFIG).exists():
            return False
        read_adapter(self.adapted, folder / CRITIC_ADAPTER, CRITIC_ADAPTER)
        return True

    def _layers(self) -> Iterator[tuple[str, Any]]:
        """Yield PEFT's layers by their paths in the model."""
        tuners = import_peft().tuners.tuners_utils
        yield from ((path, one) for path, one in self.model.named_modules() if isinstance(one, tuners.BaseTunerLayer))

    @contextmanager
    def _switched(self, attribute: str, value: Any) -> Iterator[None]:
        """Set an attribute of all layers; PEFT's own methods would also change ``requires_grad`` flags."""
        layers = [layer for _, layer in self._layers()]
        before = [getattr(layer, attribute) for layer in layers]
        for layer in layers:
            setattr(layer, attribute, value)
        try:
            yield
        finally:
            for layer, own in zip(layers, before, strict=True):
                setattr(layer, attribute, own)

    def _refuse_tied(self, model: Any) -> None:
        if not model.config.get_text_config().tie_word_embeddings:
            return
        tied = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
        for path, layer in self._layers():
            if id(layer) in tied:
                raise ModelError(
                    f"adapter.target_modules names {path}, whose table is both the input and the output embedding; an "
                    'adapter would part them. Name other layers, or use ["all-linear"].'
                )


def _shared_copy(model: Any) -> Any:
    """Return a copy of the module tree that shares every tensor with ``model``."""
    tensors = [*model.parameters(), *model.buffers()]
    result = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    result.__dict__.pop("peft_config", None)  # PEFT's note on the model that it is inside
    return result


@torch.no_grad()
def _merged(layer: Any) -> nn.Module:
    """Return a plain layer with the policy's adapter merged; a copy, so the original's bits stay."""
    result = copy.deepcopy(layer)
    result.merge(adapter_names=[POLICY_ADAPTER])
    plain: nn.Module = result.get_base_layer().requires_grad_(False)
    return plain


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
