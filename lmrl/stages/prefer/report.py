"""Report of a preference run: counts, annotators' habits, and their agreement; as JSON and as a plot."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmrl.annotators import Judgement
from lmrl.annotators.agreement import Agreement, compare_annotators, krippendorff_alpha
from lmrl.annotators.annotators import Unanswered
from lmrl.annotators.habits import Habits, find_habits
from lmrl.annotators.journal import REPEATED
from lmrl.stages.prefer.config import GOLD
from lmrl.stages.prefer.samples import Candidates
from lmrl.statistics.intervals import Interval

REPORT_FILE = "report.json"
PLOT_FILE = "preferences.png"


@dataclass(frozen=True)
class AnnotatorReport:
    """One annotator: what it answered, what it took, and its habits."""

    name: str
    habits: Habits
    unanswered: dict[str, int]
    left: int
    counts: dict[str, int]


@dataclass(frozen=True)
class PreferReport:
    """Everything that a run found. ``alpha`` is Krippendorff's over all annotators, None with fewer than three."""

    prompts: int
    completions: int
    repeated: int
    cut: int
    nothing_to_compare: int
    skipped: dict[str, int]
    annotators: list[AnnotatorReport] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    alpha: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        samples = {name: getattr(self, name) for name in ("prompts", "completions", "repeated", "cut")}
        return {
            "samples": samples | {"nothing_to_compare": self.nothing_to_compare, "skipped": self.skipped},
            "annotators": {
                one.name: {
                    **one.habits.to_dict(),
                    "unanswered": one.unanswered,
                    "left": one.left,
                    "counts": one.counts,
                }
                for one in self.annotators
            },
            "agreement": [agreement.to_dict() for agreement in self.agreements],
            "alpha": self.alpha if self.alpha is not None and math.isfinite(self.alpha) else None,
        }


def make_report(
    samples: Sequence[Candidates],
    answers: Mapping[str, Mapping[int, Judgement | Unanswered]],
    counts: Mapping[str, Mapping[str, int]],
    skipped: Mapping[str, int],
    seed: int,
) -> PreferReport:
    """Return the report on answers, by annotator and by the number of the sample."""
    completions = [sample.comparison.completions for sample in samples]
    rankable = sum(sample.rankable for sample in samples)
    reports: list[AnnotatorReport] = []
    ranks: dict[str, dict[int, Sequence[int]]] = {}
    for name, own in answers.items():
        judged = {index: answer for index, answer in own.items() if isinstance(answer, Judgement)}
        reasons: Counter[str] = Counter(answer.reason for answer in own.values() if isinstance(answer, Unanswered))
        ranks[name] = {index: judgement.ranks for index, judgement in judged.items()}
        habits = find_habits(judged, completions, seed)
        left = 0 if name == GOLD else rankable - len(own) + sum(reasons[reason] for reason in REPEATED)
        reports.append(AnnotatorReport(name, habits, dict(reasons), left, dict(counts.get(name, {}))))
    pairs = itertools.combinations(sorted(ranks, key=lambda name: name == GOLD), 2)
    people = [name for name in ranks if name != GOLD]
    return PreferReport(
        prompts=len(samples),
        completions=sum(map(len, completions)),
        repeated=sum(sum(sample.drawn) - len(sample.comparison.completions) for sample in samples),
        cut=sum(sample.cut for sample in samples),
        nothing_to_compare=len(samples) - rankable,
        skipped=dict(skipped),
        annotators=reports,
        agreements=[compare_annotators(pair, ranks[pair[0]], ranks[pair[1]], seed) for pair in pairs],
        alpha=_joint_alpha([ranks[name] for name in people], completions) if len(people) > 2 else None,
    )


def write_report(folder: Path, report: PreferReport) -> Path:
    """Write ``report.json`` and return it."""
    path = folder / REPORT_FILE
    path.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    return path


def plot_report(folder: Path, report: PreferReport) -> Path:
    """Draw agreement and habits with their 95% intervals, and return the file."""
    from matplotlib.figure import Figure  # the Figure class alone needs no display and leaves no global state

    judged = [one for one in report.annotators if one.habits.judged]
    agreed = [one for one in report.agreements if one.strict_pairs]
    habits = [(f"{one.name}: the longer one", one.habits.longer_preferred) for one in judged]
    habits += [
        (f"{one.name}: the first one", one.habits.first_preferred) for one in judged if one.habits.first_preferred
    ]
    panels = [("share of pairs on which both agree", [(f"{a.first} and {a.second}", a.agreement) for a in agreed])]
    panels.append(("share of pairs that it prefers", habits))
    panels = [(label, rows) for label, rows in panels if rows]
    figure = Figure(
        figsize=(5.2 * max(1, len(panels)), 1.4 + 0.35 * max([len(rows) for _, rows in panels], default=1)),
        layout="constrained",
    )
    for axes, (label, rows) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        _draw(axes, label, rows)
    path = folder / PLOT_FILE
    figure.savefig(path, dpi=120)
    return path


def _draw(axes: Any, label: str, rows: Sequence[tuple[str, Interval]]) -> None:
    places = range(len(rows))
    means = [interval.mean for _, interval in rows]
    low = [max(0.0, mean - max(interval.low, 0)) for mean, (_, interval) in zip(means, rows, strict=True)]
    high = [max(0.0, min(interval.high, 1) - mean) for mean, (_, interval) in zip(means, rows, strict=True)]
    axes.errorbar(means, places, xerr=[low, high], fmt="o", markersize=5, capsize=3, color="#4477aa")
    axes.axvline(0.5, color="#999999", linewidth=0.8, linestyle="--")
    axes.set_yticks(list(places), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"{label} (95%)")
    axes.grid(alpha=0.3, axis="x")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _joint_alpha(ranks: Sequence[Mapping[int, Sequence[int]]], completions: Sequence[Sequence[str]]) -> float:
    raters: list[list[float | None]] = []
    for own in ranks:
        rater: list[float | None] = []
        for index, texts in enumerate(completions):
            rater += list(own[index]) if index in own else [None] * len(texts)
        raters.append(rater)
    return krippendorff_alpha(*raters)
