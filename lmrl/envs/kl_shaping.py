"""A wrapper that tells the environment the policy's log-probability of every action."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.vector import VectorEnv, VectorWrapper

from lmrl.errors import SettingsError

if TYPE_CHECKING:
    _VectorWrapper = VectorWrapper[Any, Any, Any, Any, Any]
else:
    _VectorWrapper = VectorWrapper  # not generic in every Gymnasium 1.x

ActionLogprob = Callable[[Any, Any], Any]
"""``(observation, action) -> log pi(action | observation)``: a float, or an array (N,) for N environments."""


class KLShaping(gym.Wrapper[Any, Any, Any, Any]):
    """Makes ``beta > 0`` work without a push before each step: ``KLShaping(env, policy)``.

    ``policy(observation, action)`` returns the log-probability, in nats, with which the policy chose the action in the
    state that the observation shows: it must be that of the distribution that the action was drawn from. ``beta`` and
    the reference are the environment's own. A vector environment gets the wrapper of its kind, with batched
    observations, actions (N,) and log-probabilities (N,).

    Raises ``SettingsError`` if the environment takes no log-probability, or if one was pushed as well.
    """

    def __new__(cls, env: Any, policy: ActionLogprob) -> Any:  # noqa: D102
        if isinstance(env, VectorEnv):
            return VectorKLShaping(env, policy)
        return super().__new__(cls)

    def __init__(self, env: gym.Env[Any, Any], policy: ActionLogprob) -> None:
        _check(env, policy)
        super().__init__(env)
        self.policy = policy
        self._observation: Any = None

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.env, self.policy)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        self._observation, info = self.env.reset(seed=seed, options=options)
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Push the policy's log-probability of ``action``, then step."""
        result: tuple[Any, Any, bool, bool, dict[str, Any]] = _pushed_step(
            self.env, self.policy, self._observation, action
        )
        self._observation = result[0]
        return result


class VectorKLShaping(_VectorWrapper):
    """Form of ``KLShaping`` for a ``TextGenVectorEnv``. Rows that are about to be reset ignore the policy's
    log-probabilities.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], policy: ActionLogprob) -> None:
        _check(env, policy)
        super().__init__(env)
        self.policy = policy
        self._latest: Any = None

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environments."""
        self._latest, info = self.env.reset(seed=seed, options=options)
        return self._latest, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Push the policy's log-probabilities of ``actions``, then step."""
        result: tuple[Any, Any, Any, Any, dict[str, Any]] = _pushed_step(self.env, self.policy, self._latest, actions)
        self._latest = result[0]
        return result


def _check(env: Any, policy: Any) -> None:
    if not hasattr(env.unwrapped, "set_action_logprob"):
        raise SettingsError(
            f"KLShaping wraps TextGenEnv or TextGenVectorEnv, but found {type(env.unwrapped).__name__}; in a "
            "SyncVectorEnv or AsyncVectorEnv wrap each environment by itself"
        )
    layer = env
    while layer is not env.unwrapped:
        if isinstance(layer, KLShaping | VectorKLShaping):
            raise SettingsError("the environment is wrapped with KLShaping already; one is enough")
        layer = layer.env
    if not callable(policy):
        raise SettingsError(
            f"policy is a {type(policy).__name__}; expected a callable (observation, action) -> log-probability"
        )


def _pushed_step(env: Any, policy: ActionLogprob, observation: Any, action: Any) -> Any:
    base = env.unwrapped
    if base.has_action_logprob:
        raise SettingsError(
            "a log-probability was pushed, and KLShaping pushes one too; do one or the other. "
            "set_action_logprob(None) takes the push back"
        )
    if observation is None:
        return env.step(action)  # never reset: the environment says so
    base.set_action_logprob(policy(observation, action))
    try:
        return env.step(action)
    finally:
        base.set_action_logprob(None)  # a step that failed must not leave it behind for another action
