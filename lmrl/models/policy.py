"""The policy: a causal language model, with a value head if the optimizer needs one, evaluated on sampled responses.

Sequences are packed or padded (``lmrl.models.layouts``). The LM head runs only where a sampled token is predicted, and
logits are kept only where somebody reads them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmrl.algorithms.sequences import Sequences
from lmrl.errors import ModelError
from lmrl.models.action_values import (
    ACTION_VALUES_FILE,
    PREFIX,
    ActionValueHeads,
    ActionValues,
    head_state,
    replaced_head,
    require_linear_head,
    restore_head,
)
from lmrl.models.adapted import CRITIC_ADAPTER, Adapter
from lmrl.models.head import head_logprobs
from lmrl.models.layouts import Layout, choose_layout
from lmrl.models.loading import require_trained_trunk
from lmrl.models.saving import save_model
from lmrl.text.folders import copy_tokenizer

VALUE_HEAD_FILE = "value_head.safetensors"
CRITIC_FILE = "critic.safetensors"


@dataclass(frozen=True)
class StateOutputs:
    """Outputs of the model in the chosen states, flat in row-major order: ``logits`` (N, V), ``values`` (N,) or none.

    Logits have the precision of the forward pass; values and log-probabilities are float32 whatever that is.
    ``action_values`` are those of the N actions taken, or none. ``logprobs`` (N,) are the log-probabilities of the
    actions where they were asked for without logits; ``later_logits`` then computes these when somebody wants them.
    """

    logits: Tensor | None
    values: Tensor | None
    action_values: ActionValues | None = None
    logprobs: Tensor | None = None
    later_logits: Callable[[], Tensor] | None = None

    def all_logits(self) -> Tensor:
        """Return the logits, (N, V), computed now if they were not yet."""
        if self.logits is not None:
            return self.logits
        assert self.later_logits is not None
        return self.later_logits()

    def restricted(self, support: Tensor) -> StateOutputs:
        """Return the same with logits of -inf outside ``support``, (N, V) bool."""
        return StateOutputs(self.all_logits().masked_fill(~support, -torch.inf), self.values, self.action_values)

    def select(self, kept: Tensor) -> StateOutputs:
        """Return the states where ``kept`` (N,) is true; without a copy if that is all of them."""
        return self if bool(kept.all()) else self.at(kept)

    def at(self, places: Tensor) -> StateOutputs:
        """Return the states at these places, by index or by mask."""
        logits, values, logprobs = (
            None if column is None else column[places] for column in (self.logits, self.values, self.logprobs)
        )
        actions = None if self.action_values is None else self.action_values.at(places)
        whole = self.later_logits
        later = None if whole is None else lambda: whole()[places]
        return StateOutputs(logits, values, actions, logprobs, later)


class PolicyModel(nn.Module):
    """A causal language model and, if ``with_values``, a linear value head on its last hidden state.

    The head starts at zero, so the first value of every state is 0. With ``separate_critic`` it reads a trunk of its
    own, which starts as a copy of the model's. Dropout stays off: the policy is always in evaluation mode, because a
    ratio between two dropout masks measures the masks.

    ``with_action_values`` adds heads that value every action. The policy is then the language model with ``extraction``
    times their values added to its logits, which ``extracted()`` gives and ``save`` writes as a plain causal LM.

    ``adapter`` is the adapter inside ``model``: it alone is trained, and a separate critic is a second adapter on the
    same backbone.
    """

    def __init__(
        self,
        model: Any,
        with_values: bool = False,
        separate_critic: bool = False,
        with_action_values: bool = False,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.adapter = adapter
        self.value_head: nn.Linear | None = None
        self.critic: nn.Module | None = None
        if with_values:
            if model.get_output_embeddings() is None:
                raise ModelError(
                    f"the optimizer needs a value head, but {type(model).__name__} has no output embedding that says "
                    "what one would read; choose a model with an LM head, or an optimizer without a value function, "
                    "such as rloo or reinforce"
                )
            require_trained_trunk(model)
            # What the LM head reads, which is not hidden_size where a family projects its last hidden state (OPT-350m).
            width = model.get_output_embeddings().weight.shape[1]
            self.value_head = nn.Linear(width, 1, device=model.device, dtype=torch.float32)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self.action_values: ActionValueHeads | None = None
        self.extraction = 0.0
        if with_action_values:
            head = require_linear_head(model)
            self.action_values = ActionValueHeads(head.in_features, head.out_features, model.device)
        self.has_critic = with_values and separate_critic
        """True if the value head reads a trunk, or an adapter, of its own."""
        if self.has_critic and adapter is not None:
            adapter.add_critic()
        elif self.has_critic:
            self.critic = copy.deepcopy(model).requires_grad_(False)
            self.critic.base_model.requires_grad_(True)  # its LM head is never used
        self.eval()

    def train(self, mode: bool = True) -> PolicyModel:
        """Keep evaluation mode whatever is asked: dropout is off in rollout and update alike."""
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
        need_action_values: bool = False,
        temperature: float | None = None,
    ) -> StateOutputs:
        """Evaluate the states before each sampled token (and at each trajectory's end, with ``include_last``).

        Action values are those of the sampled tokens, so they exclude ``include_last``. So are the log-probabilities
        at ``temperature``, which a model with a plain head gives in the place of logits.
        """
        if need_values and self.value_head is None:
            raise ModelError("values were asked of a policy without a value head; make it with with_values=True")
        states = self.layout.states(inputs, include_last)
        head = self._plain_head() if need_logits and temperature and not include_last else None
        shared = (need_values and not self.has_critic) or need_action_values
        outputs, hidden = StateOutputs(None, None), None
        if need_logits or shared:
            hidden, logits = states(self.model, need_logits and head is None, shared or head is not None)
            outputs = replace(outputs, logits=logits)
        if head is not None:
            assert hidden is not None and temperature is not None
            logprobs = head_logprobs(hidden, head.weight, inputs.actions, temperature)
            outputs = replace(outputs, logprobs=logprobs, later_logits=_later(head, hidden))
        if need_action_values:
            assert self.action_values is not None and hidden is not None and not include_last
            with torch.autocast(hidden.device.type, enabled=False):  # values are compared and subtracted: see below
                actions = self.action_values(hidden.float(), inputs.actions)
            outputs = replace(outputs, action_values=actions)
        if need_values and self.has_critic:
            with self._critic_model() as critic:
                hidden, _ = states(critic, False, True)
        if need_values:
            assert self.value_head is not None and hidden is not None
            # Half precision has three digits: too few for the differences of values that advantages are made of.
            with torch.autocast(hidden.device.type, enabled=False):
                outputs = replace(outputs, values=self.value_head(hidden.float()).squeeze(-1))
        return outputs

    def _plain_head(self) -> nn.Linear | None:
        """Return the LM head where it is a matrix and nothing else."""
        head = self.model.get_output_embeddings()
        return head if self.layout.linear_head and type(head) is nn.Linear and head.bias is None else None

    def value_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the trained parameters of the value and action-value heads, and those of a separate critic's trunk."""
        head = list(self.value_head.parameters()) if self.value_head is not None else []
        if self.action_values is not None:
            head += list(self.action_values.heads.parameters())
        if self.adapter is not None:
            return head, self.adapter.parameters(CRITIC_ADAPTER)
        trunk = list(self.critic.base_model.parameters()) if self.critic is not None else []  # type: ignore[union-attr]
        return head, trunk

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters of the language model: all of them, or those of its adapter."""
        if self.adapter is not None:
            return self.adapter.parameters()
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @contextmanager
    def extracted(self) -> Iterator[Any]:
        """Give the language model as it is sampled and saved: action values and an adapter are in its weights."""
        with nullcontext(self.model) if self.adapter is None else self.adapter.plain() as model:
            if self.action_values is None:
                yield model
                return
            merged = self.action_values.merged(model.get_output_embeddings(), self.extraction)
            with replaced_head(model, merged):
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

        ``dtype`` is the model's precision; see ``lmrl.models.saving``. With action values the model is written as
        ``extracted()``; the head that is trained goes beside it. With an adapter the folder is PEFT's, without the
        backbone.
        """
        from safetensors.torch import save_file

        if self.adapter is not None:
            self.adapter.save(folder)
        else:
            with self.extracted() as model:
                save_model(model, folder, dtype)
        if self.action_values is not None:
            state = self.action_values.state_dict() | head_state(self.model)
            save_file({key: value.clone().contiguous() for key, value in state.items()}, folder / ACTION_VALUES_FILE)
        copy_tokenizer(tokenizer_from, folder)
        for module, name in ((self.value_head, VALUE_HEAD_FILE), (self._critic_trunk(), CRITIC_FILE)):
            if module is not None:
                # Cloned, because safetensors refuses tensors that share memory.
                save_file(
                    {key: value.clone().contiguous() for key, value in module.state_dict().items()}, folder / name
                )

    def load_value_head(self, folder: Path) -> bool:
        """Load the value function that ``save`` wrote, if there is one of this kind; say whether there was.

        So it is with action values, which bring the head along that is trained.
        """
        from safetensors.torch import load_file

        if self.action_values is not None and (folder / ACTION_VALUES_FILE).exists():
            state = load_file(folder / ACTION_VALUES_FILE)
            restore_head(self.model, {key: value for key, value in state.items() if key.startswith(PREFIX)})
            self.action_values.load_state_dict({k: v for k, v in state.items() if not k.startswith(PREFIX)})
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


def _later(head: nn.Linear, hidden: Tensor) -> Callable[[], Tensor]:
    """Return how to compute the logits of ``hidden`` later, in the precision of now."""
    device = hidden.device.type
    enabled, precision = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def logits() -> Tensor:
        with torch.autocast(device, dtype=precision, enabled=enabled):
            result: Tensor = head(hidden)
        return result

    return logits
