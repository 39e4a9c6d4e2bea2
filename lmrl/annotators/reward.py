"""An annotator that ranks by the scores of a reward function or reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lmrl.annotators.annotators import Comparison, Judgement
from lmrl.annotators.ranks import dense_ranks
from lmrl.rewards.binding import TURNS

if TYPE_CHECKING:
    from lmrl.rewards import RewardResult


class ScoringFunction(Protocol):
    """A reward as ``lmrl.rewards.resolve`` returns it."""

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> RewardResult:
        """Return one score per response."""
        ...


class RewardAnnotator:
    """Ranks by a reward's scores, which it also reports: equal scores, or scores within ``tolerance``, are ties."""

    def __init__(self, reward: ScoringFunction, tolerance: float = 0.0, name: str = "reward") -> None:
        self.reward, self.tolerance, self.name = reward, tolerance, name

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgement | None]:
        """Return one judgement per comparison; the reward is called once, with every completion of all of them.

        A comparison with a completion that the reward gives no score (None) has no judgement.
        """
        rows = [comparison for comparison in comparisons for _ in comparison.completions]
        responses = [text for comparison in comparisons for text in comparison.completions]
        columns = reward_columns(rows)
        for name in (TURNS, *getattr(self.reward, "asks", ())):
            if all(name in comparison.sampled for comparison in comparisons):
                columns[name] = [value for comparison in comparisons for value in comparison.sampled[name]]
        result = self.reward([row.prompt_text for row in rows], responses, columns)
        scores = iter(result.given())
        judgements: list[Judgement | None] = []
        for comparison in comparisons:
            given = [next(scores) for _ in comparison.completions]
            own = tuple(score for score in given if score is not None)
            complete = len(own) == len(given)
            judgements.append(Judgement(dense_ranks(own, self.tolerance), own) if complete else None)
        return judgements


def reward_columns(rows: Sequence[Comparison]) -> dict[str, list[Any]]:
    """Return the columns of rows by name, None where a row has none.

    ``prompt_messages`` is among them if a prompt is a conversation: reward models render it with their own template.
    """
    names = dict.fromkeys(name for row in rows for name in row.columns)
    columns: dict[str, list[Any]] = {name: [row.columns.get(name) for row in rows] for name in names}
    if "prompt_messages" not in columns and any(not isinstance(row.prompt, str) for row in rows):
        columns["prompt_messages"] = [None if isinstance(row.prompt, str) else list(row.prompt) for row in rows]
    return columns
