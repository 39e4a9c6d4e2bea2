"""Shapes of rows by their columns: the table of all rows that lmrl reads, and how the shape of some rows is found.

Each shape is known by the columns that it cannot do without. Leaves out files (``lmrl.data.loading.files``) and the
reading of the cells (``lmrl.data.layouts.readers``, ``lmrl.data.layouts.comparisons``, ``lmrl.data.layouts.trees``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal, TypeAlias

from lmrl.data.layouts import comparisons, readers, trees, votes
from lmrl.data.layouts.conversations import text_of_answer, with_system
from lmrl.data.layouts.reading import Found, Reader, Skip
from lmrl.data.layouts.suggestions import suggest
from lmrl.errors import DataError

Use = Literal["prompts", "examples", "rankings"]
Row: TypeAlias = Mapping[str, Any]
Gather: TypeAlias = Callable[[Sequence[Row]], list[tuple[int, dict[str, Any] | Skip]]]
"""Makes one row of several, each with the number of its first (from 1)."""


@dataclass(frozen=True)
class Shape:
    """A kind of row: how it is known, and what it becomes."""

    name: str
    columns: tuple[str, ...]
    """Rows of this shape have at least these columns."""
    prompt: Callable[[Row], object] | None = None
    """The prompt alone, as text or messages; rows that only give prompts need no answer."""
    answer: str | Callable[[Row], object] = ""
    """Column, or its reader, that is also handed on as ``answer`` when the rows have no ``answer`` of their own."""
    example: Reader | None = None
    """Reads an answered prompt to imitate; the best of several answers is taken."""
    ranking: Reader | None = None
    """Reads answers in order of preference."""
    spoken: bool = False
    """True if a text prompt is a request to somebody, so that ``chat = "auto"`` makes it a user message."""
    gather: Gather | None = None
    """Puts rows together before they are read."""
    gather_for: tuple[Use, ...] = ("prompts", "examples", "rankings")
    """The uses for which rows are put together."""
    advice: str = ""
    """Reader of rows of this shape, for the error that refuses them."""

    def serves(self, use: Use) -> bool:
        """Tell whether rows of this shape become prompts, examples or rankings."""
        return {"prompts": self.prompt, "examples": self.example, "rankings": self.ranking}[use] is not None


def _column(name: str) -> Callable[[Row], object]:
    return lambda row: row[name]


def _instruction(extra: str = "input") -> Callable[[Row], object]:
    return lambda row: readers.instruction(row, extra=extra) if row["instruction"] else None


def _conversation(name: str, columns: tuple[str, ...], column: str) -> Shape:
    prompt, answer = readers.conversation_prompt(column), readers.conversation_answer(column)
    return Shape(name, columns, prompt, answer, example=readers.chat(column))


def _preference(name: str, columns: tuple[str, ...], reader: Reader, **rest: Any) -> Shape:
    return Shape(name, columns, example=reader, ranking=reader, **rest)


def _question(name: str, asked: str, answer: str) -> Shape:
    reader = readers.question_and_answer(asked, answer)
    kept = "" if answer == "answer" else answer
    return Shape(name, (asked, answer), _column(asked), kept, example=reader, spoken=True)


def _asked(name: str) -> Callable[[Row], object]:
    return _instruction() if name == "instruction" else _column(name)


def _answered(asked: str) -> tuple[Shape, ...]:
    """Return the shapes of answers to a question or an instruction; a prompt has shapes of the same columns."""

    def shape(name: str, columns: tuple[str, ...], **rest: Any) -> Shape:
        return Shape(f"{asked} and {name}", (asked, *columns), _asked(asked), spoken=True, **rest)

    def ranked(row: Row) -> Found:
        return comparisons.n_way(row, asked)

    return (
        shape("ranked completions", ("completions", "ranks"), example=ranked, ranking=ranked),
        shape("scored completions", ("completions", "scores"), example=ranked, ranking=ranked),
        shape(
            "compared completions",
            ("completions", "preferences"),
            example=votes.voted(asked),
            ranking=votes.voted(asked),
        ),
        shape("completion", ("completion",), answer="completion", example=lambda row: readers.completion(row, asked)),
    )


def _summarised(row: Row) -> object:
    return readers.first(comparisons.summaries(row)).completions[0]


SHAPES = (
    Shape(
        "sharegpt preference",
        ("conversations", "chosen", "rejected"),
        lambda row: with_system(row, readers.read_conversation(row, "conversations")),
        example=comparisons.sharegpt_preference,
        ranking=comparisons.sharegpt_preference,
    ),
    _preference("preference", ("prompt", "chosen", "rejected"), comparisons.preference, prompt=_column("prompt")),
    Shape(
        "labelled",
        ("prompt", "completion", "label"),
        _column("prompt"),
        example=readers.completion,
        ranking=comparisons.n_way,
        gather=readers.gather_labelled,
        gather_for=("rankings",),
    ),
    Shape("prompt and completion", ("prompt", "completion"), _column("prompt"), example=readers.completion),
    _preference("N-way ranked", ("prompt", "completions", "ranks"), comparisons.n_way, prompt=_column("prompt")),
    _preference("N-way scored", ("prompt", "completions", "scores"), comparisons.n_way, prompt=_column("prompt")),
    _preference(
        "compared completions",
        ("prompt", "completions", "preferences"),
        votes.voted("prompt"),
        prompt=_column("prompt"),
    ),
    Shape("stepwise", ("prompt", "completions", "labels"), _column("prompt"), example=readers.stepwise),
    Shape(
        "conversation trees",
        ("prompt.replies",),
        lambda row: trees.path_before_answer(row)[0],
        lambda row: trees.path_before_answer(row)[1],
        example=trees.tree_example,
        ranking=trees.tree_rankings,
    ),
    *_answered("question"),
    *_answered("instruction"),
    Shape("prompt", ("prompt",), _column("prompt")),
    Shape("prompt ids", ("prompt_ids",), lambda row: row.get("prompt", "")),
    Shape(
        "alpaca preference",
        ("instruction", "output", "chosen", "rejected"),
        _instruction(),
        "output",
        example=readers.alpaca(),
        ranking=comparisons.alpaca_preference,
        spoken=True,
    ),
    _preference(
        "instruction preference",
        ("instruction", "chosen", "rejected"),
        comparisons.alpaca_preference,
        prompt=_instruction(),
        answer="chosen",
        spoken=True,
    ),
    _preference(
        "question preference",
        ("question", "chosen", "rejected"),
        comparisons.question_preference,
        prompt=_column("question"),
        answer="chosen",
        spoken=True,
    ),
    Shape("alpaca", ("instruction", "output"), _instruction(), "output", readers.alpaca(), spoken=True),
    Shape(
        "dolly",
        ("instruction", "context", "response"),
        _instruction("context"),
        "response",
        readers.alpaca("response", "context"),
        spoken=True,
    ),
    _preference(
        "ultrafeedback",
        ("instruction", "completions"),
        comparisons.ultrafeedback,
        prompt=_column("instruction"),
        spoken=True,
    ),
    Shape(
        "seed tasks",
        ("instruction", "instances"),
        lambda row: readers.instances_prompt(row)[0],
        lambda row: readers.instances_prompt(row)[1],
        readers.instances,
        spoken=True,
    ),
    _preference(
        "SHP",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        comparisons.a_or_b("history", "human_ref_A", "human_ref_B", "labels", ("score_A", "score_B")),
        prompt=_column("history"),
        spoken=True,
    ),
    _preference(
        "A/B",
        ("input", "output_1", "output_2", "label"),
        comparisons.a_or_b("input", "output_1", "output_2", "label"),
        prompt=_column("input"),
        spoken=True,
    ),
    _preference(
        "WebGPT comparisons",
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        comparisons.scored_pair,
        prompt=comparisons.question,
        spoken=True,
    ),
    _preference(
        "summary comparisons",
        ("info", "summaries", "choice"),
        comparisons.summaries,
        prompt=comparisons.summary_prompt,
        answer=_summarised,
    ),
    Shape(
        "messages of trees",
        ("message_id", "parent_id", "text", "role"),
        lambda row: trees.path_before_answer(row)[0],
        lambda row: trees.path_before_answer(row)[1],
        example=trees.tree_example,
        ranking=trees.tree_rankings,
        gather=trees.gather_messages,
    ),
    _question("question and answer", "question", "answer"),
    _question("input and target", "input", "target"),
    _conversation("chat", ("messages",), "messages"),
    _conversation("sharegpt", ("conversations",), "conversations"),
    _preference(
        "implicit preference",
        ("chosen", "rejected"),
        comparisons.implicit_preference,
        prompt=lambda row: readers.first(comparisons.implicit_preference(row)).prompt,
        answer=lambda row: text_of_answer(readers.first(comparisons.implicit_preference(row)).completions[0]),
    ),
    Shape("prompt and answer", ("prompt", "answer"), example=readers.question_and_answer("prompt", "answer")),
    Shape("prompt and solution", ("prompt", "solution"), example=readers.question_and_answer("prompt", "solution")),
    Shape(
        "labelled texts",
        ("text", "label"),
        ranking=readers.text_pair,
        gather=readers.gather_texts,
        gather_for=("rankings",),
        advice="lmrl reward reads texts with a label, and lmrl pretrain texts without a prompt",
    ),
    Shape("text", ("text",), advice="lmrl pretrain reads texts without a prompt"),
)
"""The shapes, the more particular ones first."""


READ_BY: dict[Use, str] = {
    "examples": "lmrl sft and lmrl.data.load_examples read them",
    "rankings": "lmrl reward and lmrl.data.load_rankings read them",
    "prompts": "they are prompts alone, which lmrl rl and lmrl.data.load_prompts read",
}
"""Readers of the rows of a shape, by their use."""
LACKING: dict[Use, str] = {
    "examples": "no answer to imitate",
    "rankings": "no order of preference among several answers",
    "prompts": "no prompt",
}
"""Columns that are missing from rows that do not serve a use."""


def find_shape(column_sets: Collection[Collection[str]], use: Use = "prompts") -> Shape | None:
    """Return the first shape for this use whose columns some row has all of; see ``column_sets``."""
    fitting = (shape for shape in SHAPES if shape.serves(use))
    return next((shape for shape in fitting if any(set(shape.columns) <= set(found) for found in column_sets)), None)


def column_sets(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the distinct sets of columns that rows have, most rows have one and the same; see ``row_columns``."""
    return list(dict.fromkeys(row_columns(row) for row in rows))


def row_columns(row: Row) -> tuple[str, ...]:
    """Return the names of a row's columns, and ``prompt.replies`` where its prompt is the root of a tree."""
    prompt = row.get("prompt")
    return (*row, "prompt.replies") if isinstance(prompt, Mapping) and "replies" in prompt else tuple(row)


def recognise(
    column_sets: Collection[Collection[str]],
    where: str,
    use: Use = "prompts",
    advice: str = "",
    setting: str = "data",
) -> Shape:
    """Return the shape of rows with these columns. ``setting`` is the section whose ``columns`` map other names.

    Raises ``DataError`` with the columns found, the shapes known and the nearest of them when none fits.
    """
    shape = find_shape(column_sets, use)
    if shape is not None:
        return shape
    columns = list(dict.fromkeys(name for found in column_sets for name in found))
    candidates = [candidate for candidate in SHAPES if candidate.serves(use)]
    closest = max(candidates, key=lambda candidate: _likeness(candidate, columns))
    missing = ", ".join(repr(name) for name in closest.columns if name not in columns)
    known = "; ".join(f"{candidate.name} ({', '.join(candidate.columns)})" for candidate in candidates)
    sentences = [
        f"{where}: no known shape of {use}.",
        _other_use(columns, use),
        f"Found the columns: {', '.join(sorted(columns)) or '(none)'}.",
        f"Known shapes: {known}.",
        f"Nearest: {closest.name}, which also needs {missing}. Other names are mapped by {setting}.columns.",
        suggest(columns, use, setting),
        advice,
    ]
    raise DataError(" ".join(sentence for sentence in sentences if sentence))


def _other_use(columns: Collection[str], use: Use) -> str:
    """Say what the rows would be good for, where they are of a known shape."""
    shape = next((shape for shape in SHAPES if set(shape.columns) <= set(columns)), None)
    if shape is None:
        return ""
    read_by = shape.advice or next((reader for other, reader in READ_BY.items() if shape.serves(other)), "")
    return f"They are of the shape {shape.name} and give {LACKING[use]}; {read_by}."


def _likeness(shape: Shape, columns: Collection[str]) -> float:
    best = (
        max((SequenceMatcher(None, name, found).ratio() for found in columns), default=0.0) for name in shape.columns
    )
    return sum(best) / len(shape.columns)
