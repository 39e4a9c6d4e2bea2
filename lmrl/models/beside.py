"""The models beside a policy, made of what an optimizer declares (``lmrl.algorithms.beside``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.beside import POLICY, REFERENCE, Mixture, NamedModel
from lmrl.engines.joint import GeometricMixture
from lmrl.engines.protocol import WeightSource
from lmrl.engines.weights import LiveWeights
from lmrl.errors import EngineError, PluginError, ResumeError, SettingsError, unknown
from lmrl.models.lm_head import output_embedding
from lmrl.models.loading import load
from lmrl.models.policy import PolicyModel
from lmrl.models.saving import require_file_names
from lmrl.models.text_policy import FrozenReference, Reference, make_reference
from lmrl.text.card import ModelCard, load_card
from lmrl.text.vocabulary import require_same_vocabulary


class ModelsBeside:
    """The models that an optimizer names, on the policy's device.

    ``models`` has those that can be evaluated, the reference among them. Raises ``SettingsError`` for an empty path, a
    name that the core uses, and a mixture of unknown models, and ``VocabularyError`` for another vocabulary.
    """

    def __init__(
        self,
        declared: Mapping[str, NamedModel | Mixture],
        policy: PolicyModel,
        card: ModelCard,
        reference: Reference | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.policy, self.card = policy, card
        self.mixtures = {name: one for name, one in declared.items() if isinstance(one, Mixture)}
        named = {name: one for name, one in declared.items() if isinstance(one, NamedModel)}
        require_file_names("models()", declared, (POLICY, REFERENCE))
        for name in declared.keys() - self.mixtures.keys() - named.keys():
            raise PluginError(f"models() returned {declared[name]!r} for {name!r}; expected a NamedModel or a Mixture")
        self.models: dict[str, Reference] = {} if reference is None else {REFERENCE: reference}
        for name, one in named.items():
            self.models[name] = self._made(name, one, trust_remote_code)
        for name, mixture in self.mixtures.items():
            for part in mixture.weights:
                if part not in (POLICY, *self.models):
                    raise SettingsError(f"mixture {name!r}: {unknown('model', part, [POLICY, *self.models])}")
        self.moving = {name: one.decay for name, one in named.items() if one.moves}

    @property
    def names(self) -> list[str]:
        """Names that a request may carry beside the policy's."""
        return [*self.models, *self.mixtures]

    def weights(self, name: str) -> WeightSource:
        """Return what is published to an engine under ``name``."""
        if name in self.mixtures:
            mixture = self.mixtures[name].weights
            return MixtureWeights([partial(self._sampled, part) for part in mixture], list(mixture.values()), self.card)
        return LiveWeights(self.models[name].sampled(), self.card.codec)

    def padding(self, name: str) -> tuple[int, ...]:
        """Return the ids that a model of another size has beyond the policy's vocabulary."""
        parts = self.mixtures[name].weights if name in self.mixtures else [name]
        models = [self.models[part].sampled() for part in parts if part != POLICY]
        sizes = [int(output_embedding(model).shape[0]) for model in models] + [self.card.vocab_size] * (POLICY in parts)
        return tuple(range(self.card.vocab_size, min(sizes)))

    @torch.no_grad()
    def follow(self) -> None:
        """Move every moving average towards the policy."""
        if not self.moving:
            return
        with self.policy.extracted() as model:
            own = dict(model.named_parameters())
            for name, decay in self.moving.items():
                for key, parameter in self._parameters(name):
                    parameter.lerp_(own[key].to(parameter), 1 - decay)

    def save(self, folder: Path) -> None:
        """Write the moving averages beside a checkpoint."""
        from safetensors.torch import save_file

        for name in self.moving:
            tensors = {key: one.detach().clone().contiguous() for key, one in self._parameters(name)}
            save_file(tensors, folder / _file(name))

    @torch.no_grad()
    def restore(self, folder: Path) -> None:
        """Read back what ``save`` wrote, bit for bit; raises ``ResumeError`` where it is missing."""
        from safetensors.torch import load_file

        for name in self.moving:
            if not (folder / _file(name)).exists():
                raise ResumeError(f"{folder} holds no {_file(name)}, the moving average of this run; start a new run")
            state = load_file(folder / _file(name))
            for key, parameter in self._parameters(name):
                parameter.copy_(state[key])

    def _made(self, name: str, one: NamedModel, trust_remote_code: bool) -> Reference:
        if one.path is None and one.moves:
            with self.policy.extracted() as model:
                return FrozenReference(model)
        if one.path is None:
            return make_reference(self.policy)
        if not one.path:
            raise SettingsError(
                f"the optimizer needs the model {name!r}, and {one.setting or 'its path'} is empty; expected a folder "
                "or hub id"
            )
        require_same_vocabulary(load_card(one.path, trust_remote_code=trust_remote_code), self.card, f"model {name!r},")
        found = load(one.path, device=self.policy.model.device, trust_remote_code=trust_remote_code)
        return FrozenReference(found.model)

    def _parameters(self, name: str) -> list[tuple[str, Tensor]]:
        return list(self.models[name].sampled().named_parameters())

    def _sampled(self, name: str) -> AbstractContextManager[Any]:
        return self.policy.extracted() if name == POLICY else nullcontext(self.models[name].sampled())


class MixtureWeights:
    """A ``WeightSource`` of a geometric mixture of models; each of ``models`` returns a context that gives one."""

    synchronous = True

    def __init__(
        self, models: Sequence[Callable[[], AbstractContextManager[Any]]], weights: Sequence[float], card: ModelCard
    ) -> None:
        self.models, self.weights, self.codec = models, weights, card.codec

    @contextmanager
    def module(self) -> Iterator[Any]:
        """Give the mixture."""
        with ExitStack() as stack:
            yield GeometricMixture([stack.enter_context(model()) for model in self.models], self.weights)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Raise ``EngineError``: a mixture is no one model."""
        raise EngineError(NO_TENSORS)

    def write(self, folder: Path) -> None:
        """Raise ``EngineError``: a mixture is no one model."""
        raise EngineError(NO_TENSORS)


NO_TENSORS = "a mixture of models has no weights of its own; sample it with engine.name=transformers"


def _file(name: str) -> str:
    return f"{name}.average.safetensors"
