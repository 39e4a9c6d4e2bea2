"""``TextGen-v0``: the state is a prompt and the tokens so far, an action is the next token's id."""

from __future__ import annotations

from typing import Any, Unpack

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from lmrl.envs.checks import check_action, check_logprob, missing_logprob
from lmrl.envs.task import TaskKeywords, make_task
from lmrl.envs.transition import Episodes, reset_message
from lmrl.errors import ResetNeeded

Observation = dict[str, NDArray[Any]]
RENDER_MODES = ("ansi", "human")


class TextGenEnv(gym.Env[Observation, int]):
    """Text generation as a Gymnasium environment. The keywords are those of ``lmrl.envs.task.make_task``.

    Observation: ``input_ids`` int64 (L,), ``attention_mask`` int8 (L,), ``prompt_length`` int64 (1,), right-padded
    with 0, and ``action_mask`` int8 (V,) on request. Action: a bare token id. Reward: the score of the response at the
    episode's end, minus ``beta (log pi - log pi_ref)`` at every step if ``beta > 0``. What ``docs/environment.md``
    says of flags, infos and errors holds for this class and for ``TextGenVectorEnv``.

    ``render_mode`` "ansi" makes ``render`` return the text so far, "human" prints it; any other one renders nothing.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012 (Gymnasium's own form)
    """Render modes, as Gymnasium reads them."""

    def __init__(self, *, render_mode: str | None = None, **keywords: Unpack[TaskKeywords]) -> None:
        self.task = make_task(**keywords)
        # Stable-Baselines3 asks every environment for rgb_array; what cannot be shown is simply not shown.
        self.render_mode = render_mode if render_mode in RENDER_MODES else None
        self.observation_space = self.task.observation_space()  # type: ignore[assignment]
        self.action_space = self.task.action_space()  # type: ignore[assignment]
        self._episodes = Episodes(self.task, rows=1)
        self._logprob: NDArray[np.float64] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode with a prompt drawn uniformly, or the one that ``options`` name.

        ``options``: ``{"prompt_index": i}`` or ``{"prompt": text, ids or mapping}``. Raises ``PromptError`` for a
        prompt that cannot be used, and leaves the running episode as it was.
        """
        chosen = self.task.chosen_prompt(options)
        super().reset(seed=seed)
        if chosen is None:
            index = int(self.np_random.integers(len(self.task.prompts)))
            chosen = index, self.task.prompts[index]
        self._episodes.begin(0, *chosen)
        self._logprob = None
        return self._observe(), {"prompt_index": chosen[0], "action_mask": self._action_mask()}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append a token. The info of the last step holds the text, its score and why it ended.

        Raises ``ResetNeeded``, ``InvalidAction``, ``MissingActionLogprob``, ``RewardError`` or ``NonFiniteError``; the
        episode is then unchanged, a pushed log-probability included.
        """
        if not self._episodes.running[0]:
            raise ResetNeeded(reset_message([0], 1))
        token = check_action(action, self.task)
        if self.task.beta > 0 and self._logprob is None:
            raise missing_logprob(self.task.beta)
        outcome = self._episodes.step(np.array([token]), np.ones(1, dtype=np.bool_), self._logprob)
        self._logprob = None
        info: dict[str, Any] = {"action_mask": self._action_mask()}
        if outcome.reference_logprobs is not None:
            info["ref_logprob"] = float(outcome.reference_logprobs[0])
        info |= outcome.final_infos.get(0, {})
        terminated, truncated = bool(outcome.terminated[0]), bool(outcome.truncated[0])
        if self.render_mode == "human" and (terminated or truncated):
            self.render()
        return self._observe(), float(outcome.rewards[0]), terminated, truncated, info

    def set_action_logprob(self, logprob: float | None) -> None:
        """Set the policy's log-probability of the action of the next step, log pi(a_t | s_t), in nats.

        One step uses it, ``reset`` clears it, and None withdraws it. Set it before each step if ``beta > 0``; otherwise
        it has no effect. Raises ``InvalidAction`` for a number that is not finite or above 0.
        """
        self._logprob = None if logprob is None else check_logprob(logprob)

    @property
    def has_action_logprob(self) -> bool:
        """True if a log-probability waits for the next step."""
        return self._logprob is not None

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which tokens may be chosen, bool (V,): what sb3-contrib's MaskablePPO asks for."""
        return self.task.allowed.copy()

    def render(self) -> str | None:
        """Return the prompt and the response so far ("ansi"), or print them ("human")."""
        prompt = self._episodes.prompts[0]
        if self.render_mode is None or prompt is None:
            return None
        text = prompt.text + self._episodes.responses([0])[0]
        if self.render_mode == "human":
            print(text)
            return None
        return text

    def _observe(self) -> Observation:
        return {name: values[0] for name, values in self._episodes.observe().items()}

    def _action_mask(self) -> NDArray[np.int8]:
        return self.task.allowed.astype(np.int8)
