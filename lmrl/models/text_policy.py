"""Log-probabilities, entropies and values of sampled responses: for optimizers, each computed once, and as scores.

Scores have no gradients. Rows that share a prompt, or are of like length where the model cannot pack, share a forward
pass; results come back in the caller's order. No two scores of a rollout walk one trunk over the same tokens: the
reference is a frozen copy, or the policy's backbone with its adapter switched off; the values are the policy's or those
of a critic's own trunk, and the policy's log-probabilities come from sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmrl.algorithms.beside import no_such_model
from lmrl.algorithms.experience import Responses
from lmrl.algorithms.ops import entropy, scatter_rows, token_logprobs
from lmrl.algorithms.parameters import TrainedParameters
from lmrl.algorithms.rollout import Batch
from lmrl.algorithms.sequences import Sequences, lengths_to_mask, split_by_length
from lmrl.engines.protocol import SamplingSpec
from lmrl.errors import ModelError, PluginError, unknown
from lmrl.models.head import CHUNK_ENTRIES, KEPT_ENTRIES
from lmrl.models.layouts import Layout
from lmrl.models.layouts.padded import PaddedLayout
from lmrl.models.loading import freeze_copy
from lmrl.models.policy import PolicyModel, StateOutputs

PADDED = PaddedLayout()


@dataclass
class TextEvaluation:
    """An ``lmrl.algorithms.optimizer.Evaluation`` of a batch of responses: (B, T), 0 outside the mask."""

    outputs: StateOutputs
    ids: Tensor
    mask: Tensor
    spec: SamplingSpec

    def distributions_at(self, places: slice, width: int | None = None) -> Tensor:
        """Return the log-probabilities of the first ``width`` tokens in some states, (n, width), not kept."""
        logits = self.outputs.all_logits(places)[:, :width]
        return self.spec.log_distribution(logits)

    @cached_property
    def _flat_logprobs(self) -> Tensor | None:
        """The full distribution, (N, V), where the spec changes more than the temperature."""
        if self.spec.forbidden_ids or self.spec.filters_support:
            return self.spec.log_distribution(self.outputs.all_logits())
        return None

    @cached_property
    def _flat_logits(self) -> Tensor:
        logits = self.outputs.all_logits().float()
        return logits if self.spec.temperature == 1 else logits / self.spec.temperature

    @cached_property
    def logprobs(self) -> Tensor:
        """Log-probabilities of the sampled tokens."""
        if self.outputs.logprobs is not None:
            flat = self.outputs.logprobs
        elif self._flat_logprobs is not None:
            flat = self._flat_logprobs.gather(-1, self.ids[:, None]).squeeze(-1)
        else:
            flat = token_logprobs(self._flat_logits, self.ids)
        return scatter_rows(flat, self.mask)

    @cached_property
    def log_distributions(self) -> Tensor:
        """The full distributions, (N, V)."""
        return self._flat_logprobs if self._flat_logprobs is not None else self._flat_logits.log_softmax(-1)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropies of the full distributions."""
        return scatter_rows(entropy(self.log_distributions), self.mask)

    @cached_property
    def values(self) -> Tensor:
        """Value estimates of the states before each token."""
        if self.outputs.values is None:
            raise ModelError("evaluation.values was read, but the optimizer's spec does not declare Needs(values=True)")
        return scatter_rows(self.outputs.values, self.mask)

    def head(self, name: str) -> Tensor:
        """Return the output of one of the optimizer's heads at each token, (..., B, T)."""
        if name not in self.outputs.heads:
            raise ModelError(unknown("head", name, self.outputs.heads))
        return scatter_rows(self.outputs.heads[name], self.mask)


def plain_temperature(spec: SamplingSpec) -> float | None:
    """Return the temperature where it is all that ``spec`` changes, and log-probabilities need no logits."""
    return None if spec.forbidden_ids or spec.filters_support or not spec.temperature else spec.temperature


class TextPolicy:
    """A ``lmrl.algorithms.optimizer.Policy`` over a ``PolicyModel`` that evaluates each microbatch once.

    ``module`` may be the model itself or what accelerate wraps it in. ``support`` (inputs -> (N, V) bool) says what can
    be drawn in each state; without it ``spec`` alone does. ``others`` are the models that ``other`` can name, which are
    evaluated within ``autocast()``, because nothing wraps them.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: SamplingSpec,
        with_values: bool,
        with_heads: bool = False,
        support: Callable[[Sequences], Tensor] | None = None,
        others: Mapping[str, Reference] | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.module = module
        self.others, self.autocast = others or {}, autocast
        self.spec = spec
        self.with_values = with_values
        self.with_heads = with_heads
        self.support = support
        self._known: list[tuple[Any, TextEvaluation]] = []

    def evaluate(self, batch: Batch | Responses) -> TextEvaluation:
        """Return the current policy on ``batch``."""
        for known, evaluation in self._known:
            if known is batch:
                return evaluation
        inputs: Sequences = batch.inputs
        mask = batch.action_mask
        outputs = self.states(inputs)
        if self.support is not None:
            # Sampled tokens lie in their support also where rounding differs from that of the decode step.
            outputs = outputs.restricted(self.support(inputs).scatter(1, inputs.actions[:, None], True))
        # The model scores every sampled token; some may not count (the rows of a tie, masks with holes).
        counted = mask[inputs.action_mask(mask.shape[1])]
        evaluation = TextEvaluation(outputs.select(counted), inputs.actions[counted], mask, self.spec)
        self._known.append((batch, evaluation))
        return evaluation

    def other(self, name: str) -> OtherPolicy:
        """Return the model of this name, sampled as the policy is. Raises ``PluginError`` for an unknown name."""
        if name not in self.others:
            raise no_such_model(name, self.others)
        return OtherPolicy(self.others[name], self.spec, self.autocast)

    def compare(self, batch: Batch | Responses, name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return ``function`` of both distributions in every state, (B, T), 0 elsewhere.

        Models whose output embeddings are padded to other sizes are compared over the tokens of both.
        """
        pair = self.evaluate(batch), self.other(name).evaluate(batch)
        count = len(pair[0].ids)
        width = min(one.outputs.all_logits(slice(0, 1)).shape[1] for one in pair)

        def part(places: slice) -> Tensor:
            distributions = [one.distributions_at(places, width) for one in pair]
            found = function(*distributions)
            if getattr(found, "shape", None) != (wanted := (len(distributions[0]),)):
                raise PluginError(
                    f"the function of policy.compare returned {tuple(getattr(found, 'shape', ())) or found!r} of "
                    f"log-probabilities {tuple(distributions[0].shape)}; expected a tensor {wanted}"
                )
            return found

        step = max(1, CHUNK_ENTRIES // width)
        if count * width <= KEPT_ENTRIES:
            return scatter_rows(part(slice(0, count)), batch.action_mask)
        parts = [
            checkpoint(part, slice(start, start + step), use_reentrant=False, preserve_rng_state=False)
            for start in range(0, count, step)
        ]
        return scatter_rows(torch.cat(parts), batch.action_mask)

    def states(self, inputs: Sequences) -> StateOutputs:
        """Return what the model says of the states before each sampled token."""
        wanted = {"need_heads": True} if self.with_heads else {}
        temperature = plain_temperature(self.spec) if self.support is None else None
        outputs: StateOutputs = self.module(inputs, need_values=self.with_values, temperature=temperature, **wanted)
        return outputs

    def microbatches(self, batch: Any, token_budget: int) -> list[Tensor]:
        """Return the rows of each microbatch: by distinct tokens where rows are packed, else by padded positions."""
        inputs = getattr(batch, "inputs", None)
        if not isinstance(inputs, Sequences):
            return split_by_length(batch.row_lengths, token_budget)
        return _layout(self.module).split(inputs, token_budget)

    def no_sync(self) -> AbstractContextManager[Any]:
        """Return a context in which ranks exchange no gradients."""
        context: AbstractContextManager[Any] = getattr(self.module, "no_sync", nullcontext)()
        return context

    def trainable(self) -> list[TrainedParameters]:
        """Return the parameters that learn."""
        found: list[TrainedParameters] = self.model.trainable()
        return found

    @property
    def model(self) -> Any:
        """The ``PolicyModel`` itself."""
        return _unwrapped(self.module)

    def forget(self) -> None:
        """Drop all evaluations and their graphs, before the parameters change."""
        self._known.clear()


@dataclass(frozen=True)
class OtherPolicy:
    """A model beside the policy; see ``lmrl.algorithms.optimizer.OtherModel``."""

    reference: Reference
    spec: SamplingSpec
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    @torch.no_grad()
    def evaluate(self, batch: Batch | Responses) -> TextEvaluation:
        """Return the model on ``batch``, without gradients."""
        with self.autocast(), self.reference.module() as module:
            return TextPolicy(module, self.spec, with_values=False).evaluate(batch)


@torch.no_grad()
def score_logprobs(module: nn.Module, inputs: Sequences, spec: SamplingSpec, token_budget: int) -> Tensor:
    """Return a model's log-probabilities of the sampled tokens under ``spec``, (B, T)."""
    result = torch.zeros(inputs.count, inputs.width, device=inputs.ids.device)
    for rows in _layout(module).split(inputs, token_budget):
        part = inputs.select(rows)
        outputs: StateOutputs = module(part, temperature=plain_temperature(spec))
        result[rows] = TextEvaluation(outputs, part.actions, part.action_mask(inputs.width), spec).logprobs
    return result


@torch.no_grad()
def score_values(module: nn.Module, inputs: Sequences, token_budget: int) -> tuple[Tensor, Tensor]:
    """Return value estimates before each sampled token, (B, T), and at the end of each trajectory, (B,)."""
    width = inputs.width
    states = torch.zeros(inputs.count, width + 1, device=inputs.ids.device)
    for rows in _layout(module).split(inputs, token_budget):
        part = inputs.select(rows)
        outputs: StateOutputs = module(part, need_logits=False, need_values=True, include_last=True)
        assert outputs.values is not None
        states[rows] = scatter_rows(outputs.values, lengths_to_mask(part.action_counts + 1, width + 1))
    at_end = states.gather(1, inputs.action_counts[:, None]).squeeze(1)
    before = states[:, :width].masked_fill(~inputs.action_mask(), 0)
    return before, at_end


def _layout(module: nn.Module) -> Layout:
    """Return the layout of a policy, or of what accelerate wraps it in; any other module counts padded positions."""
    layout: Layout = getattr(_unwrapped(module), "layout", PADDED)
    return layout


def _unwrapped(module: nn.Module) -> Any:
    return getattr(module, "module", module)  # accelerate wraps it on several ranks


def reference_spec(spec: SamplingSpec) -> SamplingSpec:
    """Return how the reference is scored: at the sampler's temperature, with its full support."""
    return SamplingSpec(temperature=spec.temperature, max_new_tokens=spec.max_new_tokens)


class Reference(Protocol):
    """Reference model, given for the time of a scoring pass."""

    def module(self) -> Any:
        """Return a context that gives a module to pass to ``score_logprobs``."""
        ...

    def sampled(self) -> Any:
        """Return the plain transformers model, for an engine."""
        ...


class FrozenReference:
    """A frozen copy of ``model``."""

    def __init__(self, model: Any) -> None:
        self.policy = PolicyModel(freeze_copy(model))

    @contextmanager
    def module(self) -> Iterator[nn.Module]:
        """Give the copy."""
        yield self.policy

    def sampled(self) -> Any:
        """Return the copy's language model."""
        return self.policy.model


class AdapterOff:
    """The policy's own backbone: it needs no memory, and is the initial policy bit for bit."""

    def __init__(self, policy: PolicyModel) -> None:
        self.policy = policy

    @contextmanager
    def module(self) -> Iterator[nn.Module]:
        """Give the policy with its adapter switched off."""
        assert self.policy.adapter is not None
        with self.policy.adapter.off():
            yield self.policy

    def sampled(self) -> Any:
        """Return the backbone without the adapter's layers; it shares every tensor."""
        assert self.policy.adapter is not None
        return self.policy.adapter.base


def score_reference(reference: Reference, inputs: Sequences, spec: SamplingSpec, token_budget: int) -> Tensor:
    """Return the reference's log-probabilities of the sampled tokens under ``spec``, (B, T)."""
    with reference.module() as module:
        return score_logprobs(module, inputs, spec, token_budget)


def make_reference(policy: PolicyModel, other: Any = None) -> Reference:
    """Return the reference of a policy that has not been trained yet, or a frozen copy of ``other``, a named model."""
    if other is None and policy.adapter is not None:
        return AdapterOff(policy)
    if other is not None:
        return FrozenReference(other)
    with policy.extracted() as model:  # with the LM head that is sampled
        return FrozenReference(model)
