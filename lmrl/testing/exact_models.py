"""Models beside the policy on an enumerated problem: each is a table of distributions before every token.

A model with a path is a teacher, and no teacher is better than the problem's optimum, so that is what it is. Leaves
out: moving averages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.beside import POLICY, REFERENCE, Mixture, NamedModel, no_such_model
from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.engines import Request
from lmrl.errors import SettingsError
from lmrl.models.policy import StateOutputs
from lmrl.plugins.specs import Needs
from lmrl.testing.exact import EnumeratedInputs, ExactProblem, PolicyTable


class TableModel:
    """A ``lmrl.models.text_policy.Reference`` of log-probabilities (N, T, V) before every token of every response."""

    def __init__(self, problem: ExactProblem, logits: Tensor) -> None:
        self.problem, self.logits = problem, logits.detach()

    @contextmanager
    def module(self) -> Iterator[TableModel]:
        """Give the table, which is called as a policy is."""
        yield self

    def sampled(self) -> Any:
        """Raise ``TypeError``: no engine samples a table."""
        raise TypeError("a table of an exact problem is drawn from by enumeration")

    def __call__(self, inputs: EnumeratedInputs, **_: Any) -> StateOutputs:
        """Return the logits before each token of these responses."""
        return StateOutputs(self.logits[inputs.rows][self.problem.action_mask[inputs.rows]], None)


class ExactModels:
    """What ``optimizer.models()`` names, with the optimum of ``beta`` as every teacher.

    ``references`` are those that ``policy.other`` gives. Raises ``SettingsError`` for a moving average.
    """

    def __init__(self, problem: ExactProblem, optimizer: PolicyOptimizer, needs: Needs, beta: float) -> None:
        self.problem, self.optimizer = problem, optimizer
        self.mixtures: dict[str, Mixture] = {}
        self.references: dict[str, TableModel] = {}
        if needs.reference:
            self.references[REFERENCE] = TableModel(problem, problem.reference_table.logits)
        for name, one in optimizer.models().items():
            if isinstance(one, Mixture):
                self.mixtures[name] = one
            else:
                self.references[name] = TableModel(problem, self._logits(name, one, beta))

    def _logits(self, name: str, one: NamedModel, beta: float) -> Tensor:
        if one.moves:
            raise SettingsError(f"the model {name!r} is a moving average; expected frozen models on an exact problem")
        if one.path is not None:
            return conditionals(self.problem, self.problem.optimum(beta))
        with torch.no_grad():
            return self.problem.table(self.problem.policy()).logits

    def further(self, table: PolicyTable) -> list[Tensor]:
        """Return the distribution of the response to each further request, log-probabilities (N,).

        Raises ``SettingsError`` for a temperature other than the problem's and 0.
        """
        one = Request(list(self.problem.prompts[0]), self.problem.spec, seed=0)
        return [self._distribution(request, table) for request in self.optimizer.further_requests([one])]

    def _distribution(self, request: Request, table: PolicyTable) -> Tensor:
        problem, temperature = self.problem, request.spec.temperature
        if temperature not in (0, problem.spec.temperature):
            raise SettingsError(
                f"a further request has the temperature {temperature}; expected 0, the greedy response, or "
                f"{problem.spec.temperature}, the problem's"
            )
        logits = self._mixed(request.model, table)
        if temperature == 0:
            chosen = problem.greedy(PolicyTable(logits, table.logprobs))
            return torch.full_like(problem.rewards, -torch.inf).index_fill(0, chosen, 0.0)
        before = logits.double().log_softmax(-1).gather(-1, problem.inputs.action_ids[..., None]).squeeze(-1)
        return before.masked_fill(~problem.action_mask, 0).sum(1)

    def _mixed(self, name: str, table: PolicyTable) -> Tensor:
        """Return the logits of a model or mixture, (N, T, V)."""
        if name == POLICY:
            return table.logits.detach()
        if name in self.mixtures:
            parts = self.mixtures[name].weights.items()
            return sum((weight * self._mixed(part, table).log_softmax(-1) for part, weight in parts), torch.zeros(()))
        if name not in self.references:
            raise no_such_model(name, [*self.references, *self.mixtures])
        return self.references[name].logits


def conditionals(problem: ExactProblem, log_probabilities: Tensor) -> Tensor:
    """Return log p(token | what came before) of a distribution over responses, (N, T, V).

    Tokens that no response has there are -inf; positions behind a response's end are uniform.
    """
    rows = [ids[mask].tolist() for ids, mask in zip(problem.inputs.action_ids, problem.action_mask, strict=True)]
    prompts, masses = problem.prompt_index.tolist(), log_probabilities.exp().tolist()
    mass: dict[tuple[int, tuple[int, ...]], list[float]] = defaultdict(lambda: [0.0] * problem.vocabulary)
    for prompt, row, share in zip(prompts, rows, masses, strict=True):
        for place, token in enumerate(row):
            mass[prompt, tuple(row[:place])][token] += share
    result = torch.zeros(*problem.action_mask.shape, problem.vocabulary, dtype=torch.float64)
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        for place in range(len(row)):
            result[number, place] = torch.tensor(mass[prompt, tuple(row[:place])], dtype=torch.float64).log()
    return result.log_softmax(-1).to(problem.rewards.device, torch.float32)
