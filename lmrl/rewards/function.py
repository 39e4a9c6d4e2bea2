"""A reward that is ready to be called. Its scores are checked here: B numbers, finite wherever a row has a score."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmrl.errors import RewardError
from lmrl.plugins.specs import Concurrency
from lmrl.rewards.binding import TURNS, Binding, bind
from lmrl.rewards.calling import awaited
from lmrl.rewards.result import RewardResult, Scores, checked, excerpt


@dataclass(frozen=True)
class Member:
    """One reward among those that are summed: ``weight * function(prompts, responses, **columns)``."""

    name: str
    function: Callable[..., Any]
    weight: float = 1.0
    settings: Mapping[str, Any] | None = None
    """Settings that it was built from, by its name or its spec; None for a live callable."""
    concurrency: Concurrency = "none"
    """Its place of calls with some rows of a batch while others are still sampled."""


class RewardFunction:
    """A weighted sum of rewards, called with a batch of texts. Made by ``lmrl.rewards.resolve``.

    It pickles when its members do. A single reward has the parts that it returns itself; of several, each one's
    unweighted score is a part under its name, and what it returned besides is ``<name>_<part>``. None in the place of a
    number means that the reward does not apply to that row: the row's sum leaves the term out, and a row without any
    term is not scored. A list in the place of a number has the reward of each sampled token, or of each turn.
    """

    def __init__(self, members: Sequence[Member], single: bool) -> None:
        self.members = tuple(members)
        self.single = single

    @property
    def name(self) -> str:
        """The reward's name, or the names of all members joined by a plus sign."""
        return " + ".join(member.name for member in self.members)

    @property
    def description(self) -> dict[str, Any] | None:
        """JSON-able: ``{"name", "settings"}``, or ``{"weights", "settings"}``; None if a member is a live callable."""
        if any(member.settings is None for member in self.members):
            return None
        settings = {member.name: dict(member.settings or {}) for member in self.members}
        if self.single:
            return {"name": self.members[0].name, "settings": settings[self.members[0].name]}
        return {"weights": {member.name: member.weight for member in self.members}, "settings": settings}

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The least and the greatest score of rows that every term applies to.

        None unless every member declares its own in an attribute ``bounds``.
        """
        least = greatest = 0.0
        for member in self.members:
            pair = getattr(member.function, "bounds", None)
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                return None
            ends = [member.weight * float(end) for end in pair]
            least, greatest = least + min(ends), greatest + max(ends)
        return least, greatest

    @property
    def concurrency(self) -> Concurrency:
        """Place of calls of all members with some rows of a batch while others are still sampled."""
        said = {member.concurrency for member in self.members}
        if "none" in said:
            return "none"
        return "process" if "process" in said else "thread"

    @functools.cached_property
    def bindings(self) -> tuple[Binding, ...]:
        """Binding of each member's arguments."""
        return tuple(bind(member.name, member.function) for member in self.members)

    @property
    def asks(self) -> frozenset[str]:
        """Names of the sampling's columns (token ids, finish reasons, ...) that a member's parameters name."""
        return frozenset().union(*(binding.asks for binding in self.bindings))

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise ``RewardError`` if the data lack a column that a member needs, or give a parameter two meanings."""
        for binding in self.bindings:
            binding.check_columns(columns)

    def unreadable(self, columns: Mapping[str, Sequence[Any]], count: int) -> dict[int, str]:
        """Return the rows that a member cannot score, by number from 0, each with the reason.

        A member decides by an optional method ``unreadable(row) -> str``: ``row`` maps the row's columns to its values,
        and the empty string means that it can be scored.
        """
        found: dict[int, str] = {}
        for member in self.members:
            check: Any = getattr(member.function, "unreadable", None)
            for row in range(count) if callable(check) else ():
                if row not in found and (reason := check({name: values[row] for name, values in columns.items()})):
                    found[row] = f"reward {member.name!r}: {reason}"
        return found

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> RewardResult:
        """Score B responses; ``columns`` maps names to sequences of length B.

        Raises ``RewardError`` when a reward raises, needs a column that is not there, or returns anything but B finite
        numbers, or lists of them, with None for rows that it does not apply to. Lists need the numbers of sampled
        tokens, which are among the columns that ``sampled_columns`` returns.
        """
        prompts, responses, columns = list(prompts), list(responses), dict(columns or {})
        self._check_lengths(prompts, responses, columns)
        turns = columns.pop(TURNS, [[] for _ in responses])
        if not responses:
            return RewardResult(np.zeros(0))
        calls = []
        for member, binding in zip(self.members, self.bindings, strict=True):
            positional, keywords = binding.arguments(prompts, responses, columns)
            calls.append(functools.partial(member.function, *positional, **keywords))
        scores, parts, scored = np.zeros(len(responses)), {}, np.zeros(len(responses), dtype=np.bool_)
        tokens: dict[int, Scores] = {}
        for member, output in zip(self.members, run_together(calls), strict=True):
            if isinstance(output, BaseException):
                raise _failure(member.name, output, prompts) from output
            result = checked(member.name, output, responses, turns)
            with np.errstate(over="ignore", invalid="ignore"):  # an overflow is an error below
                terms = np.where(result.scored, member.weight * result.scores, 0.0)
                _add_tokens(tokens, member.weight, result, terms, scores)
                scores = scores + terms
            scored |= result.scored
            if self.single:
                parts.update(result.parts)
            else:
                parts[member.name] = result.scores
                parts.update({f"{member.name}_{part}": values for part, values in result.parts.items()})
        if not np.isfinite(scores).all():
            raise RewardError(f"the weighted sum of the rewards {self.name} overflows; use smaller weights")
        return RewardResult(np.where(scored, scores, np.nan), parts, scored, tokens)

    def _check_lengths(self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]) -> None:
        if len(prompts) != len(responses):
            raise RewardError(
                f"reward {self.name!r} was given {len(prompts)} prompts and {len(responses)} responses; "
                "expected as many of one as of the other"
            )
        for column, values in columns.items():
            if len(values) != len(responses):
                raise RewardError(
                    f"reward {self.name!r}: the column {column!r} has {len(values)} values for {len(responses)} "
                    "responses; expected one per response"
                )

    def __reduce__(self) -> tuple[type[RewardFunction], tuple[tuple[Member, ...], bool]]:
        return RewardFunction, (self.members, self.single)

    def __deepcopy__(self, memo: dict[int, Any]) -> RewardFunction:
        return self  # rewards may hold models or open clients; copies of an environment's spec share them

    def __repr__(self) -> str:
        return f"RewardFunction({self.name!r})"


def run_together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Make all calls and return, in order, each one's result or the exception it raised.

    A call that returns an awaitable is awaited together with the others. Only ``Exception`` is caught.
    """
    results: list[Any] = []
    waiting: dict[int, Awaitable[Any]] = {}
    try:
        for index, call in enumerate(calls):
            try:
                result = call()
            except Exception as error:
                result = error
            if inspect.isawaitable(result):
                waiting[index] = result
            results.append(result)
    except BaseException:  # Ctrl-C: leave no coroutine behind that was never awaited
        for awaitable in waiting.values():
            if inspect.iscoroutine(awaitable):
                awaitable.close()
        raise
    if waiting:
        for index, result in zip(waiting, awaited(list(waiting.values())), strict=True):
            results[index] = result
    return results


def _add_tokens(tokens: dict[int, Scores], weight: float, result: RewardResult, terms: Scores, before: Scores) -> None:
    """Add a member's weighted rewards to those of tokens by row; ``before`` (B,) are the sums of the members before it.

    A number in the place of a list is the reward of the last token.
    """
    for row, numbers in result.tokens.items():
        if row not in tokens:
            tokens[row] = np.append(np.zeros(len(numbers) - 1), before[row])
        tokens[row] = tokens[row] + weight * numbers
    for row in tokens.keys() - result.tokens.keys():
        tokens[row][-1] += terms[row]


def _failure(name: str, error: BaseException, prompts: Sequence[str]) -> BaseException:
    if isinstance(error, RewardError) or not isinstance(error, Exception):
        return error
    as_messages = isinstance(error, TypeError) and "string ind" in str(error)  # completion[0]["content"]
    return RewardError(
        f"reward {name!r} raised {type(error).__name__}: {error} (batch of {len(prompts)}, first prompt "
        f"{excerpt(prompts[0])})"
        + (
            ". Prompts and responses are texts; the column prompt_messages contains the messages."
            if as_messages
            else ""
        )
    )
