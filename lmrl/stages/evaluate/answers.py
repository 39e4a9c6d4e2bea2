"""Answers of one model to the held-out prompts: sampled once, kept in the run folder, read back on a resume."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmrl.engines.protocol import FinishReason
from lmrl.engines.texts import Completion
from lmrl.errors import ResumeError
from lmrl.stages.asking import Asked
from lmrl.stages.evaluate.comparison import Answer, SideBySide, shown
from lmrl.stages.evaluate.plan import Plan
from lmrl.statistics import is_empty, longest_loop, repeated_share

ANSWERS_FOLDER = "answers"


@dataclass
class Answers:
    """One column of the evaluation: row r answers prompt ``groups[r]``; measures are added as they become known.

    ``logprobs`` are log pi of whole answers, ``rewards`` by name (None where a reward does not apply), ``kl``
    log pi - log pi_ref. ``weights`` (summing to
    1 within a prompt) are those of best-of-N; None counts every row alike. ``shown`` are the rows that stand for their
    prompts where texts are shown and compared.
    """

    name: str
    asked: list[Asked]
    groups: list[int]
    completions: list[Completion]
    logprobs: list[float]
    weights: list[float] | None = None
    rewards: dict[str, list[float | None]] = field(default_factory=dict)
    kl: list[float] | None = None
    shown: list[int] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The answers' texts, row by row."""
        return [completion.text for completion in self.completions]

    def sampled(self) -> list[tuple[list[int], list[int]]]:
        """Return token ids of prompt and answer, row by row."""
        return [(self.asked[group].ids, c.ids) for group, c in zip(self.groups, self.completions, strict=True)]

    def row_measures(self) -> dict[str, list[float]]:
        """Return what is measured of each answer by itself."""
        return {
            "length": [float(len(completion.ids)) for completion in self.completions],
            "ended": [float(completion.ended) for completion in self.completions],
            "empty": [float(is_empty(text)) for text in self.texts],
            "repeated": [repeated_share(text) for text in self.texts],
            "loop": [float(longest_loop(text)) for text in self.texts],
        }


def new_answers(
    name: str, asked: Sequence[Asked], samples: int, completions: list[Completion], logprobs: list[float]
) -> Answers:
    """Return answers whose rows are ``samples`` for each prompt, one prompt after the other."""
    groups = [group for group in range(len(asked)) for _ in range(samples)]
    return Answers(name, list(asked), groups, completions, logprobs, shown=list(range(len(groups))))


def store(folder: Path, stem: str, answers: Answers, fingerprint: str) -> None:
    """Keep a model's answers in ``answers/<stem>.json``, in one move."""
    rows = [
        {
            "prompt": answers.asked[group].text,
            "answer": completion.text,
            "ids": completion.ids,
            "logprobs": completion.logprobs,
            "finish": completion.finish.label,
            "logprob": logprob,
        }
        for group, completion, logprob in zip(answers.groups, answers.completions, answers.logprobs, strict=True)
    ]
    file = folder / ANSWERS_FOLDER / f"{stem}.json"
    file.parent.mkdir(exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    content = {"model": answers.name, "fingerprint": fingerprint, "rows": rows}
    partial.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(file)


def restore(
    folder: Path, stem: str, name: str, asked: Sequence[Asked], samples: int, fingerprint: str
) -> Answers | None:
    """Return the answers that ``store`` kept, None where there are none.

    Raises ``ResumeError`` if they belong to other prompts, or the file is broken.
    """
    file = folder / ANSWERS_FOLDER / f"{stem}.json"
    if not file.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        rows = content["rows"]
        completions = [
            Completion(row["answer"], row["ids"], row["logprobs"], FinishReason[row["finish"].upper()]) for row in rows
        ]
        logprobs = [float(row["logprob"]) for row in rows]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ResumeError(f"{file} cannot be read ({type(error).__name__}: {error}); remove it and resume") from error
    if content.get("fingerprint") != fingerprint or len(rows) != len(asked) * samples:
        raise ResumeError(
            f"the prompts have changed since {file} was written; bring back the old data, or start a new run folder"
        )
    return new_answers(name, asked, samples, completions, logprobs)


def weighted_means(values: Sequence[float | None], answers: Answers) -> list[float]:
    """Return each prompt's mean over its answers, without those of None: the unit of every interval.

    A prompt without any value has NaN.
    """
    counts = [0.0] * len(answers.asked)
    parts: list[list[float]] = [[] for _ in answers.asked]
    for row, group in enumerate(answers.groups):
        number = values[row]
        if number is None:
            continue
        weight = 1.0 if answers.weights is None else answers.weights[row]
        counts[group] += weight
        parts[group].append(weight * number)
    return [math.fsum(part) / count if count else math.nan for part, count in zip(parts, counts, strict=True)]


def first_samples(plan: Plan, columns: Sequence[Answers]) -> SideBySide:
    """Return the first prompts with one answer of each column."""
    config = plan.config
    count = min(config.show, len(plan.questions.items))
    gold = next(iter(plan.rewards), "")
    table: list[list[Answer]] = []
    for group in range(count):
        answers = []
        for column in columns:
            row = next(row for row in column.shown if column.groups[row] == group)
            completion = column.completions[row]
            answers.append(
                Answer(
                    completion.text,
                    len(completion.ids),
                    completion.ended,
                    column.rewards[gold][row] if gold else None,
                    column.kl[row] if column.kl is not None else None,
                )
            )
        table.append(answers)
    return SideBySide(
        prompts=[shown(item.prompt) for item in plan.questions.items[:count]],
        columns=plan.columns,
        answers=table,
        sampling=config.sampling,
        seed=config.run.seed,
        system=config.system,
        reward=gold,
        reference=config.reference,
    )
