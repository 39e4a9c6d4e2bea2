"""Problems so small that every response can be enumerated, so that what optimizers estimate is known exactly.

A problem is a few prompts, a causal language model over a small vocabulary, and a reward for each response. One
teacher-forced pass over all responses gives the policy's distribution, and with it the objective, its gradient, its
optimum and every expectation over samples, without sampling anything.

Leaves out: training (``exact_training``), expected updates (``exact_update``), ready-made problems
(``exact_problems``), temperatures and restricted supports.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.algorithms.sequences import Sequences, lengths_to_mask
from lmrl.engines import SamplingSpec
from lmrl.errors import ModelError, SettingsError
from lmrl.models import PolicyModel, freeze_copy
from lmrl.models.policy import StateOutputs
from lmrl.models.text_policy import TextEvaluation

MOST_RESPONSES = 100_000
"""Problems with more responses than this are refused."""

RewardOfIds = Callable[[list[int], list[int]], float]
"""Returns the reward of (prompt ids, response ids)."""


@dataclass(frozen=True)
class EnumeratedInputs(Sequences):
    """Prompts and responses, one sequence each; ``rows`` (B,) says which of the problem's responses each one is."""

    rows: Tensor

    def select(self, rows: Tensor) -> EnumeratedInputs:
        """Return the rows with these indices."""
        part = super().select(rows)
        return EnumeratedInputs(part.ids, part.lengths, part.sampled, part.trajectory, self.rows[rows])


@dataclass(frozen=True)
class PolicyTable:
    """A policy on all N responses of a problem, from one teacher-forced pass. Gradients flow if they were asked for."""

    logits: Tensor
    """Logits before each token, (N, T, V)."""
    logprobs: Tensor
    """Log-probability of each token, (N, T); 0 after a response's end."""
    values: Tensor | None = None
    """Value before each token, (N, T), if the policy has values."""
    bootstrap_values: Tensor | None = None
    """Value after the last token, (N,), if the policy has values."""

    @property
    def log_probabilities(self) -> Tensor:
        """Log-probabilities of whole responses given their prompts, (N,) float64: sums over their tokens."""
        return self.logprobs.double().sum(1)


@dataclass(frozen=True)
class ExactMeasures:
    """Measures of a policy, without sampling error. Means are over prompts."""

    objective: float
    """J = ``reward - beta * kl``."""
    gap: float
    """J(pi*) - J(pi), the distance to the optimum's objective."""
    reward: float
    """Expected reward."""
    kl: float
    """KL(pi || reference), in nats per response."""
    total_variation: float
    """Distance to the optimum's distribution, in [0, 1]."""
    gap_closed: float
    """Fraction of the gap that is closed: 0 at the reference, 1 at the optimum, NaN where these are equally good."""


class ExactProblem:
    """Prompts, a model, and a reward of every response that the model can give.

    A response ends with ``eos_id`` or with its ``max_new_tokens``-th token; both terminate it and are scored.
    ``reward`` is a function of (prompt ids, response ids), or the N rewards in the order of the enumeration: by prompt,
    then by length, then by ids. ``model`` is where policies start; it is never changed. The frozen reference is a copy
    of it, or of ``reference``. ``vocabulary`` is read from the output embedding if not given.

    Raises ``SettingsError`` for a problem that cannot be enumerated.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        reward: RewardOfIds | Sequence[float] | Tensor,
        *,
        eos_id: int,
        max_new_tokens: int,
        reference: Any = None,
        vocabulary: int | None = None,
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary or int(model.get_output_embeddings().weight.shape[0])
        self.prompts = [list(prompt) for prompt in prompts]
        self.spec = SamplingSpec(max_new_tokens=max_new_tokens, eos_ids=(eos_id,))
        if not self.prompts or not all(self.prompts):
            raise SettingsError(f"prompts is {prompts!r}; expected at least one, each of one token or more")
        if not 0 <= eos_id < self.vocabulary:
            raise SettingsError(f"eos_id is {eos_id}; expected one of the vocabulary's {self.vocabulary} ids")
        count = len(self.prompts) * count_responses(self.vocabulary, max_new_tokens)
        if count > MOST_RESPONSES:
            raise SettingsError(
                f"{len(self.prompts)} prompts have {count} responses of at most {max_new_tokens} of {self.vocabulary} "
                f"tokens; expected at most {MOST_RESPONSES}, so lower one of the three numbers"
            )
        responses = list(enumerate_responses(self.vocabulary, eos_id, max_new_tokens))
        pairs = list(itertools.product(self.prompts, responses))
        device = model.device
        self.inputs = enumerated_inputs(pairs, device)
        self.action_mask = self.inputs.action_mask(max_new_tokens)
        self.prompt_index = torch.arange(len(self.prompts), device=device).repeat_interleave(len(responses))
        numbers = [reward(list(asked), list(said)) for asked, said in pairs] if callable(reward) else reward
        self.rewards = torch.as_tensor(numbers, dtype=torch.float64, device=device)
        if self.rewards.shape != (count,):
            raise SettingsError(
                f"{tuple(self.rewards.shape)} rewards were given; expected ({count},), one per response"
            )
        self.reference = PolicyModel(freeze_copy(model if reference is None else reference))
        with torch.no_grad():
            self.reference_table = self.table(self.reference)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def responses_per_prompt(self) -> int:
        """Number of responses of each prompt."""
        return len(self) // len(self.prompts)

    def policy(
        self,
        with_values: bool = False,
        separate_critic: bool = False,
        optimizer: PolicyOptimizer | None = None,
        *,
        noise: float = 0.0,
        seed: int = 0,
    ) -> PolicyModel:
        """Return a new policy at the starting point; ``noise`` is the scale of normal noise on all its parameters.

        That and the heads of ``optimizer`` derive from the seed.
        """
        model = copy.deepcopy(self.model).requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = PolicyModel(model, with_values, separate_critic, optimizer)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in policy_parameters(policy) if noise else ():
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=noise)
        return policy

    def table(self, policy: PolicyModel, sets: Tensor | None = None) -> PolicyTable:
        """Evaluate a policy on all responses in one pass, with gradients if they are on.

        ``sets`` (N, T, V) bool restrict what it draws before each token; the rest is renormalised, and responses
        that cannot be drawn have the log-probability -inf.

        Raises ``ModelError`` unless the probabilities of each prompt's responses sum to 1 within 1e-4.
        """
        has_values = policy.value_head is not None
        outputs: StateOutputs = policy(self.inputs, need_values=has_values, include_last=True)
        assert outputs.logits is not None
        states = lengths_to_mask(self.inputs.action_counts + 1, self.action_mask.shape[1] + 1)
        logits = outputs.logits.new_zeros(*states.shape, outputs.logits.shape[-1])
        logits = logits.index_put(states.nonzero(as_tuple=True), outputs.logits)[:, :-1]
        if sets is not None:
            logits = logits.masked_fill(~sets, -torch.inf)
        values = after_last = None
        if outputs.values is not None:
            dense = torch.zeros(states.shape, device=states.device).masked_scatter(states, outputs.values)
            values = dense[:, :-1].masked_fill(~self.action_mask, 0)
            after_last = dense.gather(1, self.inputs.action_counts[:, None]).squeeze(1)
        flat = StateOutputs(logits[self.action_mask], None)
        logprobs = TextEvaluation(flat, self.inputs.actions, self.action_mask, self.spec).logprobs
        table = PolicyTable(logits, logprobs, values, after_last)
        sums = self._per_prompt(table.log_probabilities.detach().exp())
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            raise ModelError(
                f"the probabilities of all responses sum to {sums.tolist()}, one sum per prompt; expected 1: does the "
                f"model have other tokens than the {self.vocabulary} of the problem, or read what comes later?"
            )
        return table

    def objective(self, policy: PolicyModel, beta: float) -> Tensor:
        """Return J = E[r(y)] - beta KL(pi || pi_ref), a float64 scalar with gradients (Stiennon et al. 2020, eq. 2)."""
        reward, kl = self._terms(self.table(policy).log_probabilities)
        return reward - beta * kl

    def gradient(self, policy: PolicyModel, beta: float) -> Tensor:
        """Return the gradient of J with respect to ``policy_parameters(policy)``, flat, (P,): autograd through the sum.

        By the policy gradient theorem (Williams 1992; Sutton et al. 2000) it is also
        E[(r - beta (log pi - log pi_ref)) grad log pi].
        """
        parameters = policy_parameters(policy)
        with torch.enable_grad():
            return flatten(torch.autograd.grad(self.objective(policy, beta), parameters, materialize_grads=True))

    def optimum(self, beta: float) -> Tensor:
        """Return log pi*(y) = log pi_ref(y) + r(y) / beta - log Z, (N,) (Rafailov et al. 2023, eq. 4).

        With ``beta`` 0 every distribution over the best responses is an optimum; this is the limit of the formula,
        which shares them out as the reference does. Other responses have -inf.
        """
        unnormalised = self._unnormalised(beta)
        return unnormalised - self._log_partition(unnormalised)[self.prompt_index]

    def optimal_objective(self, beta: float) -> float:
        """Return J(pi*) = beta log Z with Z = E_ref[exp(r / beta)], or max r for ``beta`` 0; the mean over prompts."""
        if beta == 0:
            return float(self._best_rewards().mean())
        return float(beta * self._log_partition(self._unnormalised(beta)).mean())

    def objective_of(self, log_probabilities: Tensor, beta: float) -> float:
        """Return J of any distribution, given as log-probabilities (N,) normalised for each prompt."""
        reward, kl = self._terms(log_probabilities.detach().double())
        return float(reward - beta * kl)

    def measure(self, policy: PolicyModel | PolicyTable, beta: float) -> ExactMeasures:
        """Return the objective of a policy, its terms, and the distance to the optimum."""
        with torch.no_grad():
            table = policy if isinstance(policy, PolicyTable) else self.table(policy)
        return self.measure_of(table.log_probabilities, beta)

    def measure_of(self, log_probabilities: Tensor, beta: float) -> ExactMeasures:
        """Return the same of any distribution, given as log-probabilities (N,) normalised for each prompt."""
        log_probabilities = log_probabilities.detach().double()
        reward, kl = self._terms(log_probabilities)
        objective, best = float(reward - beta * kl), self.optimal_objective(beta)
        start = self.objective_of(self.reference_table.log_probabilities, beta)
        closed = (objective - start) / (best - start) if best - start > 1e-12 else float("nan")
        distance = self.total_variation(log_probabilities, beta)
        return ExactMeasures(objective, best - objective, float(reward), float(kl), distance, closed)

    def total_variation(self, log_probabilities: Tensor, beta: float) -> float:
        """Return sum |pi - pi*| / 2 to the nearest optimum, the mean over prompts.

        With ``beta`` 0 the nearest optimum keeps the policy's mass on the best responses and gets all other mass, so
        the distance is that other mass.
        """
        probabilities = log_probabilities.detach().double().exp()
        if beta == 0:
            others = torch.where(self._is_best(), torch.zeros_like(probabilities), probabilities)
            return float(self._per_prompt(others).mean())
        return float(0.5 * self._per_prompt((probabilities - self.optimum(beta).exp()).abs()).mean())

    def draw(self, log_probabilities: Tensor, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one response for each entry of ``prompts`` (B,) and return their places in the enumeration, (B,).

        Inverse transform sampling: the same generator state gives the same draws. Shape of the distribution: (N,).
        """
        cumulative = log_probabilities.detach().double().exp().view(len(self.prompts), -1).cumsum(1)
        uniform = torch.rand(len(prompts), 1, generator=generator, dtype=torch.float64).to(cumulative.device)
        chosen = torch.searchsorted(cumulative[prompts], uniform * cumulative[prompts, -1:], right=True).squeeze(1)
        return chosen.clamp_max(self.responses_per_prompt - 1) + prompts * self.responses_per_prompt

    def greedy(self, table: PolicyTable) -> Tensor:
        """Return the place of the greedy response of every prompt, one entry per prompt."""
        ids = self.inputs.action_ids
        choices = table.logits.argmax(-1)
        follows = ((ids == choices) | ~self.action_mask).all(1)
        return follows.nonzero().squeeze(1)

    def _terms(self, log_probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Return the expected reward and KL(pi || pi_ref), means over prompts."""
        reached = log_probabilities > -torch.inf
        safe = log_probabilities.masked_fill(~reached, 0)
        probabilities = torch.where(reached, safe.exp(), 0)
        log_ratio = safe - self.reference_table.log_probabilities
        return self._per_prompt(probabilities * self.rewards).mean(), self._per_prompt(probabilities * log_ratio).mean()

    def _per_prompt(self, column: Tensor) -> Tensor:
        return column.view(len(self.prompts), -1).sum(1)

    def _best_rewards(self) -> Tensor:
        return self.rewards.view(len(self.prompts), -1).amax(1)

    def _is_best(self) -> Tensor:
        return self.rewards == self._best_rewards()[self.prompt_index]

    def _unnormalised(self, beta: float) -> Tensor:
        reference = self.reference_table.log_probabilities
        if beta == 0:
            return reference.masked_fill(~self._is_best(), -torch.inf)
        return reference + self.rewards / beta

    def _log_partition(self, unnormalised: Tensor) -> Tensor:
        return unnormalised.view(len(self.prompts), -1).logsumexp(1)


def count_responses(vocabulary: int, max_new_tokens: int) -> int:
    """Return how many responses there are: sum_{n < T} (V - 1)^(n - 1) that end by EOS, and (V - 1)^(T - 1) V more."""
    ended = sum((vocabulary - 1) ** (length - 1) for length in range(1, max_new_tokens))
    return int(ended + (vocabulary - 1) ** (max_new_tokens - 1) * vocabulary)


def enumerate_responses(vocabulary: int, eos_id: int, max_new_tokens: int) -> Iterator[tuple[int, ...]]:
    """Yield the ids of every response, by length, then by ids; each ends with EOS or has ``max_new_tokens`` tokens."""
    others = [token for token in range(vocabulary) if token != eos_id]
    for length in range(1, max_new_tokens + 1):
        last = range(vocabulary) if length == max_new_tokens else [eos_id]
        for start in itertools.product(others, repeat=length - 1):
            yield from ((*start, token) for token in last)


def enumerated_inputs(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device) -> EnumeratedInputs:
    """Return (prompt ids, response ids) as sequences."""
    rows = Sequences.of_pairs(pairs, device)
    return EnumeratedInputs(rows.ids, rows.lengths, rows.sampled, rows.trajectory, rows.trajectory)


def policy_parameters(policy: PolicyModel) -> list[nn.Parameter]:
    """Return the trained parameters of the language model, without those of a value function, in a fixed order."""
    return [parameter for parameter in policy.model.parameters() if parameter.requires_grad]


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return all entries of several tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
