"""From a row's columns to its prompt: the column or shape that holds it, and the template around it."""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmrl.data.layouts.conversations import looks_like_messages
from lmrl.data.layouts.parts import Parts, refuse_media
from lmrl.data.layouts.readers import read_prompt
from lmrl.data.layouts.reading import Skip
from lmrl.data.layouts.rows import Chat, as_message, plain_prompt
from lmrl.data.layouts.shapes import Shape, column_sets, find_shape, recognise, row_columns
from lmrl.data.layouts.unmapped import ANSWERS, refuse_unmapped, unused_columns
from lmrl.data.records import Prompt
from lmrl.errors import DataError, unknown

PROMPT_COLUMNS = ("prompt", "prompt_ids")
"""The prompt itself: handed to rewards as ``prompts``, not among the columns."""
REWARD_ARGUMENTS = ("prompts", "responses")
"""Names that a reward's own arguments have; a column may not take them."""

SETTING = "prompts.file"
"""The section of a recipe that maps the columns of prompts."""
SHOWN_TO_REWARDS = "part of the prompt (rewards get them by name)"
"""The place of columns that are not read, in the note that names them."""
ADVICE = 'Or say where the prompt is: column = "name", or template = "Q: {name}\\nA:".'


@dataclass(frozen=True)
class RowPrompt:
    """A row's prompt as it was found: text, chat messages, or token ids (then ``content`` is their text or empty).

    ``answer`` is the one to check against, where the row's shape has it anywhere but in a column of that name. A text
    that is ``spoken``, an instruction or a question, is a user's message for a model that has a chat template.
    """

    content: Prompt
    ids: list[int] | None = None
    answer: Any = None
    spoken: bool = False


CONVERSATIONS = ("chat", "sharegpt")
"""Shapes of whole conversations."""


def all_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of every column that some row has, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


class PromptReader:
    """Reads the prompt out of rows that have these columns.

    Raises ``DataError`` when there is no such column, the template is broken or names a column that is not there, or
    neither is given and the columns make no known shape.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        where: str,
        column: str = "",
        template: str = "",
        chat: Chat = "auto",
        mapped: Collection[str] = (),
    ) -> None:
        columns, found = all_columns(rows), column_sets(rows)
        self.where, self.column, self.template, self.chat = where, column, template, chat
        if column and column not in columns:
            raise DataError(f"{where}: {unknown('column', column, columns)}")
        self.shape: Shape | None = (
            find_shape(found) if column or template else recognise(found, where, advice=ADVICE, setting=SETTING)
        )
        self.has_answer = self.shape is not None and bool(self.shape.answer) and "answer" not in columns
        self.kept = [name for name in columns if name not in (*PROMPT_COLUMNS, *REWARD_ARGUMENTS)]
        self.notes = [
            f"{where}: the column {name!r} was left out, because a reward has an argument of that name"
            for name in REWARD_ARGUMENTS
            if name in columns
        ]
        self.answered = 0
        self.template_columns = self._template_columns({*columns, "prompt", *(["answer"] if self.has_answer else [])})
        asked = not column and not template and self.shape is not None and self.shape.spoken
        self.parts = Parts(rows, mapped, asked)
        used = {*self.parts.names, *self.template_columns, *PROMPT_COLUMNS, "prompt_messages", *ANSWERS, column}
        if self.shape is not None and not column:
            used |= {*self.shape.columns, self.shape.answer if isinstance(self.shape.answer, str) else "answer"}
            used |= {"input", "history"} if "instruction" in self.shape.columns else set()
        if not template:
            implicit = not column and self.shape is not None and self.shape.name == "implicit preference"
            named = column or (self.shape.columns[0] if self.shape else "prompt")
            refuse_unmapped(rows, used, where, SETTING, implicit, named)
        self.notes += unused_columns(rows, used, where, SETTING, SHOWN_TO_REWARDS)

    @property
    def name(self) -> str:
        """Shape of the rows, in a word or two."""
        if self.column:
            return f"column {self.column}"
        return self.shape.name if self.shape else "template"

    @property
    def described(self) -> str:
        """Shape of the rows, with the columns concerned."""
        if self.column or self.shape is None:
            described = self.name
        else:
            described = f"{self.shape.name} ({', '.join(self.shape.columns)})"
        return f"{described}, through a template" if self.template and described != "template" else described

    def read(self, row: Mapping[str, Any], number: int) -> RowPrompt | None:
        """Return the prompt of row ``number`` (from 1), or None when it is empty. Raises ``Skip`` for a broken one."""
        where = f"{self.where}, row {number}"
        refuse_media(row)
        if self.template:
            return self._wrapped(self._fill(row, where), row)
        content = self._content(row, where)
        if not self.column and self.name in CONVERSATIONS and self._answer(row) is not None:
            self.answered += 1
        if not self.column and row.get("prompt_ids") is not None:
            return _token_ids(row["prompt_ids"], content, where)
        if content is None or content == [] or (isinstance(content, str) and not content.strip()):
            return None
        if not isinstance(content, str) and not looks_like_messages(content):  # a number, say
            raise DataError(
                f"{where}: the prompt is a {type(content).__name__}; expected text, or messages of role and content."
            )
        return self._wrapped(read_prompt(content), row)

    def answer_notes(self) -> list[str]:
        """Return a note on conversations whose last message is the answer to grade, not the beginning of one."""
        if not self.answered:
            return []
        return [
            f"{self.where}: {self.answered} conversations end with the assistant; their last message is the answer "
            "(the column 'answer'), not part of the prompt. To let the model continue it, name the column prompt."
        ]

    def columns(self, rows: Sequence[Mapping[str, Any]], prompts: Sequence[RowPrompt]) -> dict[str, list[Any]]:
        """Return the columns that go to the reward; a row without one of them has None there."""
        found = {name: [row.get(name) for row in rows] for name in self.kept}
        if self.has_answer or "choices" in self.parts.names:
            found["answer"] = [prompt.answer for prompt in prompts]
        return found

    def _wrapped(self, prompt: Prompt | None, row: Mapping[str, Any]) -> RowPrompt | None:
        """Return the prompt as messages or as text, as ``chat`` says, with its answer."""
        if prompt is None:
            return None
        prompt = self.parts.prompt(row, prompt)
        prompt = as_message(prompt, self.chat, spoken=False)
        answer = self.parts.answer(row, self._answer(row), alone=True)
        content = plain_prompt(prompt) if self.chat == "off" else prompt
        return RowPrompt(content, answer=answer, spoken=self.chat == "auto" and self._is_spoken(row))

    def _is_spoken(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row asks somebody, by its shape or by the mark of the file that it was read from."""
        if self.template:
            return False
        shape = self.shape
        by_shape = shape is not None and shape.spoken and (not self.column or self.column in shape.columns)
        return by_shape or bool(getattr(row, "spoken", False))

    def _answer(self, row: Mapping[str, Any]) -> Any:
        if not self.has_answer or self.shape is None:
            return row.get("answer")
        answer = self.shape.answer
        if isinstance(answer, str):
            return row.get(answer)
        try:
            return answer(row)
        except (Skip, KeyError):  # the prompt is good without an answer, or comes from elsewhere
            return None

    def _content(self, row: Mapping[str, Any], where: str) -> object:
        if self.column:
            return row.get(self.column)
        if self.shape is None or self.shape.prompt is None:
            return ""
        present = row_columns(row)
        missing = [name for name in self.shape.columns if name not in present]
        if missing:
            raise DataError(f"{where}: no {missing[0]!r}; other rows have it, and {self.shape.name} rows need it.")
        return self.shape.prompt(row)

    def _template_columns(self, columns: set[str]) -> list[str]:
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None]
        except ValueError as error:
            raise DataError(
                f"the prompt template {self.template!r} is broken ({error}); a brace that is meant as one is doubled."
            ) from error
        if self.template and not names:
            raise DataError(f"the prompt template {self.template!r} names no column, so all prompts would be the same.")
        for name in names:  # a plain name only: "{a.b}" and "{a[0]}" are not columns, and reach into objects
            if name not in columns:
                raise DataError(f"the prompt template: {unknown('column', name, columns)}")
        return names

    def _fill(self, row: Mapping[str, Any], where: str) -> str | None:
        values = dict(row)
        if "prompt" in self.template_columns:
            values["prompt"] = self._content(row, where)
        if "answer" in self.template_columns and self.has_answer:
            values["answer"] = self._answer(row)
        used = {name: "" if values.get(name) is None else values[name] for name in self.template_columns}
        for name, value in used.items():
            if not isinstance(value, str | int | float):
                kind = type(value).__name__
                raise DataError(f"{where}: the column {name!r} holds a {kind}; a template takes text and numbers.")
        if not any(str(value).strip() for value in used.values()):
            return None
        return self.template.format_map(used)


def _token_ids(ids: object, text: object, where: str) -> RowPrompt | None:
    if not isinstance(ids, Sequence) or not all(isinstance(item, int) for item in ids):
        raise DataError(f"{where}: prompt_ids is not a list of whole numbers.")
    return RowPrompt(text if isinstance(text, str) else "", list(ids)) if ids else None
