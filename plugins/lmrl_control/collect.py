"""Episodes of several copies of a Gymnasium task, as the ``Rollout`` that optimizers know from text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmrl.algorithms import Rollout, lengths_to_mask
from lmrl_control.policy import ActorCritic, ObservationInputs, draw_actions


@dataclass
class Piece:
    """An episode, or as much of it as was played in one update; ``after`` is the observation behind its last action."""

    observations: list[Any] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    after: Any = None


class Collector:
    """Plays ``count`` copies of a task; an episode that an update does not finish goes on in the next one."""

    def __init__(self, environments: Sequence[Any], seed: int) -> None:
        self.environments = list(environments)
        self.generator = torch.Generator().manual_seed(seed)
        self.current = [env.reset(seed=seed + place)[0] for place, env in enumerate(self.environments)]
        self.running = [0.0] * len(self.environments)
        self.returns: list[float] = []
        """Returns of the episodes that have ended."""

    def collect(self, module: ActorCritic, steps: int) -> list[Piece]:
        """Play ``steps`` steps of every copy."""
        done: list[Piece] = []
        open_pieces = [Piece() for _ in self.environments]
        for _ in range(steps):
            states = torch.as_tensor(np.stack(self.current), dtype=torch.float32)
            actions, logprobs = draw_actions(module, states, self.generator)
            for place, (action, logprob) in enumerate(zip(actions.tolist(), logprobs.tolist(), strict=True)):
                piece = open_pieces[place]
                piece.observations.append(self.current[place])
                piece.actions.append(action)
                piece.logprobs.append(logprob)
                observation, reward, terminated, truncated, _ = self.environments[place].step(action)
                piece.rewards.append(float(reward))
                self.running[place] += float(reward)
                if terminated or truncated:
                    piece.terminated, piece.after = bool(terminated), observation
                    done.append(piece)
                    open_pieces[place] = Piece()
                    self.returns.append(self.running[place])
                    self.running[place] = 0.0
                    observation = self.environments[place].reset()[0]
                self.current[place] = observation
        for place, piece in enumerate(open_pieces):
            if piece.actions:
                piece.after = self.current[place]
                done.append(piece)
        return done


def make_rollout(module: ActorCritic, pieces: Sequence[Piece], with_values: bool) -> Rollout:
    """Return pieces as rows. What did not terminate is truncated: its value is bootstrapped."""
    lengths = torch.tensor([len(piece.actions) for piece in pieces])
    width = int(lengths.max())
    mask = lengths_to_mask(lengths, width)
    observations = _padded([torch.as_tensor(np.stack(piece.observations)) for piece in pieces], width).float()
    rewards = _padded([torch.tensor(piece.rewards) for piece in pieces], width)
    declared: dict[str, Tensor] = {}
    if with_values:
        with torch.no_grad():
            after = torch.as_tensor(np.stack([piece.after for piece in pieces]), dtype=torch.float32)
            declared = {
                "values": module.values(observations).masked_fill(~mask, 0),
                "bootstrap_values": module.values(after),
            }
    terminated = torch.tensor([piece.terminated for piece in pieces])
    actions = _padded([torch.tensor(piece.actions) for piece in pieces], width)
    return Rollout(
        inputs=ObservationInputs(observations, actions, lengths),
        action_mask=mask,
        sampler_logprobs=_padded([torch.tensor(piece.logprobs) for piece in pieces], width),
        rewards=rewards,
        scores=rewards.sum(1),
        terminated=terminated,
        truncated=~terminated,
        group=torch.arange(len(pieces)),
        declared=declared,
        scored=torch.ones_like(terminated),  # every step has its reward, also where the episode was cut
    )


def _padded(rows: Sequence[Tensor], width: int) -> Tensor:
    table = rows[0].new_zeros(len(rows), width, *rows[0].shape[1:])
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table
