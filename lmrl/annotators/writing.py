"""Rankings and pairs as files that ``datasets``, other trainers and ``lmrl.data.load_rankings`` read.

``rankings`` rows: prompt, completions, ranks (0 is best, ties share one), scores, annotator, and the prompt's other
columns. ``pairs`` rows: prompt, chosen, rejected, score_chosen, score_rejected, margin; of a prompt in messages the
answers are messages too. Rows are JSON lines or parquet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lmrl.annotators.annotators import Comparison, Judgement
from lmrl.annotators.ranks import PairPolicy, ranked_pairs
from lmrl.data.records import Prompt

Format = Literal["jsonl", "parquet"]
OWN_COLUMNS = ("prompt", "completions", "ranks", "scores", "annotator", "gold_ranks", "gold_scores")
MISLEADING = ("prompt_ids", "prompt_messages", "chosen", "rejected", "completion", "label", "conversations")
"""Columns of a prompt's row by which a reader would take the rankings for something else; they are left out."""


def ranking_rows(
    comparisons: Sequence[Comparison], judgements: Mapping[int, Judgement], annotator: str
) -> Iterable[dict[str, Any]]:
    """Yield a row for each comparison that was ranked, by its number."""
    scored = all(judgement.scores for judgement in judgements.values())
    for index, judgement in sorted(judgements.items()):
        comparison = comparisons[index]
        row: dict[str, Any] = {
            "prompt": _prompt(comparison.prompt),
            "completions": list(comparison.completions),
            "ranks": list(judgement.ranks),
        }
        if scored:
            row["scores"] = list(judgement.scores)
        own = {name: value for name, value in comparison.columns.items() if name not in (*OWN_COLUMNS, *MISLEADING)}
        yield row | {"annotator": annotator} | own


def pair_rows(
    comparisons: Sequence[Comparison], judgements: Mapping[int, Judgement], policy: PairPolicy
) -> Iterable[dict[str, Any]]:
    """Yield a row for each pair of completions that the policy takes; ties make none."""
    scored = all(judgement.scores for judgement in judgements.values())
    for index, judgement in sorted(judgements.items()):
        comparison = comparisons[index]
        for better, worse in ranked_pairs(judgement.ranks, policy):
            row: dict[str, Any] = {
                "prompt": _prompt(comparison.prompt),
                "chosen": _answer(comparison, better),
                "rejected": _answer(comparison, worse),
            }
            if scored:
                scores = judgement.scores[better], judgement.scores[worse]
                row |= {"score_chosen": scores[0], "score_rejected": scores[1], "margin": scores[0] - scores[1]}
            yield row


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], file_format: Format) -> list[str]:
    """Write rows in one piece, over what stood there before; return the columns whose values had to become JSON text.

    A column becomes text where its values are of kinds that no table can hold together, such as numbers and texts:
    ``datasets`` would refuse the whole file.
    """
    plain = [_plain(row) for row in rows]
    changed = _untabular(plain)
    for row in plain:
        for name in changed:
            if name in row:
                row[name] = json.dumps(row[name], ensure_ascii=False)
    partial = path.with_name(path.name + ".partial")
    if file_format == "parquet":
        import pyarrow
        import pyarrow.parquet

        names = dict.fromkeys(name for row in plain for name in row)  # from_pylist knows those of the first row alone
        table = pyarrow.table({name: [row.get(name) for row in plain] for name in names})
        pyarrow.parquet.write_table(table, partial)
    else:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in plain)
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)
    return changed


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as JSON and UTF-8 can hold it: no half of a surrogate pair, None for what is not finite."""
    text = json.dumps(dict(row), default=str, ensure_ascii=False).encode("utf-8", "replace")
    plain: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
    return plain


def _untabular(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    import pyarrow

    found = []
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            kind = pyarrow.array([row.get(name) for row in rows]).type
            empty = pyarrow.types.is_struct(kind) and not kind.num_fields  # which parquet cannot hold
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
            empty = True
        if empty:
            found.append(name)
    return found


def _prompt(prompt: Prompt) -> str | list[dict[str, Any]]:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _answer(comparison: Comparison, index: int) -> str | list[dict[str, str]]:
    text = comparison.completions[index]
    return text if isinstance(comparison.prompt, str) else [{"role": "assistant", "content": text}]
