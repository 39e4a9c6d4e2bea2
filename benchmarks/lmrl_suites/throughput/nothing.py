"""Environments that do nothing: the spaces and the episode length of a text environment, and no more."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array


class NothingEnv(gym.Env[Any, int]):
    """Answers every step with a copy of one observation."""

    def __init__(self, observation_space: gym.Space[Any], action_space: gym.Space[Any], episode: int) -> None:
        self.observation_space, self.action_space, self.episode = observation_space, action_space, episode
        self.observation = observation_space.sample()
        self.elapsed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start again."""
        super().reset(seed=seed)
        self.elapsed = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Count."""
        self.elapsed += 1
        return self._observe(), 0.0, self.elapsed >= self.episode, False, {}

    def _observe(self) -> dict[str, Any]:
        return {name: values.copy() for name, values in self.observation.items()}


class NothingVectorEnv(VectorEnv[Any, Any, Any]):
    """The same for many rows at once: every step returns the arrays that were made at the start."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self, num_envs: int, observation_space: gym.Space[Any], action_space: gym.Space[Any], episode: int
    ) -> None:
        self.num_envs, self.episode = num_envs, episode
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.observation = create_empty_array(observation_space, num_envs)
        self.rewards = np.zeros(num_envs)
        self.going, self.ended = np.zeros(num_envs, dtype=np.bool_), np.ones(num_envs, dtype=np.bool_)
        self.elapsed = 0

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start again."""
        self.elapsed = 0
        return self.observation, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Count; the step after an episode's end starts the next one."""
        self.elapsed = 0 if self.elapsed == self.episode else self.elapsed + 1
        flags = self.ended if self.elapsed == self.episode else self.going
        return self.observation, self.rewards, flags, self.going, {}
