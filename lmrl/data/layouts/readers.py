"""From a row to a prompt with the one answer that it has; ``lmrl.data.layouts.comparisons`` reads several answers.

Which columns make which shape is said in ``lmrl.data.layouts.shapes``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmrl.data.layouts import conversations as talk
from lmrl.data.layouts.reading import (
    Answered,
    Found,
    Reader,
    Skip,
    cell,
    filled,
    is_missing,
    list_of,
    native,
    number,
    optional_text,
    text_of,
)
from lmrl.data.records import Answer, Prompt
from lmrl.errors import DataError

Row = Mapping[str, Any]


def chat(column: str) -> Reader:
    """Return a reader of whole conversations: the last assistant message is the answer."""

    def read(row: Row) -> Found:
        prompt, answer = talk.before_answer(read_conversation(row, column))
        yield Answered(prompt, (answer,), (0,), used=(column,))

    return read


def read_conversation(row: Row, column: str) -> talk.Messages:
    """Return the conversation in a column, with the row's own system text before it."""
    return talk.with_system(row, talk.read_messages(cell(row, column), column))


def conversation_prompt(column: str) -> Callable[[Row], talk.Messages]:
    """Return a reader of a conversation's prompt: up to its last assistant message, or whole where there is none."""

    def read(row: Row) -> talk.Messages:
        messages = read_conversation(row, column)
        return talk.before_answer(messages)[0] if _is_answered(messages) else messages

    return read


def conversation_answer(column: str) -> Callable[[Row], str | None]:
    """Return a reader of a conversation's last assistant message, None where there is none."""

    def read(row: Row) -> str | None:
        messages = read_conversation(row, column)
        return talk.text_of_answer(talk.before_answer(messages)[1]) if _is_answered(messages) else None

    return read


def _is_answered(messages: talk.Messages) -> bool:
    return any(item["role"] == "assistant" for item in messages)


def first(found: Found) -> Answered:
    """Return what a reader finds first. Raises ``Skip`` where that is left out."""
    item = next(iter(found))
    if isinstance(item, Skip):
        raise item
    return item


def read_asked(row: Row, asked: str) -> Prompt:
    """Return what a row asks in this column: a prompt, a question, or an instruction with its input and history."""
    if asked == "instruction":
        return instruction(row)
    return read_prompt(cell(row, asked)) if asked == "prompt" else filled(cell(row, asked), asked)


def asked_columns(asked: str) -> tuple[str, ...]:
    """Return the columns that ``read_asked`` uses."""
    return (asked, "input", "system", "history") if asked == "instruction" else (asked,)


def completion(row: Row, asked: str = "prompt") -> Found:
    """Read a prompt and its completion, each a text or messages."""
    prompt = read_asked(row, asked)
    answer = _filled(read_answer(cell(row, "completion"), prompt, "completion"))
    yield Answered(prompt, (answer,), (0,), used=(*asked_columns(asked), "completion"))


def is_good(row: Row) -> bool:
    """Return what the label of a row says. Raises ``Skip`` when it says neither."""
    label = cell(row, "label")
    good = _good(label)
    if good is None:
        raise Skip("a label that is neither true nor false", repr(label)[:40])
    return good


GOOD = ("true", "yes", "good", "desirable", "positive")
BAD = ("false", "no", "bad", "undesirable", "negative")
LABELS = 0.75
"""Fraction of a column ``label`` that must say good or bad; other rows are left out, and below it these are classes."""


def _good(label: object) -> bool | None:
    word = label.strip().lower() if isinstance(label, str) else ""
    if word in (*GOOD, *BAD):
        return word in GOOD
    value = number(label)
    return value == 1.0 if value in (1.0, 0.0, -1.0) else None


def labels_of(rows: Sequence[Row]) -> bool:
    """Return whether the rows' ``label`` says of the answers that they are good or bad, and is no class of its own."""
    values = [row["label"] for row in rows if not is_missing(row.get("label"))]
    return bool(values) and sum(_good(value) is not None for value in values) >= LABELS * len(values)


def refuse_classes(rows: Sequence[Row], where: str) -> None:
    """Raise ``DataError`` where the rows' ``label`` is a class or a grade: 1 would be good and 0 bad by accident."""
    values = [native(row["label"]) for row in rows if not is_missing(row.get("label"))]
    kinds = list(dict.fromkeys(map(repr, values)))
    graded = len(kinds) > 2 or any(number(value) is not None and _good(value) is None for value in values)
    if values and graded and not labels_of(rows):
        shown = ", ".join(value[:20] for value in kinds[:6])
        raise DataError(
            f"{where}: the labels are {shown}; expected true or false, 1 or 0, yes or no, or good or bad for each "
            "answer. Convert them, for example with grade >= 4 as true."
        )


def gather_texts(rows: Sequence[Row]) -> list[tuple[int, dict[str, Any] | Skip]]:
    """Return pairs of a good and a bad text, each in the order of the rows; the shorter side is repeated."""
    found: list[tuple[int, dict[str, Any] | Skip]] = []
    sides: dict[bool, list[tuple[int, str]]] = {True: [], False: []}
    for place, row in enumerate(rows, start=1):
        try:
            sides[is_good(row)].append((place, filled(row.get("text"), "text")))
        except Skip as skip:
            found.append((place, skip))
    good, bad = sides[True], sides[False]
    if not (good and bad):
        return [*found, *((place, Skip("a text without any of the other label")) for place, _ in good + bad)]
    for place in range(max(len(good), len(bad))):
        better, worse = good[place % len(good)], bad[place % len(bad)]
        number_of_longer = (better if len(good) >= len(bad) else worse)[0]
        found.append((number_of_longer, {"prompt": "", "completions": [better[1], worse[1]], "ranks": [0, 1]}))
    return sorted(found, key=lambda item: item[0])


def text_pair(row: Row) -> Found:
    """Read a pair that ``gather_texts`` made: two texts without a prompt, the better first."""
    yield Answered("", tuple(row["completions"]), (0, 1), used=("text", "label", "prompt", "completions", "ranks"))


def gather_labelled(rows: Sequence[Row]) -> list[tuple[int, dict[str, Any] | Skip]]:
    """Return one N-way row for every prompt that has good and bad completions, with the number of its first row."""
    groups: dict[str, list[tuple[int, Row, bool]]] = {}
    found: list[tuple[int, dict[str, Any] | Skip]] = []
    for place, row in enumerate(rows, start=1):
        try:
            good, key = is_good(row), repr(cell(row, "prompt"))
            cell(row, "completion")
            groups.setdefault(key, []).append((place, row, good))
        except Skip as skip:
            found.append((place, skip))
    for group in groups.values():
        if len({good for _, _, good in group}) == 1:
            found += [(place, Skip("a prompt whose completions all have one label")) for place, _, _ in group]
            continue
        completions = [row.get("completion") for _, row, _ in group]
        ranks = [0 if good else 1 for _, _, good in group]
        found.append((group[0][0], {"prompt": group[0][1]["prompt"], "completions": completions, "ranks": ranks}))
    return sorted(found, key=lambda item: item[0])


def stepwise(row: Row) -> Found:
    """Read a solution in steps as one answer, where every step is labelled as right."""
    steps = [filled(step, "step") for step in list_of(cell(row, "completions"), "completions")]
    labels = list_of(cell(row, "labels"), "labels")
    if len(labels) != len(steps):
        raise Skip("not as many labels as steps", f"{len(labels)} labels, {len(steps)} steps")
    if not all(number(label) == 1.0 for label in labels):
        raise Skip("a solution with a step that is labelled as wrong")
    if not steps:
        raise Skip("no completions")
    joined = "".join(steps) if any(step[:1].isspace() or step[-1:].isspace() for step in steps) else "\n".join(steps)
    yield Answered(read_prompt(cell(row, "prompt")), (joined,), (0,), used=("prompt", "completions", "labels"))


def instruction(row: Row, asked: str = "instruction", extra: str = "input") -> Prompt:
    """Return an instruction with its input behind an empty line, and earlier turns and a system text before it."""
    task, given = filled(row.get(asked), asked), optional_text(row, extra)
    text = f"{task}\n\n{given}" if given.strip() else task
    turns = [] if row.get("history") is None else list_of(row["history"], "history")
    earlier = [turn for pair in turns for turn in _turns(pair)]
    system = optional_text(row, "system")
    if not earlier and not system.strip():
        return text
    first = [talk.message("system", system)] if system.strip() else []
    return (*first, *earlier, talk.message("user", text))


def _turns(pair: object) -> list[Any]:
    both = list_of(pair, "history")
    if len(both) != 2:
        raise Skip("a history that is not made of pairs")
    return [talk.message(role, filled(text, "history")) for role, text in zip(("user", "assistant"), both, strict=True)]


def alpaca(output: str = "output", extra: str = "input") -> Reader:
    """Return a reader of an instruction, perhaps with an input, and its output."""

    def read(row: Row) -> Found:
        used = ("instruction", extra, output, "system", "history")
        yield Answered(instruction(row, extra=extra), (filled(row.get(output), output),), (0,), used=used)

    return read


def question_and_answer(asked: str, answer: str) -> Reader:
    """Return a reader of a question, or a prompt, and the answer in another column."""

    def read(row: Row) -> Found:
        prompt = read_prompt(cell(row, asked)) if asked == "prompt" else filled(cell(row, asked), asked)
        text, note = _answer_text(cell(row, answer), answer)
        yield Answered(prompt, (text,), (0,), used=(asked, answer), note=note)

    return read


def _answer_text(value: object, what: str) -> tuple[str, str]:
    """Return an answer as text, and a note where that is a choice: of several accepted answers the first is taken.

    Several answers are a list, ``{text: [...]}`` (SQuAD) or ``{value, aliases}`` (TriviaQA).
    """
    note = ""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("text", "value") if not is_missing(value.get(key))), [])
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        found = [item for item in value if not is_missing(item)]
        if not found:
            raise Skip(f"no {what}")
        value, note = found[0], "the first of several accepted answers is taken" if len(found) > 1 else ""
    if isinstance(value, bool):
        return str(value), "an answer that is true or false is taken as the text True or False"
    return (str(value) if isinstance(value, int | float) else filled(value, what)), note


def instances(row: Row) -> Found:
    """Read a self-instruct task: one example for each of its instances."""
    for instance in list_of(cell(row, "instances"), "instances"):
        try:
            if not isinstance(instance, Mapping):
                raise Skip("an instance that is not an object")
            prompt = instruction({"instruction": row.get("instruction"), "input": instance.get("input")})
            answer = filled(instance.get("output"), "output")
            yield Answered(prompt, (answer,), (0,), used=("instruction", "instances"))
        except Skip as skip:
            yield skip


def instances_prompt(row: Row) -> tuple[Any, Any]:
    """Return the prompt of a self-instruct task's first instance, and its output."""
    first = next(iter(list_of(cell(row, "instances"), "instances")), None)
    given = first if isinstance(first, Mapping) else {}
    return instruction({"instruction": row.get("instruction"), "input": given.get("input")}), given.get("output")


def read_prompt(value: object) -> Prompt:
    """Return a prompt: a text, or messages; the last may be the beginning of the answer. Raises ``Skip`` otherwise."""
    if talk.is_text(value):
        return filled(value, "prompt")
    return talk.read_messages(value, "prompt")


def read_answer(value: object, prompt: Prompt, what: str) -> Answer:
    """Return an answer to the prompt: a text, or messages, which may repeat the prompt."""
    if value is None or talk.is_text(value):
        return text_of(value, what)
    messages = talk.read_messages(value, what)
    asked = prompt if isinstance(prompt, tuple) else (talk.message("user", prompt),)
    if talk.alike(messages[: len(asked)], asked):
        messages = messages[len(asked) :]
    if not messages or messages[-1]["role"] != "assistant":
        raise Skip(f"a {what} that does not end with the assistant")
    return talk.shortest(messages)


def _filled(answer: Answer) -> Answer:
    return filled(answer, "completion") if isinstance(answer, str) else answer
