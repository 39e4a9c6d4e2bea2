"""Checks of what a caller hands to ``step``, before anything changes."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrl.envs.task import Task
from lmrl.errors import InvalidAction, MissingActionLogprob

LOGPROB_SLACK = 1e-5
"""Largest log-probability above 0 that is accepted: float32 log-softmax rounds."""


def check_action(action: Any, task: Task) -> int:
    """Return the token id that one action is, or raise ``InvalidAction``."""
    shape = getattr(action, "shape", ())
    kind = getattr(action, "dtype", None)
    if isinstance(action, bool) or (kind is not None and "bool" in str(kind)) or len(shape):
        raise InvalidAction(_not_a_token(action, task))
    try:
        token = operator.index(action)
    except TypeError:
        raise InvalidAction(_not_a_token(action, task)) from None
    _check_tokens(np.array([token], dtype=object if abs(token) > 2**62 else np.int64), task)
    return token


def check_actions(actions: Any, stepping: NDArray[np.bool_], task: Task) -> NDArray[np.int64]:
    """Return the token ids of N actions, 0 in rows that do not step, or raise ``InvalidAction``.

    Rows that are about to be reset ignore their action, so any integer will do there.
    """
    count = len(stepping)
    expected = f"expected {count} token ids, an integer array of shape ({count},)"
    if hasattr(actions, "detach"):
        actions = actions.detach().cpu().numpy()
    try:
        array = np.asarray(actions)
    except ValueError:
        raise InvalidAction(f"actions is {actions!r}; {expected}") from None
    if array.shape != (count,):
        raise InvalidAction(f"actions has the shape {array.shape}; {expected}")
    if not np.issubdtype(array.dtype, np.integer):
        raise InvalidAction(f"actions has the type {array.dtype}; {expected}")
    _check_tokens(array, task, stepping)
    return np.where(stepping, array, 0).astype(np.int64)


def check_logprobs(logprobs: Any, stepping: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return N log-probabilities as float64, or raise ``InvalidAction`` for what cannot be the policy's."""
    if hasattr(logprobs, "detach"):
        logprobs = logprobs.detach().cpu().double().numpy()
    try:
        array = np.asarray(logprobs, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidAction(f"the action's log-probability is {logprobs!r}; expected numbers") from None
    if array.shape != stepping.shape:
        raise InvalidAction(f"action log-probabilities have the shape {array.shape}; expected {stepping.shape}")
    wrong = stepping & ~(np.isfinite(array) & (array <= LOGPROB_SLACK))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InvalidAction(
            f"the action's log-probability in row {row} is {array[row]}; expected a finite number of at most 0: the "
            "natural logarithm of the probability that the policy drew the action with"
        )
    return array.copy()


def check_logprob(logprob: Any) -> NDArray[np.float64]:
    """Return one log-probability as a float64 array of length 1; see ``check_logprobs``."""
    try:
        number = float(logprob)
    except (TypeError, ValueError):
        raise InvalidAction(f"the action's log-probability is {logprob!r}; expected a number") from None
    if not math.isfinite(number) or number > LOGPROB_SLACK:
        raise InvalidAction(
            f"the action's log-probability is {number}; expected a finite number of at most 0: the natural logarithm "
            "of the probability that the policy drew the action with"
        )
    return np.array([number])


def missing_logprob(beta: float) -> MissingActionLogprob:
    """Return the error of a step with ``beta > 0`` that nobody told the policy's log-probability."""
    return MissingActionLogprob(
        f"beta is {beta}, so the reward needs the log-probability with which the policy chose the action, and no "
        "environment can know it. Call env.unwrapped.set_action_logprob(...) before each step, or wrap the "
        "environment with lmrl.envs.KLShaping(env, policy), or use beta=0 and let the trainer shape the reward."
    )


def _check_tokens(tokens: NDArray[Any], task: Task, stepping: NDArray[np.bool_] | None = None) -> None:
    wrong = (tokens < 0) | (tokens >= task.card.vocab_size)
    if stepping is not None:
        wrong = wrong & stepping
    if wrong.any():
        token = tokens[np.flatnonzero(wrong)[0]]
        raise InvalidAction(f"action {token} is out of range; expected a token id from 0 to {task.card.vocab_size - 1}")
    if not task.spec.forbidden_ids:
        return
    forbidden = ~task.allowed[tokens if stepping is None else np.where(stepping, tokens, 0)]
    if stepping is not None:
        forbidden &= stepping
    if forbidden.any():
        token = tokens[np.flatnonzero(forbidden)[0]]
        raise InvalidAction(f"action {token} is forbidden (forbidden_tokens); action_masks() says which tokens are not")


def _not_a_token(action: Any, task: Task) -> str:
    return (
        f"action is {action!r} ({type(action).__name__}); expected a bare token id, an integer from 0 to "
        f"{task.card.vocab_size - 1}"
    )
