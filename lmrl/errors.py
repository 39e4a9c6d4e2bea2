"""Every exception that lmrl raises on purpose.

Each class is built from one string, because exceptions cross process pipes (``AsyncVectorEnv``, data-parallel workers)
by pickling ``args``. A message says what was found, what was expected and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import gymnasium.error


class LmrlError(Exception):
    """Base class of all exceptions that lmrl raises on purpose."""


class SettingsError(LmrlError, ValueError):
    """A setting is unknown, ill-typed, out of range, or contradicts another one."""


class PluginError(LmrlError):
    """A plugin could not be loaded, or two plugins conflict."""


class UnknownColumn(LmrlError, KeyError):
    """An optimizer read a column that the batch does not have; names those that it has."""

    __str__ = Exception.__str__  # not KeyError's, which quotes the message


class RenamedError(LmrlError, AttributeError):
    """A plugin uses a column or option of an earlier version of lmrl; names those of this version."""


class ConformanceError(LmrlError, AssertionError):
    """A plugin does not keep its contract; lists every check of ``lmrl.testing`` that fails."""


class ModelError(LmrlError, ValueError):
    """A model or tokenizer cannot be loaded, or cannot do what is asked of it."""


class VocabularyError(ModelError, SettingsError):
    """A tokenizer has more ids than the model's embedding table, or two models do not share their token ids."""


class DataError(LmrlError, ValueError):
    """A data file is missing, broken, or of an unknown shape."""


class PromptError(LmrlError, ValueError):
    """A prompt list is empty, a prompt has no tokens, or it leaves no room in the context."""


class InvalidAction(LmrlError, ValueError):
    """An action is not an integer, lies outside the vocabulary, or is forbidden. The episode is unchanged."""


class ResetNeeded(LmrlError, gymnasium.error.ResetNeeded):
    """A call of ``step`` came before ``reset`` or after the episode's end."""


class MissingActionLogprob(LmrlError, RuntimeError):
    """An environment with ``beta > 0`` was not given the policy's log-probability of the action."""


class RewardError(LmrlError, RuntimeError):
    """A reward raised, returned the wrong number of scores, or a score that is not finite."""


class JudgeError(RewardError):
    """A judge that grades responses has spent its budget or cannot be asked. Training up to then can be saved."""


class NonFiniteError(LmrlError, ArithmeticError):
    """A NaN or an infinity in logits, loss, gradient or reward; names the step and the cause."""


class EngineError(LmrlError, RuntimeError):
    """A decode engine did not do what an engine must: it left out a request, or is of another version."""


class WorkerError(LmrlError, RuntimeError):
    """A process that samples died, or raised what is not one of these classes; holds its traceback."""


class AnnotatorError(LmrlError, RuntimeError):
    """A judge or person who ranks answers cannot be asked any more; what they have answered is kept."""


class ResumeError(LmrlError):
    """A run cannot be resumed: no checkpoint, or the data or settings have changed."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Return the option most like ``name``, or the empty string when none is close.

    Of options that are equally like it, the one with the same letters, then the one with the same beginning.
    """
    matches = difflib.get_close_matches(name, list(options), n=5, cutoff=0.5)
    if not matches:
        return ""

    def likeness(option: str) -> tuple[float, bool, bool]:
        ratio = difflib.SequenceMatcher(None, option, name).ratio()
        return ratio, sorted(option) == sorted(name), option[:1] == name[:1]

    return max(matches, key=likeness)


def unknown(kind: str, name: str, options: Iterable[str], advice: str = "") -> str:
    """Return the message for an unknown name.

    It names the nearest option and all options, and ends with ``advice``.

        >>> unknown("optimizer", "pop", ["ppo", "grpo"])
        "unknown optimizer 'pop'; did you mean 'ppo'? Known: grpo, ppo."
    """
    known = sorted(set(options))
    guess = nearest(name, known)
    question = f"; did you mean {guess!r}?" if guess else "."
    listing = f" Known: {', '.join(known)}." if known else " None is known."
    return f"unknown {kind} {name!r}{question}{listing}" + (f" {advice}" if advice else "")
