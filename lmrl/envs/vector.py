"""Text generation environments side by side: one numpy transition, reference pass and reward call per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from lmrl.envs.checks import check_actions, check_logprobs, missing_logprob
from lmrl.envs.prompts import Prompt
from lmrl.envs.task import TaskKeywords, make_task
from lmrl.envs.text_generation import RENDER_MODES
from lmrl.envs.transition import Episodes, StepOutcome, reset_message
from lmrl.errors import PromptError, ResetNeeded, SettingsError, unknown

try:
    from gymnasium.vector import AutoresetMode
except ImportError:  # Gymnasium 1.0
    from enum import Enum

    class AutoresetMode(Enum):  # type: ignore[no-redef]
        """Action after the end of an episode: reset with the next step, with the same one, or not at all."""

        NEXT_STEP = "NextStep"
        SAME_STEP = "SameStep"
        DISABLED = "Disabled"


Observations = dict[str, NDArray[Any]]
Flags = NDArray[np.bool_]
Step = tuple[Observations, NDArray[np.float64], Flags, Flags, dict[str, Any]]


class TextGenVectorEnv(VectorEnv[Observations, Any, NDArray[Any]]):
    """N text generation environments; the keywords are those of ``TextGenEnv`` and these.

    ``autoreset_mode``: "NextStep" (default), "SameStep" or "Disabled", or Gymnasium's ``AutoresetMode``.
    ``max_episode_steps``: cut every episode off after so many steps, as Gymnasium's ``TimeLimit`` does: truncated and
    not scored.

    Same seeds and actions give the trajectories that ``SyncVectorEnv`` gives, reference log-probabilities within float
    rounding. Rewards are float64 (N,), flags bool (N,), infos Gymnasium's dict of arrays with ``_key`` masks.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012 (Gymnasium's own form)
    """Render modes and the autoreset mode, as Gymnasium reads them."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **keywords: Unpack[TaskKeywords],
    ) -> None:
        self.num_envs = _positive("num_envs", num_envs)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        unlimited = max_episode_steps is None or max_episode_steps == -1  # -1 as in gymnasium.make
        self.max_episode_steps = None if unlimited else _positive("max_episode_steps", max_episode_steps)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode if render_mode in RENDER_MODES else None
        self.task = make_task(**keywords)
        self.single_observation_space = self.task.observation_space()
        self.single_action_space = self.task.action_space()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._episodes = Episodes(self.task, self.num_envs)
        self._elapsed = np.zeros(self.num_envs, dtype=np.int64)
        self._done = np.zeros(self.num_envs, dtype=np.bool_)
        self._logprobs: NDArray[np.float64] | None = None
        self._generators: list[np.random.Generator | None] = [None] * self.num_envs
        self._seeds: list[int] = [-1] * self.num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start new episodes in all rows, or in those of ``options["reset_mask"]``, a bool array (N,).

        ``seed``: an int s seeds row i with s + i; a list names each row's; None goes on with the generators there are.
        ``options["prompt_index"]`` may be an int for all rows or N of them, ``options["prompt"]`` is for all rows.
        """
        seeds = self._checked_seeds(seed)
        mask = self._reset_mask(options)
        chosen = self._chosen(options, mask)
        unstarted = ~mask & np.array([prompt is None for prompt in self._episodes.prompts])
        if unstarted.any():
            raise ResetNeeded(f"the rows {np.flatnonzero(unstarted).tolist()} were never reset; reset all rows first")
        for row in np.flatnonzero(mask).tolist():
            if seeds[row] is not None:
                self._generators[row], self._seeds[row] = seeding.np_random(seeds[row])
        self._begin(mask, chosen)
        self._logprobs = None
        infos: dict[str, Any] = {}
        self._add_prompt_index(infos, mask)
        self._add_action_mask(infos, mask)
        return self._episodes.observe(), infos

    def step(self, actions: Any) -> Step:
        """Append a token to every row. All actions are checked before anything changes.

        Raises ``ResetNeeded``, ``InvalidAction``, ``MissingActionLogprob``, ``RewardError`` or ``NonFiniteError``; all
        episodes are then unchanged, pushed log-probabilities included.
        """
        resetting = self._done if self.autoreset_mode == AutoresetMode.NEXT_STEP else np.zeros_like(self._done)
        stepping = ~resetting
        ended = stepping & (self._done | ~self._episodes.running)
        if ended.any():
            raise ResetNeeded(reset_message(np.flatnonzero(ended).tolist(), self.num_envs))
        tokens = check_actions(actions, stepping, self.task)
        if self.task.beta > 0 and self._logprobs is None and stepping.any():
            raise missing_logprob(self.task.beta)
        outcome = self._episodes.step(tokens, stepping, self._logprobs)
        self._logprobs = None
        self._elapsed += stepping
        truncated = outcome.truncated
        if self.max_episode_steps is not None:
            truncated = truncated | (stepping & (self._elapsed >= self.max_episode_steps))
        self._done = outcome.terminated | truncated
        if self.render_mode == "human" and self._done.any():
            self.render()
        observation, infos = self._answer(outcome, stepping, resetting)
        return observation, outcome.rewards, outcome.terminated, truncated, infos

    def set_action_logprob(self, logprobs: Any) -> None:
        """Set the policy's log-probabilities of the actions of the next step, log pi(a_t | s_t), (N,), in nats.

        One step uses them, ``reset`` clears them, and None withdraws them. Numbers of sub-environments that are about
        to be reset are ignored. Raises ``InvalidAction`` for a wrong shape and for numbers that are not finite or above
        0.
        """
        ignored = self._done if self.autoreset_mode == AutoresetMode.NEXT_STEP else np.zeros_like(self._done)
        self._logprobs = None if logprobs is None else check_logprobs(logprobs, ~ignored)

    @property
    def has_action_logprob(self) -> bool:
        """True if log-probabilities wait for the next step."""
        return self._logprobs is not None

    def action_masks(self) -> Flags:
        """Return which tokens may be chosen, bool (N, V)."""
        return self._episodes.action_masks()

    def render(self) -> tuple[Any, ...] | None:
        """Return each row's prompt and response so far ("ansi"), or print them ("human")."""
        if self.render_mode is None or any(prompt is None for prompt in self._episodes.prompts):
            return None
        responses = self._episodes.responses(list(range(self.num_envs)))
        prompts = [prompt.text for prompt in self._episodes.prompts if prompt is not None]
        texts = tuple(prompt + response for prompt, response in zip(prompts, responses, strict=True))
        if self.render_mode == "human":
            print("\n".join(texts))
            return None
        return texts

    @property  # type: ignore[override]
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """The rows' random number generators."""
        return tuple(self._generator(row) for row in range(self.num_envs))

    @np_random.setter  # type: ignore[override]
    def np_random(self, value: Sequence[np.random.Generator]) -> None:
        if len(value) != self.num_envs:
            raise SettingsError(f"np_random has {len(value)} generators; expected {self.num_envs}, one per row")
        self._generators = list(value)
        self._seeds = [-1] * self.num_envs

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The rows' seeds; -1 where a generator was set by hand."""
        return tuple(self._seeds[row] for row in range(self.num_envs) if self._generator(row) is not None)

    def _answer(self, outcome: StepOutcome, stepping: Flags, resetting: Flags) -> tuple[Observations, dict[str, Any]]:
        """Autoreset what has to be, and return the observations and infos of a step."""
        infos: dict[str, Any] = {}
        going_on = stepping
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            resetting, going_on = self._done.copy(), ~self._done
            self._add_final(infos, outcome, np.flatnonzero(resetting).tolist())
        if resetting.any():
            self._begin(resetting, None)
            self._add_prompt_index(infos, resetting)
        if outcome.reference_logprobs is not None and going_on.any():
            infos["ref_logprob"] = np.where(going_on, outcome.reference_logprobs, 0.0)
            infos["_ref_logprob"] = going_on.copy()
        self._add_action_mask(infos, np.ones(self.num_envs, dtype=np.bool_))
        for row, info in outcome.final_infos.items():
            if going_on[row]:
                self._add_info(infos, info, row)
        return self._episodes.observe(), infos

    def _add_final(self, infos: dict[str, Any], outcome: StepOutcome, rows: list[int]) -> None:
        """Add what single environments would have returned for their last step."""
        if not rows:
            return
        observation = self._episodes.observe()
        for row in rows:
            info: dict[str, Any] = {"action_mask": self.task.allowed.astype(np.int8)}
            if outcome.reference_logprobs is not None:
                info["ref_logprob"] = float(outcome.reference_logprobs[row])
            final_obs = {name: values[row].copy() for name, values in observation.items()}
            final_info = info | outcome.final_infos.get(row, {})
            self._add_info(infos, {"final_obs": final_obs, "final_info": final_info}, row)

    def _add_prompt_index(self, infos: dict[str, Any], mask: Flags) -> None:
        infos["prompt_index"] = np.where(mask, self._episodes.prompt_index, 0)
        infos["_prompt_index"] = mask.copy()

    def _add_action_mask(self, infos: dict[str, Any], mask: Flags) -> None:
        infos["action_mask"] = mask[:, None].astype(np.int8) * self.task.allowed.astype(np.int8)
        infos["_action_mask"] = mask

    def _begin(self, mask: Flags, chosen: list[tuple[int, Prompt]] | None) -> None:
        for row in np.flatnonzero(mask).tolist():
            if chosen is None:
                index = int(self._generator(row).integers(len(self.task.prompts)))
                self._episodes.begin(row, index, self.task.prompts[index])
            else:
                self._episodes.begin(row, *chosen[row])
        self._elapsed[mask] = 0
        self._done = self._done & ~mask

    def _generator(self, row: int) -> np.random.Generator:
        generator = self._generators[row]
        if generator is None:
            generator, self._seeds[row] = seeding.np_random()
            self._generators[row] = generator
        return generator

    def _checked_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
            return [int(seed) + row for row in range(self.num_envs)]
        if isinstance(seed, str | bool) or not isinstance(seed, Sequence | np.ndarray) or len(seed) != self.num_envs:
            raise SettingsError(
                f"seed is {seed!r}; expected an int, None, or a list of {self.num_envs} ints or None, one per row"
            )
        return [None if row_seed is None else int(row_seed) for row_seed in seed]

    def _reset_mask(self, options: Mapping[str, Any] | None) -> Flags:
        if options is None or "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask = options["reset_mask"]
        right_kind = isinstance(mask, np.ndarray) and mask.shape == (self.num_envs,) and mask.dtype == np.bool_
        if not right_kind or not mask.any():
            raise SettingsError(
                f"options['reset_mask'] is {mask!r}; expected a numpy bool array of shape ({self.num_envs},) with at "
                "least one True"
            )
        copied: Flags = mask.copy()
        return copied

    def _chosen(self, options: Mapping[str, Any] | None, mask: Flags) -> list[tuple[int, Prompt]] | None:
        index = options.get("prompt_index") if isinstance(options, Mapping) else None
        if options is not None and isinstance(index, Sequence | np.ndarray) and not isinstance(index, str):
            if len(index) != self.num_envs:
                raise PromptError(f"prompt_index has {len(index)} entries; expected {self.num_envs}, one per row")
            rows = [self.task.chosen_prompt({**options, "prompt_index": one}) for one in index]
            return [row for row in rows if row is not None]
        chosen = self.task.chosen_prompt(options)
        return None if chosen is None else [chosen] * self.num_envs


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise SettingsError(f"{name} is {value!r}; expected an integer of at least 1")
    return int(value)


def _autoreset_mode(mode: Any) -> AutoresetMode:
    """Return the mode that a string or an ``AutoresetMode`` names, or raise ``SettingsError``."""
    for known in AutoresetMode:
        if mode in (known, known.value, known.name):
            return known
    raise SettingsError(unknown("autoreset_mode", str(mode), [known.value for known in AutoresetMode]))
