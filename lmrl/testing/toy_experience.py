"""Experience made of toy answers: one function for each kind of experience.

``EXPERIENCES`` is where a further kind is added: a function that takes a ``Request`` and returns what the updater is
given. Everything else in the kit works on any frozen record of (B,) and (B, T) tensors that has ``select``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.beside import POLICY
from lmrl.algorithms.experience import DemonstrationBatch, LabelledBatch, PairBatch, Responses, TrajectoryBatch
from lmrl.algorithms.kl import KLSettings, shape_rewards
from lmrl.algorithms.rollout import Rollout
from lmrl.algorithms.sequences import lengths_to_mask
from lmrl.testing.toy_policy import PROMPTS, ToyInputs, ToyModel, draw, logprobs_of, model_of, score

EVERYTHING = frozenset({"values", "reference"})
"""The needs that bring columns along, in a rollout or in what the policy evaluates to."""
PARTS = ("first", "second")
"""Names of the parts of every score: two halves."""
DRAWS = 4
"""Answers of which the best and the worst make a pair."""


@dataclass(frozen=True)
class Request:
    """Answers to make: those of ``model``, ``group_size`` to each of ``groups`` prompts.

    ``supplied`` names the needs whose columns are there, ``further`` the model of each further request, ``others`` the
    models beside the policy. ``score``
    replaces every answer's score. With ``plain``, rewards are the scores alone; otherwise there is a KL shaping, no two
    answers to a prompt score alike, and at most one of them is cut off and not scored.
    """

    model: ToyModel
    reference: ToyModel
    seed: int
    groups: int = 6
    group_size: int = 4
    supplied: frozenset[str] = EVERYTHING
    further: tuple[str, ...] = ()
    others: Mapping[str, ToyModel] = field(default_factory=dict)
    score: float | None = None
    plain: bool = False


@dataclass(frozen=True)
class _Answers:
    inputs: ToyInputs
    logprobs: Tensor
    mask: Tensor
    prompts: Tensor
    group: Tensor
    scores: Tensor


def _answers(request: Request, seed: int) -> _Answers:
    group = torch.arange(request.groups).repeat_interleave(request.group_size)
    prompts = group % PROMPTS
    inputs, logprobs = draw(request.model, prompts, seed)
    scores = score(inputs, prompts) if request.score is None else torch.full(prompts.shape, request.score)
    if request.score is None and not request.plain:
        # Which one of two equal answers is picked may depend on their places, and is no defect.
        scores = scores + 0.01 * (1 + torch.arange(len(prompts)) % request.group_size)
    return _Answers(inputs, logprobs, lengths_to_mask(inputs.lengths, logprobs.shape[1]), prompts, group, scores)


@torch.no_grad()
def make_rollout(request: Request) -> Rollout:
    """Return sampled answers with scores."""
    made = _answers(request, request.seed)
    reference = logprobs_of(request.reference, made.inputs, made.mask)
    open_ended = made.inputs.actions.gather(1, (made.inputs.lengths - 1)[:, None]).squeeze(1) != 0
    first = torch.arange(len(made.group)) % request.group_size == 0
    truncated = open_ended & first & (not request.plain)
    scores = made.scores.masked_fill(truncated, 0)
    beta = 0.0 if request.plain or request.score is not None else 0.1
    rewards = shape_rewards(scores, made.logprobs, reference, made.mask, KLSettings(beta=beta), beta)
    columns: dict[str, Mapping[str, Tensor]] = {
        "values": {
            "values": request.model.values(made.inputs.states).masked_fill(~made.mask, 0),
            "bootstrap_values": request.model.values(made.inputs.states[:, -1]),
        },
        "reference": {"reference_logprobs": reference},
    }
    declared = {name: column for need in request.supplied & columns.keys() for name, column in columns[need].items()}
    further = [_further(request, made, place, name) for place, name in enumerate(request.further)]
    if further:
        declared["further_scores"] = torch.stack([scores for _, scores in further], dim=1)
    return Rollout(
        inputs=made.inputs,
        action_mask=made.mask,
        sampler_logprobs=made.logprobs,
        rewards=rewards,
        scores=scores,
        terminated=~truncated,
        truncated=truncated,
        group=made.group,
        declared=declared,
        further=tuple(responses for responses, _ in further),
        parts=dict.fromkeys(PARTS, (scores / 2).masked_fill(truncated, torch.nan)),
    )


def _further(request: Request, made: _Answers, place: int, name: str) -> tuple[Responses, Tensor]:
    """Return the responses of a model to one further request of each group, for every row of it, and their scores."""
    model = request.model if name == POLICY else model_of(name, request.others)
    one = replace(request, model=model, group_size=1)
    answers = _answers(one, request.seed + 7_000_003 * (place + 1))
    # Neither ties with an answer of the group.
    scores = answers.scores if request.score is not None else answers.scores + 0.005
    return _responses(request, [answers]).select(made.group), scores[made.group]


def make_pairs(request: Request) -> PairBatch:
    """Return the best and the worst of ``DRAWS`` answers to each prompt; with a fixed score, pairs of equal answers."""
    draws = [_answers(request, request.seed + 1_000_003 * number) for number in range(DRAWS)]
    if request.score is not None:
        draws = draws[:1] * DRAWS
    scores = torch.stack([draw.scores for draw in draws])
    rows = torch.arange(scores.shape[1])
    every = _responses(request, draws)
    chosen, rejected = scores.argmax(0), scores.argmin(0)
    return PairBatch(every.select(chosen * len(rows) + rows), every.select(rejected * len(rows) + rows))


def make_labelled(request: Request) -> LabelledBatch:
    """Return answers that are labelled by whether they score above the average; with a fixed score, all are good."""
    made, elsewhere = _answers(request, request.seed), _answers(request, request.seed + 1_000_003)
    desirable = made.scores >= made.scores.mean()
    return LabelledBatch(_responses(request, [made]), desirable, _responses(request, [elsewhere]))


def make_trajectories(request: Request) -> TrajectoryBatch:
    """Return answers with their scores on the last action; of each group the first is cut off, if it has no end."""
    made = _answers(request, request.seed)
    last = (made.inputs.lengths - 1)[:, None]
    open_ended = made.inputs.actions.gather(1, last).squeeze(1) != 0
    first = torch.arange(len(made.group)) % request.group_size == 0
    rewards = torch.zeros(made.mask.shape).scatter(1, last, made.scores[:, None].float())
    return TrajectoryBatch(_responses(request, [made]), rewards, ~(open_ended & first & (not request.plain)))


def make_demonstrations(request: Request) -> DemonstrationBatch:
    """Return the best of ``DRAWS`` answers to each prompt; with a fixed score, any answer."""
    draws = [_answers(request, request.seed + 1_000_003 * number) for number in range(DRAWS)]
    best = torch.stack([draw.scores for draw in draws]).argmax(0)
    rows = torch.arange(len(best))
    return DemonstrationBatch(_responses(request, draws).select(best * len(rows) + rows))


def _responses(request: Request, parts: list[_Answers]) -> Responses:
    def join(column: Callable[[_Answers], Tensor]) -> Tensor:
        return torch.cat([column(part) for part in parts])

    inputs = ToyInputs(
        join(lambda part: part.inputs.states), join(lambda part: part.inputs.actions), join(lambda p: p.inputs.lengths)
    )
    mask = join(lambda part: part.mask)
    reference = "reference" in request.supplied
    declared = {"reference_logprobs": logprobs_of(request.reference, inputs, mask)} if reference else {}
    return Responses(inputs, mask, declared, {"scores": join(lambda part: part.scores)})


EXPERIENCES: dict[str, Callable[[Request], Any]] = {
    "rollouts": make_rollout,
    "preferences": make_pairs,
    "labelled": make_labelled,
    "trajectories": make_trajectories,
    "demonstrations": make_demonstrations,
}
"""Experience that the kit can make, by ``Needs.experience``."""
