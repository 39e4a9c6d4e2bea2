"""Annotators: whoever ranks several answers to one prompt, be it a reward, a judging model or a person.

``build_annotator`` makes one from its settings. Leaves out sampling the answers and keeping the rankings: those are
``lmrl.stages.prefer.stage``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from lmrl.config.unread import only_if
from lmrl.data.records import Prompt
from lmrl.errors import SettingsError
from lmrl.judges.settings import JudgeSettings

if TYPE_CHECKING:
    from lmrl.plugins import PluginManager


@dataclass(frozen=True)
class Comparison:
    """Question to an annotator: which of these completions is the better answer to the prompt.

    ``prompt_text`` is the prompt as one text, for whoever reads no messages; ``columns`` are the other columns of the
    prompt's row, handed to rewards by name.
    """

    prompt: Prompt
    prompt_text: str
    completions: tuple[str, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    sampled: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Columns about the sampling that a reward names, such as ``response_ids``, with one value per completion."""


@dataclass(frozen=True)
class Judgement:
    """An annotator's answer: ranks (0 is best, ties share a rank), and the scores they came from, where known.

    ``details`` is what a report wants to know of how it came about; JSON-able.
    """

    ranks: tuple[int, ...]
    scores: tuple[float, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unanswered:
    """Why a comparison has no answer.

    ``skipped`` by the person, ``unreadable`` answers, ``failed`` to be answered for now (it is asked again another
    time), or ``undone``: the person takes the answer back that was given before.
    """

    reason: Literal["skipped", "unreadable", "failed", "undone"]


@runtime_checkable
class Annotator(Protocol):
    """Ranks completions."""

    name: str

    def judge(self, comparisons: Sequence[Comparison]) -> Sequence[Judgement | None]:
        """Return one judgement per comparison; None where there is no answer (budget spent, unreadable, skipped).

        The order in which the completions of a comparison stand changes no judgement of a completion.
        """
        ...


@runtime_checkable
class StreamingAnnotator(Annotator, Protocol):
    """An annotator whose answers can be kept one by one while it goes on.

    ``stopped`` says why it ended before everything was answered: empty where it did not. ``counts`` are the numbers of
    what it took: questions put, tokens spent and so on.
    """

    stopped: str
    counts: dict[str, int]

    def stream(
        self, comparisons: Sequence[Comparison], should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Judgement | Unanswered]]:
        """Yield the place of a comparison and its answer as each comes, in any order; some may stay without one.

        It ends soon after ``should_stop`` says so, and yields first what is on its way.
        """
        ...


def judge_all(annotator: StreamingAnnotator, comparisons: Sequence[Comparison]) -> list[Judgement | None]:
    """Return what ``Annotator.judge`` of a streaming annotator returns: the last answer to each comparison."""
    judgements: list[Judgement | None] = [None] * len(comparisons)
    for index, answer in annotator.stream(comparisons):
        judgements[index] = answer if isinstance(answer, Judgement) else None
    return judgements


DEFAULT_REWARD = "happy_end"
"""Reward of an annotator that names none: that of the embedded stories."""


@dataclass
class AnnotatorSettings:
    """An annotator's kind and settings."""

    kind: Literal["reward", "judge", "person"] = "reward"
    """reward: a reward function or reward model; judge: a language model that is asked; person: you, here in the
    terminal."""
    reward: str = ""
    """For kind = "reward": a registered reward, "module:function", or the folder of a reward model. Left out, it is
    happy_end, for the embedded story model alone."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The reward's own settings."""
    tolerance: float = 0.0
    """Completions whose scores lie at most this far below the best of their group share its rank."""
    judge: JudgeSettings = field(default_factory=JudgeSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf"):
            raise SettingsError(f"tolerance is {self.tolerance:g}; expected a finite number of at least 0")

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        found = only_if(self.kind == "reward", "kind=reward", "reward", "settings", "tolerance")
        return found | only_if(self.kind == "judge", "kind=judge", "judge")


def build_annotator(
    settings: AnnotatorSettings, plugins: PluginManager | None = None, name: str = "", seed: int = 0
) -> Annotator:
    """Return the annotator that the settings describe; ``name`` is what reports call it.

    ``seed`` decides what is random about it: the order in which a person is shown completions. Raises
    ``SettingsError`` for what can be known to be wrong before anyone is asked.
    """
    if settings.kind == "reward":
        from lmrl.annotators.reward import RewardAnnotator
        from lmrl.rewards import resolve

        reward = resolve(settings.reward or DEFAULT_REWARD, settings.settings, plugins)
        return RewardAnnotator(reward, settings.tolerance, name or settings.reward or DEFAULT_REWARD)
    if settings.kind == "judge":
        from lmrl.annotators.judge import build_judge

        return build_judge(settings.judge, name)
    from lmrl.annotators.person import PersonAnnotator

    return PersonAnnotator(name=name or "person", seed=seed)
