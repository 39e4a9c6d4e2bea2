"""Arguments of a reward by parameter name: prompts, responses and data columns, whatever their order.

Names follow lmrl (``prompts, responses``) and TRL (``prompts, completions``). A signature that cannot be understood
raises an error when the reward is resolved, and a column that the data lack before anything is sampled.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from lmrl.engines.protocol import FinishReason
from lmrl.errors import RewardError, SettingsError, nearest
from lmrl.rewards.signatures import PLACES, signature_of
from lmrl.text.codec import continuations

if TYPE_CHECKING:
    from lmrl.text.card import TextCodec

PROMPTS = ("prompts", "prompt")
RESPONSES = ("responses", "completions", "response", "completion")
ROLES = {**dict.fromkeys(PROMPTS, "prompts"), **dict.fromkeys(RESPONSES, "responses")}
OFFERED = ("response_ids", "completion_ids", "prompt_ids", "finish_reasons", "raw_responses")
"""Columns about the sampling, which ``sampled_columns`` computes where a reward names them."""
TURNS = "lmrl.sampled_turns"
"""Numbers of sampled tokens of the turns of each response: a column that rewards are not passed."""
TRL_OBJECTS = {
    "trainer_state": "no trainer state is passed to rewards",
    "log_extra": "return a mapping with the key 'score' to log further columns",
    "log_metric": "return a mapping with the key 'score' to log further metrics",
    "environments": "a multi-turn environment scores its own episodes",
}
LIKE_PROMPTS = "p q x question questions query queries input inputs instruction instructions asked"
LIKE_RESPONSES = """r c y output outputs text texts generation generations generated sample samples
prediction predictions reply replies said"""
LIKE_ANSWERS = """answer answers solution solutions target targets label labels reference references ground_truth
ground_truths gold golds expected truth"""
EXPECTED = (
    "expected parameters named prompts, responses (or completions) and columns of the data, in any order: "
    "def reward(prompts, responses, answer)"
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Binding:
    """Sources of a reward's arguments, each ``prompts``, ``responses`` or a column."""

    name: str
    signature: str
    positional: tuple[str, ...]
    keywords: Mapping[str, str]
    required: tuple[str, ...]
    """Columns without which it cannot be called."""
    passes_rest: bool
    """True if it takes ``**kwargs``: every column that no parameter names is passed too."""
    rest_roles: tuple[str, ...] = ()
    """Names under which prompts and responses are passed to ``**kwargs``."""
    by_position: tuple[str, ...] = ()
    """Parameters that are prompts and responses only because they come first."""
    reads: frozenset[str] | None = None
    """All columns that it reads, where it declares them in an attribute ``reads_columns``."""

    @property
    def asks(self) -> frozenset[str]:
        """Names of the sampling's columns that its parameters name."""
        named = {*self.positional, *self.keywords.values()}
        if self.passes_rest and self.reads is None:
            named.add("completion_ids")  # TRL passes them to every reward
        return frozenset(named.intersection(OFFERED))

    def arguments(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the call's arguments. Raises ``RewardError`` for a missing column."""
        self.require(columns)
        values: dict[str, Any] = {**columns, "prompts": prompts, "responses": responses}
        keywords = {name: values[source] for name, source in self.keywords.items() if source in values}
        if self.passes_rest:
            used = {*self.positional, *self.keywords, *self.by_position}
            rest = {
                name: value
                for name, value in columns.items()
                if name not in used and (self.reads is None or name in self.reads)
            }
            keywords = {**rest, **{name: values[ROLES[name]] for name in self.rest_roles}, **keywords}
        present = itertools.takewhile(values.__contains__, self.positional)  # what is absent behind them has a default
        return [values[source] for source in present], keywords

    def require(self, columns: Collection[str], where: str = "the rows have") -> None:
        """Raise ``RewardError`` if a column is missing, with the names found and the nearest one."""
        found = sorted(set(columns) - set(OFFERED))
        for column in self.required:
            if column in columns:
                continue
            listing = f"{where} {', '.join(found) or 'none besides the prompt'}"
            if column in TRL_OBJECTS:
                advice = f". Give the parameter a default: {TRL_OBJECTS[column]}."
            elif column in OFFERED:
                advice = ". It exists only where responses are sampled as tokens; these responses are texts alone."
            elif guess := nearest(column, found):
                advice = f"; did you mean {guess!r}?"
            else:
                advice = ". Add the column to the data, or give the parameter a default."
            raise RewardError(
                f"reward {self.name!r} needs the column {column!r}, but {listing}{advice}"
                + ("" if self.reads is not None else f" Its signature is {self.signature}.")
            )

    def batch_signature(self) -> inspect.Signature:
        """Return the signature of a callable of batches that passes its columns on by this binding."""
        parameters = [Parameter(role, Parameter.POSITIONAL_OR_KEYWORD) for role in ("prompts", "responses")]
        for column in dict.fromkeys((*self.positional, *self.keywords.values())):
            if column not in ("prompts", "responses"):
                default = Parameter.empty if column in self.required else None
                parameters.append(Parameter(column, Parameter.KEYWORD_ONLY, default=default))
        rest = [Parameter("columns", Parameter.VAR_KEYWORD)] if self.passes_rest else []
        return inspect.Signature([*parameters, *rest])

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise ``RewardError`` if the data lack a column, or if a positional parameter has the name of one."""
        self.require({*columns, *OFFERED}, "the data have the columns")
        for column in sorted({*self.keywords, *OFFERED}.intersection(columns)):
            if self.keywords.get(column, column) in ("prompts", "responses", *self.asks):
                logger.warning(
                    "the column %r of the data is not passed to reward %r, whose parameter of that name is filled by "
                    "the sampling; rename the column",
                    column,
                    self.name,
                )
        for parameter in self.by_position:
            if parameter in columns:
                raise RewardError(
                    f"reward {self.name!r} takes {self.signature}: {parameter!r} is a column of the data, but its "
                    f"position is that of the prompts or the responses; {EXPECTED}. Rename the parameters."
                )


def bind(name: str, function: Callable[..., Any], of_rows: bool = False) -> Binding:
    """Return how ``function`` is called, with a batch or with one row (``of_rows``).

    Raises ``SettingsError`` for a signature that cannot be understood.
    """
    declared = getattr(function, "reads_columns", None)
    found = _bound(name, function, of_rows)
    if declared is None:
        return found
    required = tuple(dict.fromkeys([*found.required, *declared]))
    return dataclasses.replace(found, required=required, reads=frozenset(required))


def _bound(name: str, function: Callable[..., Any], of_rows: bool) -> Binding:
    signature = signature_of(function)
    if signature is None:  # a C function: nothing is known of its parameters
        return Binding(name, "(...)", ("prompts", "responses"), {}, (), False)
    parameters = list(signature.parameters.values())
    named = [parameter for parameter in parameters if parameter.kind in (*PLACES, Parameter.KEYWORD_ONLY)]
    kinds = {parameter.kind for parameter in parameters}
    shown = str(signature)
    if not any(parameter.name in ROLES for parameter in named):
        if not named and Parameter.VAR_KEYWORD in kinds and Parameter.VAR_POSITIONAL not in kinds:
            return Binding(name, shown, (), {}, (), True, ("prompts", "completions", "responses"))
        return _by_position(name, shown, parameters)
    return _by_name(name, shown, parameters, named, of_rows)


def _by_position(name: str, shown: str, parameters: Sequence[Parameter]) -> Binding:
    """Bind prompts and responses to the first two parameters, whose names have no meaning here."""
    places = [parameter for parameter in parameters if parameter.kind in PLACES]
    first = places[:2]
    open_ended = any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters)
    if len(first) < 2 and not open_ended:
        raise SettingsError(
            f"reward {name!r} takes {shown}, which has no room for two positional arguments; {EXPECTED}. Wrap a "
            "function of one row in lmrl.rewards.per_row."
        )
    names = [parameter.name.lower() for parameter in first]
    unsure = any(one.default is not Parameter.empty and one.name.lower() not in LIKE_RESPONSES.split() for one in first)
    swapped = len(names) == 2 and names[0] in LIKE_RESPONSES.split() and names[1] in LIKE_PROMPTS.split()
    if unsure or swapped or any(one in LIKE_ANSWERS.split() or one in OFFERED for one in names):
        raise SettingsError(
            f"reward {name!r} takes {shown}, whose first two parameters would be prompts and responses by position; "
            f"{EXPECTED}. Rename the parameters: version 0.1 passed them by position; docs/migration.md lists what "
            "changed."
        )
    return _binding(name, shown, ("prompts", "responses"), parameters, {one.name for one in first}, first)


def _by_name(
    name: str, shown: str, parameters: Sequence[Parameter], named: Sequence[Parameter], of_rows: bool
) -> Binding:
    """Bind prompts and responses to the parameters of these names; the other parameters are columns."""
    names = [parameter.name for parameter in named]
    roles: dict[str, str] = {}
    for known in (PROMPTS, RESPONSES):
        present = [one for one in known if one in names]
        plural = [one for one in present if one.endswith("s")]
        # Beside a plural, a singular is a column: `response` next to `completions` is what the data say.
        roles |= {one: ROLES[one] for one in (plural or present[:1])}
    passes_rest = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters)
    second = named[1:2] if roles.get(named[0].name) == "prompts" and "responses" not in roles.values() else []
    by_position = [one for one in second if one.name in LIKE_RESPONSES.split()]  # (prompts, texts)
    roles |= {one.name: "responses" for one in by_position}
    if "responses" not in roles.values() and not passes_rest:
        required = [one.name for one in named if one.default is Parameter.empty and one.name not in roles]
        raise SettingsError(
            f"reward {name!r} takes {shown}, which names no responses"
            + (f" ({required[0]!r} would be a column of the data)" if required else "")
            + f"; {EXPECTED}."
        )
    if not of_rows and [one.name for one in parameters] in (["response"], ["completion"]):
        raise SettingsError(
            f"reward {name!r} takes {shown}, one response, so it has no room for two positional arguments; {EXPECTED}. "
            "Wrap a function of one row in lmrl.rewards.per_row."
        )
    positional = []
    for parameter in parameters:
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            positional.append(roles.get(parameter.name, parameter.name))
    taken = {one.name for one in parameters if one.kind is Parameter.POSITIONAL_ONLY}
    return _binding(name, shown, tuple(positional), parameters, taken, by_position, roles)


def _binding(
    name: str,
    shown: str,
    positional: tuple[str, ...],
    parameters: Sequence[Parameter],
    taken: set[str],
    by_position: Sequence[Parameter],
    roles: Mapping[str, str] | None = None,
) -> Binding:
    roles = roles or {}
    keywords = {
        one.name: roles.get(one.name, one.name)
        for one in parameters
        if one.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY) and one.name not in taken
    }
    sources = {**keywords, **{one: one for one in positional}}
    defaults = {one.name for one in parameters if one.default is not Parameter.empty}
    required = tuple(
        source for one, source in sources.items() if source not in ("prompts", "responses") and one not in defaults
    )
    passes_rest = any(one.kind is Parameter.VAR_KEYWORD for one in parameters)
    missing = [one for one in ("prompts", "responses") if one not in {*positional, *keywords.values()}]
    rest = [alias for one in missing for alias in ((one,) if one == "prompts" else ("completions", "responses"))]
    return Binding(
        name,
        shown,
        positional,
        keywords,
        required,
        passes_rest,
        tuple(rest) if passes_rest else (),
        tuple(one.name for one in by_position),
    )


def sampled_columns(
    reward: Any,
    codec: TextCodec,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    finish: Sequence[int],
) -> dict[str, list[Any]]:
    """Return the columns that ``reward`` names, one value per response, and ``TURNS`` for a ``RewardFunction``.

    ``response_ids`` and ``completion_ids`` are the sampled ids, the end token included; ``prompt_ids`` those of the
    prompt. ``finish_reasons`` (given as ``FinishReason`` codes) are eos, stop, length or context. ``raw_responses`` are
    the responses with special tokens and without a cut at a stop string.
    """
    asks: frozenset[str] = getattr(reward, "asks", frozenset())
    found: dict[str, list[Any]] = {TURNS: [[len(row)] for row in response_ids]} if hasattr(reward, "asks") else {}
    for name in ("response_ids", "completion_ids"):
        if name in asks:
            found[name] = [list(row) for row in response_ids]
    if "prompt_ids" in asks:
        found["prompt_ids"] = [list(row) for row in prompt_ids]
    if "finish_reasons" in asks:
        found["finish_reasons"] = [FinishReason(int(code)).label for code in finish]
    if "raw_responses" in asks:
        found["raw_responses"] = continuations(codec, prompt_ids, response_ids, special=True)
    return found
