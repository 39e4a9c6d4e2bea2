"""Result of a reward: scores of B responses, from the numbers, lists and None that a reward returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrl.errors import RewardError, nearest

Scores = NDArray[np.float64]
Flags = NDArray[np.bool_]
EXCERPT = 60
"""Characters of a prompt or response shown in an error."""


@dataclass(frozen=True)
class RewardResult:
    """Scores of B responses and the terms that they are made of."""

    scores: Scores
    """Score of each response, float64 (B,); NaN in rows without one."""
    parts: dict[str, Scores] = field(default_factory=dict)
    """Terms of the scores by name, float64 (B,), for the log; NaN in rows that a term does not apply to. Leave these
    out of every average."""
    scored: Flags = None  # type: ignore[assignment]  # set below
    """True where the row has a score, bool (B,); everywhere by default."""
    tokens: Mapping[int, Scores] = field(default_factory=dict)
    """Rewards of the sampled tokens of a row, by its number, float64 (n,), where a reward returned a list. Elsewhere
    the score is that of the last token."""

    def __post_init__(self) -> None:
        if self.scored is None:
            object.__setattr__(self, "scored", np.ones(len(self.scores), dtype=np.bool_))

    def given(self) -> list[float | None]:
        """Return the scores as a list, None in rows without one."""
        return [float(score) if has else None for score, has in zip(self.scores, self.scored, strict=True)]


def checked(
    name: str, output: Any, responses: Sequence[str], turns: Sequence[Sequence[int]] | None = None
) -> RewardResult:
    """Return the output of a reward as a ``RewardResult``.

    Raises ``RewardError`` if it is not B numbers, lists or None. ``turns`` are the numbers of sampled tokens of each
    turn of each response: a list has a number for each token or for each turn.
    """
    if isinstance(output, RewardResult):
        parts = {part: [None if np.isnan(v) else v for v in values] for part, values in output.parts.items()}
        given = [output.tokens.get(row, score) for row, score in enumerate(output.given())]
        output = {"score": given, **parts}
    if not isinstance(output, Mapping):
        output = {"score": output}
    if "score" not in output:
        keys = [str(key) for key in output]
        guess = nearest("score", keys)
        raise RewardError(
            f"reward {name!r} returned a mapping with the keys {', '.join(keys) or '(none)'}; expected the key 'score'"
            + (f" (is it {guess!r}?)" if guess else "")
        )
    alone = len(output) == 1
    values, tokens = {}, dict[int, Scores]()
    for key, value in output.items():
        part = "" if alone else f" for {key!r}"
        values[str(key)], found = _numbers(name, part, value, responses, turns or [[] for _ in responses])
        tokens = found if key == "score" else tokens
    scores = values.pop("score")
    return RewardResult(scores, values, ~np.isnan(scores), tokens)


def _numbers(
    name: str, part: str, values: Any, responses: Sequence[str], turns: Sequence[Sequence[int]]
) -> tuple[Scores, dict[int, Scores]]:
    """Return B numbers of a reward's output, NaN for None, and the lists among them by row, a number for each token.

    Columns (B, 1) become (B,). The number of a list is its sum.
    """
    expected = f"expected {len(responses)} finite numbers, one per response"
    if hasattr(values, "detach"):  # a torch tensor, on any device and with or without a gradient
        values = values.detach().cpu().double().numpy()
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0:
        raise RewardError(
            f"reward {name!r} returned {excerpt(values)} ({type(values).__name__}){part}; {expected}. "
            "Wrap a function of one row in lmrl.rewards.per_row."
        )
    if len(values) != len(responses):
        raise RewardError(f"reward {name!r} returned {len(values)} scores{part}; {expected}")
    shape = tuple(getattr(values, "shape", (len(values),)))
    if len(shape) > 2:
        raise RewardError(f"reward {name!r} returned an array of shape {shape}{part}; {expected}")
    advice = "Return None for a row that the reward does not apply to."
    scores, applies = np.full(len(responses), np.nan), np.ones(len(responses), dtype=np.bool_)
    tokens: dict[int, Scores] = {}
    for index, value in enumerate(values if len(shape) == 1 else np.asarray(values)):
        value = _single(value)
        if value is None:
            applies[index] = False
            continue
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            if isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1:
                where = f"reward {name!r} returned {len(value)} numbers{part} for response {index}"
                tokens[index] = spread(where, value, turns[index], responses[index])
                value = tokens[index].sum()
            scores[index] = float(value)
        except (TypeError, ValueError, OverflowError):
            raise RewardError(
                f"reward {name!r} returned {excerpt(value)} ({type(value).__name__}){part} for response {index} "
                f"({excerpt(responses[index])}); {expected}. {advice}"
            ) from None
    bad = np.flatnonzero(applies & ~np.isfinite(scores))
    if bad.size:
        raise RewardError(
            f"reward {name!r} returned {scores[bad[0]]}{part} for response {bad[0]} "
            f"({excerpt(responses[bad[0]])}) and {bad.size} of {len(scores)} in all; {expected}. {advice}"
        )
    return scores, tokens


def spread(where: str, values: Any, turns: Sequence[int], response: str) -> Scores:
    """Return a number for each sampled token, (n,), of a list with one for each token or for each turn.

    ``turns`` are the numbers of sampled tokens of the turns, empty where they are not known. The number of a turn is
    that of its last token. Raises ``RewardError``, which begins with ``where``, for another length.
    """
    count, shown = sum(turns), f"({excerpt(response)})"
    if not count:
        raise RewardError(f"{where} {shown}; expected one number, because its sampled tokens are not known here.")
    if len(values) not in (count, len(turns)):
        turn = "1 number" if len(turns) == 1 else f"{len(turns)} numbers, one for each turn"
        raise RewardError(f"{where} {shown}; expected {turn}, or {count}, one for each sampled token.")
    numbers = np.array([float(_single(value)) for value in values])
    if len(values) == count:
        return numbers
    found = np.zeros(count)
    found[np.cumsum(turns) - 1] = numbers
    return found


def _single(value: Any) -> Any:
    """Return the only entry of a row of a (B, 1) column, and anything else as it is."""
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1:
        return value[0] if len(value) == 1 else value
    return value


def excerpt(value: Any) -> str:
    """Return what is shown of a value in an error."""
    shown = repr(value)
    return shown if len(shown) <= EXCERPT else f"{shown[:EXCERPT]}..."
