"""The first held-out prompts with one answer of each model, as the report and `lmrl compare` show them."""

from __future__ import annotations

from collections.abc import Sequence

from lmrl.stages.evaluate.answers import Answers
from lmrl.stages.evaluate.comparison import Answer, SideBySide, shown
from lmrl.stages.evaluate.plan import Plan


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
