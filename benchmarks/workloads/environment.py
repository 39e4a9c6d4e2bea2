"""Environment steps: ``TextGen-v0``, one and many side by side, against an environment that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array

from workloads.setting import Setting
from workloads.timing import Comparison, Run, compare

SIDES = 3
NOTHING = "lmrl-benchmark/Nothing-v0"
BASELINE = "does nothing"


class NothingEnv(gym.Env[Any, int]):
    """The spaces and the episode length of a text environment, and a copy of one observation for every state."""

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
    """The same, for many rows: every step returns the arrays that were made at the start."""

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


def measure(setting: Setting, vector: bool, tick: Callable[[], None]) -> Comparison:
    """Compare steps per second, resets included; a vector step counts once per row that took an action."""
    make = _vector if vector else _single
    drive = _drive_vector if vector else _drive_single
    keywords: dict[str, Any] = {
        "model": setting.language_model,
        "prompts": [setting.prompt],
        "reward": lambda prompts, responses: [0.0] * len(responses),
        "max_new_tokens": setting.new_tokens,
    }
    plain = make("lmrl:TextGen-v0", setting, {**keywords, "reference": False})
    referenced = make("lmrl:TextGen-v0", setting, {**keywords, "reference": setting.language_model})
    task = plain.unwrapped.task
    if NOTHING not in gym.registry:
        gym.register(NOTHING, entry_point=NothingEnv, vector_entry_point=NothingVectorEnv)
    spaces = {"observation_space": task.observation_space(), "action_space": task.action_space()}
    nothing = make(NOTHING, setting, {**spaces, "episode": setting.new_tokens})
    action = next(token for token in range(task.card.vocab_size) if not task.ends_episode[token])
    sides: dict[str, Run] = {
        "lmrl": lambda number: drive(plain, setting, action),
        "lmrl with reference": lambda number: drive(referenced, setting, action),
        BASELINE: lambda number: drive(nothing, setting, action),
    }
    name = f"environment, {setting.rows} side by side" if vector else "environment, single"
    return compare(name, "steps", sides, setting.runs, BASELINE, tick)


def _single(name: str, setting: Setting, keywords: dict[str, Any]) -> Any:
    return gym.make(name, **keywords)


def _vector(name: str, setting: Setting, keywords: dict[str, Any]) -> Any:
    return gym.make_vec(name, num_envs=setting.rows, vectorization_mode="vector_entry_point", **keywords)


def _drive_single(env: Any, setting: Setting, action: int) -> int:
    env.reset(seed=0)
    for _ in range(setting.environment_steps):
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return setting.environment_steps


def _drive_vector(env: Any, setting: Setting, action: int) -> int:
    actions = np.full(setting.rows, action)
    env.reset(seed=0)
    done = np.zeros(setting.rows, dtype=np.bool_)
    taken = 0
    while taken < setting.environment_steps * setting.rows // 4:
        taken += setting.rows - int(done.sum())
        _, _, terminated, truncated, _ = env.step(actions)
        done = terminated | truncated
    return taken
