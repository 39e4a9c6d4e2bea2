"""The transition, written once for B episodes side by side: append, finish, mask, score.

A step computes everything first and changes the episodes last, so whatever raises leaves them as they were.
Leaves out random numbers, autoreset and the shapes in which Gymnasium wants its answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrl.algorithms.kl import shaping_term
from lmrl.engines.protocol import FinishReason, finish_codes, finish_flags
from lmrl.envs.prompts import Prompt
from lmrl.envs.reference import Reference
from lmrl.envs.task import Task
from lmrl.errors import ResetNeeded, RewardError
from lmrl.rewards import RewardResult
from lmrl.rewards.binding import sampled_columns
from lmrl.text.card import contains_stop, response_texts

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class StepOutcome:
    """Result of a step: ``rewards`` float64 (B,), flags bool (B,), 0 and false in rows that did not step.

    ``reference_logprobs`` float64 (B,) exists if there is a reference; ``final_infos`` holds, for each row that ended,
    what is only known at the end.
    """

    rewards: Numbers
    terminated: Flags
    truncated: Flags
    reference_logprobs: Numbers | None
    final_infos: dict[int, dict[str, Any]] = field(default_factory=dict)


class Episodes:
    """B episodes: ``tokens`` int64 (B, L) padded with 0, their ``lengths`` and ``prompt_lengths`` int64 (B,)."""

    def __init__(self, task: Task, rows: int) -> None:
        length = task.observation_length
        self.task = task
        self.rows = rows
        self.tokens = np.zeros((rows, length), dtype=np.int64)
        self.attention = np.zeros((rows, length), dtype=np.int8)
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.prompt_lengths = np.zeros(rows, dtype=np.int64)
        self.running = np.zeros(rows, dtype=np.bool_)
        self.prompts: list[Prompt | None] = [None] * rows
        self.prompt_index = np.full(rows, -1, dtype=np.int64)
        self.reference = (
            Reference(task.reference, task.spec.temperature, rows, length) if task.reference is not None else None
        )

    def begin(self, row: int, index: int, prompt: Prompt) -> None:
        """Start an episode in this row; ``index`` is the prompt's place in the list, -1 if it is not from there."""
        count = len(prompt.ids)
        self.tokens[row] = 0
        self.tokens[row, :count] = prompt.ids
        self.attention[row] = 0
        self.attention[row, :count] = 1
        self.lengths[row] = self.prompt_lengths[row] = count
        self.prompts[row] = prompt
        self.prompt_index[row] = index
        self.running[row] = True
        if self.reference is not None:
            self.reference.begin(row)

    def observe(self) -> dict[str, NDArray[Any]]:
        """Return the observations of all rows, as new arrays."""
        observation: dict[str, NDArray[Any]] = {
            "attention_mask": self.attention.copy(),
            "input_ids": self.tokens.copy(),
            "prompt_length": self.prompt_lengths[:, None].copy(),
        }
        if self.task.observe_action_mask:
            observation = {"action_mask": self.action_masks().astype(np.int8), **observation}
        return observation

    def action_masks(self) -> Flags:
        """Return which tokens may be chosen, (B, V), a new array."""
        return np.repeat(self.task.allowed[None, :], self.rows, axis=0)

    def step(self, actions: Ids, stepping: Flags, logprobs: Numbers | None) -> StepOutcome:
        """Append an action to every row of ``stepping``.

        ``actions`` (B,) were checked already, and so was ``logprobs`` (B,), the policy's, which is needed if
        ``beta > 0``. Raises ``ResetNeeded``, ``RewardError`` or ``NonFiniteError`` and then changes nothing.
        """
        task, spec = self.task, self.task.spec
        if (stepping & ~self.running).any():
            raise ResetNeeded(reset_message(np.flatnonzero(stepping & ~self.running).tolist(), self.rows))
        is_eos = task.ends_episode[actions]
        codes = finish_codes(
            is_eos,
            self._stops(actions, stepping & ~is_eos),
            self.lengths + 1 - self.prompt_lengths,
            self.prompt_lengths,
            spec.max_new_tokens,
            spec.context_length,
        )
        terminated, truncated = finish_flags(codes, spec.on_length)
        terminated, truncated = terminated & stepping, truncated & stepping
        reference = None
        if self.reference is not None:
            reference = self.reference.logprobs(self.tokens, self.lengths, actions, stepping)
        rewards = np.zeros(self.rows)
        if task.beta > 0 and reference is not None and logprobs is not None:
            rewards[stepping] = shaping_term(logprobs, reference, task.beta)[stepping]
        final_infos = self._finish(actions, codes, terminated, truncated, rewards)
        rows = np.flatnonzero(stepping)
        self.tokens[rows, self.lengths[rows]] = actions[rows]
        self.attention[rows, self.lengths[rows]] = 1
        self.lengths[rows] += 1
        self.running &= ~(terminated | truncated)
        return StepOutcome(rewards, terminated, truncated, reference, final_infos)

    def responses(self, rows: list[int], actions: Ids | None = None) -> list[str]:
        """Return the response texts of these rows, with ``actions`` appended if given."""
        ids = [self._response(row) + ([] if actions is None else [int(actions[row])]) for row in rows]
        prompts = [self._prompt(row).ids for row in rows]
        return response_texts(self.task.card.codec, prompts, ids, self.task.spec.eos_ids, self.task.spec.stop_strings)

    def _prompt(self, row: int) -> Prompt:
        prompt = self.prompts[row]
        assert prompt is not None
        return prompt

    def _response(self, row: int) -> list[int]:
        response: list[int] = self.tokens[row, self.prompt_lengths[row] : self.lengths[row]].tolist()
        return response

    def _stops(self, actions: Ids, candidates: Flags) -> Flags:
        """Say which rows' texts hold a stop string after the action."""
        hits = np.zeros(self.rows, dtype=np.bool_)
        if self.task.spec.stop_strings:
            for row in np.flatnonzero(candidates).tolist():
                hits[row] = contains_stop(
                    self.task.card.codec,
                    self._prompt(row).ids,
                    [*self._response(row), int(actions[row])],
                    self.task.spec.stop_strings,
                )
        return hits

    def _finish(
        self, actions: Ids, codes: Ids, terminated: Flags, truncated: Flags, rewards: Numbers
    ) -> dict[int, dict[str, Any]]:
        """Score the rows that terminated, add their scores to ``rewards``, and describe every row that ended.

        A row to which the reward gives no score (None) is rewarded with 0; its description says that it is not scored.
        """
        ended: list[int] = np.flatnonzero(terminated | truncated).tolist()
        if not ended:
            return {}
        texts = dict(zip(ended, self.responses(ended, actions), strict=True))
        infos: dict[int, dict[str, Any]] = {}
        for row, text in texts.items():
            infos[row] = {
                "prompt_index": int(self.prompt_index[row]),
                "text": text,
                "prompt": self._prompt(row).text,
                "finish_reason": FinishReason(int(codes[row])).label,
                "new_tokens": int(self.lengths[row] + 1 - self.prompt_lengths[row]),
                "scored": 0,
            }
        asked = [row for row in texts if terminated[row]]
        if asked:
            sampled = [[*self._response(row), int(actions[row])] for row in asked]
            result = self._score(asked, [texts[row] for row in asked], sampled, codes)
            for place, row in enumerate(asked):
                infos[row]["scored"] = int(result.scored[place])
                if result.scored[place]:
                    rewards[row] += result.scores[place]
                    infos[row]["score"] = float(result.scores[place])
                if place in result.tokens:
                    infos[row]["token_rewards"] = tuple(result.tokens[place].tolist())
                parts = {name: float(values[place]) for name, values in result.parts.items()}
                infos[row] |= {f"reward_{name}": part for name, part in parts.items() if not math.isnan(part)}
        return infos

    def _score(self, rows: list[int], texts: list[str], sampled: list[list[int]], codes: Ids) -> RewardResult:
        prompts = [self._prompt(row) for row in rows]
        # A prompt given at reset may have more columns than those of the list.
        names = set(prompts[0].columns).intersection(*(prompt.columns for prompt in prompts))
        columns = {name: [prompt.columns[name] for prompt in prompts] for name in sorted(names)}
        ids = [prompt.ids for prompt in prompts]
        columns |= sampled_columns(self.task.reward, self.task.card.codec, ids, sampled, codes[rows].tolist())
        try:
            result = self.task.reward([prompt.text for prompt in prompts], texts, columns)
        except RewardError as error:
            message = str(error).removesuffix(".")
            raise RewardError(f"{message}. The episode is unchanged: step again, or reset.") from error
        return result


def reset_message(rows: list[int], count: int) -> str:
    """Return what ``ResetNeeded`` says of these rows out of ``count``."""
    where = "" if count == 1 else f" in the rows {rows}"
    return f"step was called before reset, or after the episode's end{where}; call reset first"
