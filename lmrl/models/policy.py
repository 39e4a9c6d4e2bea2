"""The policy: a causal language model, with a value head if the optimizer needs one, evaluated on sampled responses.

Sequences are packed or padded (``lmrl.models.layouts``). The LM head runs only where a sampled token is predicted, and
logits are kept only where somebody reads them. ``PolicyWeights`` publishes a policy to an engine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmrl.algorithms.optimizer import LogitsProcessor, PolicyOptimizer
from lmrl.algorithms.parameters import TrainedParameters, require_groups_of
from lmrl.algorithms.sequences import Sequences
from lmrl.errors import ModelError
from lmrl.models.adapted import CRITIC_ADAPTER, Adapter
from lmrl.models.head import head_logprobs, logits_later
from lmrl.models.layouts import Layout, choose_layout
from lmrl.models.lm_head import PREFIX, head_state, output_embedding, replaced_head, require_linear_head, restore_head
from lmrl.models.loading import load, require_trained_trunk
from lmrl.models.saving import require_file_names, restore_training_weights, save_model
from lmrl.text.card import ModelCard
from lmrl.text.folders import copy_tokenizer

ALL = slice(None)
VALUE_HEAD_FILE = "value_head.safetensors"
CRITIC_FILE = "critic.safetensors"


@dataclass(frozen=True)
class StateOutputs:
    """Outputs of the model in the chosen states, flat in row-major order: ``logits`` (N, V), ``values`` (N,) or none.

    Logits have the precision of the forward pass; values and log-probabilities are float32 whatever that is.
    ``heads`` are the outputs (..., N) of the optimizer's heads, by name. ``logprobs`` (N,) are the log-probabilities of
    the actions where they were asked for without logits; ``later_logits`` then computes these when somebody wants them,
    in the states at the given places or in all.
    """

    logits: Tensor | None
    values: Tensor | None
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    logprobs: Tensor | None = None
    later_logits: Callable[[Tensor | slice], Tensor] | None = None

    def all_logits(self, places: Tensor | slice = ALL) -> Tensor:
        """Return the logits of all states or of those at ``places``, computed now if they were not yet."""
        if self.logits is not None:
            return self.logits[places]
        assert self.later_logits is not None
        return self.later_logits(places)

    def restricted(self, support: Tensor) -> StateOutputs:
        """Return the same with logits of -inf outside ``support``, (N, V) bool."""
        return StateOutputs(self.all_logits().masked_fill(~support, -torch.inf), self.values, self.heads)

    def select(self, kept: Tensor) -> StateOutputs:
        """Return the states where ``kept`` (N,) is true; without a copy if that is all of them."""
        return self if bool(kept.all()) else self.at(kept)

    def at(self, places: Tensor) -> StateOutputs:
        """Return the states at these places, by index or by mask."""
        logits, values, logprobs = (
            None if column is None else column[places] for column in (self.logits, self.values, self.logprobs)
        )
        heads = {name: column[..., places] for name, column in self.heads.items()}
        whole = self.later_logits
        indices = places.nonzero().squeeze(1) if places.dtype == torch.bool else places
        later = None if whole is None else lambda inner: whole(indices[inner])
        return StateOutputs(logits, values, heads, logprobs, later)


class PolicyModel(nn.Module):
    """A causal language model and, if ``with_values``, a linear value head on its last hidden state.

    The head starts at zero, so the first value of every state is 0. With ``separate_critic`` it reads a trunk of its
    own, which starts as a copy of the model's. Dropout stays off: the policy is always in evaluation mode, because a
    ratio between two dropout masks measures the masks.

    The ``heads`` of ``optimizer`` read the model's last hidden state too. Where it writes ``sampled_head``, that is the
    LM head of the policy, which ``extracted()`` gives and ``save`` writes as a plain causal LM.

    ``adapter`` is the adapter inside ``model``: it alone is trained, and a separate critic is a second adapter on the
    same backbone.
    """

    def __init__(
        self,
        model: Any,
        with_values: bool = False,
        separate_critic: bool = False,
        optimizer: PolicyOptimizer | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.adapter = adapter
        self.value_head: nn.Linear | None = None
        self.critic: nn.Module | None = None
        if with_values:
            _, width = output_embedding(model).shape
            require_trained_trunk(model)
            self.value_head = nn.Linear(width, 1, device=model.device, dtype=torch.float32)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self.heads = nn.ModuleDict()
        self._head_groups: Callable[[Mapping[str, nn.Module]], Sequence[TrainedParameters]] | None = None
        self._sampled_head: Callable[[nn.Linear], nn.Linear] | None = None
        if optimizer is not None and optimizer.defines("heads"):
            if optimizer.defines("sampled_head"):
                require_linear_head(model)
                self._sampled_head = optimizer.sampled_head
            actions, width = output_embedding(model).shape
            heads = optimizer.heads(width, actions)
            require_file_names("heads()", heads, ("value_head", "critic", "training_weights", "adapter_model"))
            self.heads.update(heads)
            self.heads.to(model.device)
            self._head_groups = optimizer.parameter_groups
        self.has_critic = with_values and separate_critic
        """True if the value head reads a trunk, or an adapter, of its own."""
        if self.has_critic and adapter is not None:
            adapter.add_critic()
        elif self.has_critic:
            self.critic = copy.deepcopy(model).requires_grad_(False)
            self.critic.base_model.requires_grad_(True)  # its LM head is never used
        self.eval()

    def train(self, mode: bool = True) -> PolicyModel:
        """Keep evaluation mode for any argument: dropout is off in rollout and update alike."""
        return super().train(False)

    @cached_property
    def layout(self) -> Layout:
        """Layout of sequences in forward passes; chosen by trying when it is first asked for."""
        return choose_layout(self.model)

    def forward(
        self,
        inputs: Sequences,
        need_logits: bool = True,
        need_values: bool = False,
        include_last: bool = False,
        need_heads: bool = False,
        temperature: float | None = None,
    ) -> StateOutputs:
        """Evaluate the states before each sampled token (and at each trajectory's end, with ``include_last``).

        The optimizer's heads read the sampled tokens, so they exclude ``include_last``. So do the log-probabilities at
        ``temperature``, which a model with a plain head gives in the place of logits.
        """
        if need_values and self.value_head is None:
            raise ModelError("values were asked of a policy without a value head; make it with with_values=True")
        states = self.layout.states(inputs, include_last)
        head = self._plain_head() if need_logits and temperature and not include_last else None
        shared = (need_values and not self.has_critic) or need_heads
        outputs, hidden = StateOutputs(None, None), None
        if need_logits or shared:
            hidden, logits = states(self.model, need_logits and head is None, shared or head is not None)
            outputs = replace(outputs, logits=logits)
        if head is not None:
            assert hidden is not None and temperature is not None
            logprobs = head_logprobs(hidden, head.weight, inputs.actions, temperature)
            outputs = replace(outputs, logprobs=logprobs, later_logits=logits_later(head, hidden))
        if need_heads:
            assert hidden is not None and not include_last
            outputs = replace(
                outputs, heads={name: _read(head, hidden, inputs.actions) for name, head in self.heads.items()}
            )
        if need_values and self.has_critic:
            with self._critic_model() as critic:
                hidden, _ = states(critic, False, True)
        if need_values:
            assert self.value_head is not None and hidden is not None
            outputs = replace(outputs, values=_read(self.value_head, hidden).squeeze(-1))
        return outputs

    def _plain_head(self) -> nn.Linear | None:
        """Return the LM head where it is a matrix and nothing else."""
        head = self.model.get_output_embeddings()
        return head if self.layout.linear_head and type(head) is nn.Linear and head.bias is None else None

    def trainable(self) -> list[TrainedParameters]:
        """Return the model's parameters that learn, those of the heads, and those of a separate critic's trunk.

        Groups that the optimizer makes of its heads' parameters come last. Raises ``PluginError`` for other parameters.
        """
        head = list(self.value_head.parameters()) if self.value_head is not None else []
        of_heads = [parameter for parameter in self.heads.parameters() if parameter.requires_grad]
        groups = [] if self._head_groups is None else list(self._head_groups(dict(self.heads.items())))
        require_groups_of(of_heads, groups)
        grouped = {id(parameter) for group in groups for parameter in group.parameters}
        head += [parameter for parameter in of_heads if id(parameter) not in grouped]
        trunk: list[nn.Parameter] = []
        if self.adapter is not None:
            trunk = self.adapter.parameters(CRITIC_ADAPTER)
        elif self.critic is not None:
            trunk = list(self.critic.base_model.parameters())  # type: ignore[union-attr]
        return [
            TrainedParameters(self.policy_parameters(), name="policy"),
            TrainedParameters(head, "value", head=True, name="value"),
            TrainedParameters(trunk, "value", name="critic"),
            *groups,
        ]

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters of the language model: all of them, or those of its adapter."""
        if self.adapter is not None:
            return self.adapter.parameters()
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @contextmanager
    def extracted(self) -> Iterator[Any]:
        """Return the language model as it is sampled and saved, in a context: with the optimizer's head, the adapter
        merged.
        """
        with nullcontext(self.model) if self.adapter is None else self.adapter.plain() as model:
            if self._sampled_head is None:
                yield model
                return
            with replaced_head(model, self._sampled_head(model.get_output_embeddings())):
                yield model

    @contextmanager
    def _critic_model(self) -> Iterator[Any]:
        """Give the model whose hidden states a separate critic reads."""
        if self.adapter is None:
            yield self.critic
            return
        with self.adapter.critic():
            yield self.model

    def save(self, folder: Path, tokenizer_from: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model, its tokenizer and the heads in the transformers layout (safetensors).

        ``dtype`` is the model's precision; see ``lmrl.models.saving``. The model is written as ``extracted()``; the LM
        head that is trained goes into the first head's file where it is another one. With an adapter the folder is
        PEFT's, without the backbone.
        """
        from safetensors.torch import save_file

        if self.adapter is not None:
            self.adapter.save(folder)
        else:
            with self.extracted() as model:
                save_model(model, folder, dtype)
        copy_tokenizer(tokenizer_from, folder)
        beside = {VALUE_HEAD_FILE: self.value_head, CRITIC_FILE: self._critic_trunk()}
        states = {file: module.state_dict() for file, module in beside.items() if module is not None}
        for place, (name, head) in enumerate(self.heads.items()):
            trained = head_state(self.model) if place == 0 and self._sampled_head is not None else {}
            states[f"{name}.safetensors"] = head.state_dict() | trained
        for file, state in states.items():
            # Cloned, because safetensors refuses tensors that share memory.
            save_file({key: value.clone().contiguous() for key, value in state.items()}, folder / file)

    def restore(self, folder: Path, trust_remote_code: bool = False) -> None:
        """Restore the model, or its adapter, and the heads that ``save`` wrote, bit for bit."""
        from safetensors.torch import load_file

        if self.adapter is not None:
            self.adapter.load(folder)
            self.load_value_head(folder)
            return
        device = next(self.model.parameters()).device
        found = load(folder, device=device, dtype=torch.float32, trust_remote_code=trust_remote_code).model
        restore_training_weights(found, folder)
        beside = folder / f"{next(iter(self.heads), '')}.safetensors"  # the LM head that is trained, not sampled
        if self._sampled_head is not None and beside.exists():
            restore_head(found, {key: value for key, value in load_file(beside).items() if key.startswith(PREFIX)})
        self.model.load_state_dict(found.state_dict())
        self.load_value_head(folder)

    def load_value_head(self, folder: Path) -> bool:
        """Load the value function that ``save`` wrote, if there is one of this kind; return True if there was.

        The optimizer's heads are loaded too; the file of the first one holds the LM head that is trained.
        """
        from safetensors.torch import load_file

        for place, (name, head) in enumerate(self.heads.items()):
            if (folder / f"{name}.safetensors").exists():
                state = load_file(folder / f"{name}.safetensors")
                trained = {key: state.pop(key) for key in list(state) if key.startswith(PREFIX)}
                if place == 0 and self._sampled_head is not None:
                    restore_head(self.model, trained)
                head.load_state_dict(state)
        if self.has_critic and self.adapter is not None and not self.adapter.load_critic(folder):
            return False
        trunk = self._critic_trunk()
        files = [folder / VALUE_HEAD_FILE] + [folder / CRITIC_FILE] * (trunk is not None)
        if self.value_head is None or not all(file.exists() for file in files):
            return False
        self.value_head.load_state_dict(load_file(files[0]))
        if trunk is not None:
            trunk.load_state_dict(load_file(files[1]))
        return True

    def _critic_trunk(self) -> nn.Module | None:
        return None if self.critic is None else self.critic.base_model  # type: ignore[return-value]


def _read(head: nn.Module, hidden: Tensor, *further: Tensor) -> Tensor:
    """Return a head's output in float32: half precision has too few digits for the differences between values."""
    with torch.autocast(hidden.device.type, enabled=False):
        result: Tensor = head(hidden.float(), *further)
    return result


class PolicyWeights:
    """A ``WeightSource`` of a policy that learns only between batches; ``processor`` restricts what it may draw."""

    synchronous = True

    def __init__(self, policy: PolicyModel, card: ModelCard, processor: LogitsProcessor | None = None) -> None:
        self.policy, self.card, self.processor = policy, card, processor
        self.codec = card.codec

    @contextmanager
    def module(self) -> Iterator[Any]:
        """Give the language model as it is sampled: with the optimizer's head, and within its processor's support."""
        with self.policy.extracted() as model:
            yield model if self.processor is None else self.processor.restrict(model)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the language model's parameters and buffers by name."""
        with self.policy.extracted() as model:
            yield from ((name, tensor.detach()) for name, tensor in model.named_parameters())
            yield from ((name, tensor.detach()) for name, tensor in model.named_buffers())

    def write(self, folder: Path) -> None:
        """Write the language model as it is sampled and its tokenizer as a transformers folder."""
        with self.policy.extracted() as model:
            save_model(model, folder)
        copy_tokenizer(self.card.files or self.card.path, folder)
