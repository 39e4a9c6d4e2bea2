"""Environment steps with a policy that does nothing: ``TextGen-v0``, one and many, against empty environments.

``SyncVectorEnv`` over empty environments is what Gymnasium itself costs for these spaces; a native vector environment
that returns the same arrays at every step is a lower bound that nothing can reach. The reference inside the environment
is measured with its cache and with every prefix read anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv

from lmrl_suites.throughput.nothing import NothingEnv, NothingVectorEnv
from lmrl_suites.throughput.setting import Cell
from lmrl_suites.throughput.stage import Stage
from lmrl_suites.throughput.timing import Comparison, SuiteRun, compare

OVERHEAD = "SyncVectorEnv of empty ones"
EMPTY = "empty"
REENCODING = "every prefix anew"


def measure(stage: Stage, cell: Cell) -> Iterator[Comparison]:
    """Compare steps per second, resets included; a vector step counts once per row that took an action."""
    import lmrl  # noqa: F401 (registers the environment)

    rows = cell.rows
    steps = 64 if stage.settings.smoke else 1024
    keywords = _keywords(stage)
    task = gym.make("TextGen-v0", **keywords, reference=False).unwrapped.task  # type: ignore[attr-defined]
    spaces = {"observation_space": task.observation_space(), "action_space": task.action_space()}
    empty = {**spaces, "episode": stage.settings.new_tokens}
    single = {
        "lmrl": gym.make("TextGen-v0", **keywords, reference=False),
        EMPTY: gym.Wrapper(NothingEnv(**empty)),
    }
    yield compare(
        "steps", {name: _single_run(env, 4 * steps) for name, env in single.items()}, stage.settings.rounds, EMPTY,
        variant="one",
    )  # fmt: skip
    many = {
        "lmrl": _vector(rows, {**keywords, "reference": False}),
        OVERHEAD: SyncVectorEnv([lambda: NothingEnv(**empty)] * rows),
        f"{EMPTY}, native": NothingVectorEnv(rows, **empty),
    }
    yield compare(
        "steps", {name: _vector_run(env, rows, steps) for name, env in many.items()}, stage.settings.rounds, OVERHEAD,
        variant=f"{rows} side by side",
    )  # fmt: skip
    referenced = {"lmrl": _vector(rows, keywords), REENCODING: _vector(rows, keywords)}
    referenced[REENCODING].unwrapped.task.reference.cache_works = False
    # Whole episodes, because reading a prefix anew costs the more, the longer it is.
    steps = stage.settings.new_tokens
    yield compare(
        "steps", {name: _vector_run(env, rows, steps) for name, env in referenced.items()}, stage.settings.rounds,
        REENCODING, variant=f"{rows} side by side, with the reference",
    )  # fmt: skip


def _keywords(stage: Stage) -> dict[str, Any]:
    return {
        "model": str(stage.folder),
        "prompts": stage.texts(8),
        "reward": _no_reward,
        "max_new_tokens": stage.settings.new_tokens,
    }


def _no_reward(prompts: list[str], responses: list[str]) -> list[float]:
    return [0.0] * len(responses)


def _vector(rows: int, keywords: dict[str, Any]) -> Any:
    return gym.make_vec("TextGen-v0", num_envs=rows, vectorization_mode="vector_entry_point", **keywords)


def _single_run(env: Any, steps: int) -> SuiteRun:
    def run(number: int) -> int:
        env.reset(seed=0)
        for _ in range(steps):
            _, _, terminated, truncated, _ = env.step(1)  # an id that ends nothing
            if terminated or truncated:
                env.reset()
        return steps

    return run


def _vector_run(env: Any, rows: int, steps: int) -> SuiteRun:
    def run(number: int) -> int:
        actions = np.ones(rows, dtype=np.int64)
        env.reset(seed=0)
        done = np.zeros(rows, dtype=np.bool_)
        taken = 0
        for _ in range(steps):
            taken += rows - int(done.sum())
            _, _, terminated, truncated, _ = env.step(actions)
            done = terminated | truncated
        return taken

    return run
