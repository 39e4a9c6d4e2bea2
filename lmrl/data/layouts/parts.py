"""Columns beside the prompt of any shape: a system text, a context, choices, tools and template variables.

Made once for a data set, because whether answers count choices from 0 or from 1 shows in all rows together.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lmrl.data.layouts import conversations as talk
from lmrl.data.layouts.choices import Choosing, listed
from lmrl.data.layouts.mapping import PARTS
from lmrl.data.layouts.reading import Skip, is_missing, structured
from lmrl.data.records import Answer, Prompt
from lmrl.text.conversation import RESERVED, variables_of, with_variables

Row = Mapping[str, Any]


MEDIA = re.compile(r"(?:.*[_ .-])?(?:image|img|picture|audio|video|pixel_values)s?(?:[_ .-]?\d+)?", re.IGNORECASE)
"""Columns that contain images, sounds or films."""


class Parts:
    """Adds a row's parts to its prompt. ``asked`` says that the prompt is a question rather than a whole prompt.

    A context or choices beside a question belong to it; beside a prompt they do only where a mapping says so, because
    the prompt may contain them already.
    """

    def __init__(self, rows: Sequence[Row], mapped: Collection[str], asked: bool) -> None:
        names = {name for row in rows for name in row}
        self.names = tuple(
            name for name in PARTS if name in names and (asked or name in mapped or name not in ("context", "choices"))
        )
        # One row with a system text or tools makes conversations of all, so that a set stays of one kind.
        self.in_turns = any(not is_missing(row.get(name)) for name in self.spoken for row in rows)
        self.choosing = Choosing(rows if "choices" in self.names else ())

    @property
    def spoken(self) -> tuple[str, ...]:
        """The parts that only a conversation can have."""
        return tuple(name for name in self.names if name in ("system", "tools", "chat_template_kwargs"))

    def notes(self, where: str) -> list[str]:
        """Return how answers that are letters or numbers of choices were read."""
        return self.choosing.notes(where)

    def prompt(self, row: Row, prompt: Prompt, used: Collection[str] = ()) -> Prompt:
        """Return the prompt with the row's parts, those in ``used`` left out. Raises ``Skip`` for a broken part."""
        names = [name for name in self.names if name not in used and not is_missing(row.get(name))]
        for name in names:
            if name == "choices":
                prompt = _asked(prompt, lambda text: f"{text}\n\n" + "\n".join(listed(row["choices"])))
            elif name == "context":
                before = _joined(row["context"])
                prompt = _asked(prompt, lambda text, before=before: text if before in text else f"{before}\n\n{text}")
        if isinstance(prompt, str) and self.in_turns:
            prompt = (talk.message("user", prompt),)
        if isinstance(prompt, str):
            return prompt
        if "system" in names:
            prompt = with_variables(talk.with_system(row, prompt), variables_of(prompt))
        return with_variables(prompt, {**variables_of(prompt), **template_variables(row, names)})

    def answer(self, row: Row, answer: Any, alone: bool = False) -> Any:
        """Return an answer that names a choice as its letter and text (the letter ``alone`` for a reward).

        Raises ``Skip`` for a letter or number that names no choice; any other answer is returned as it is.
        """
        if "choices" not in self.names or is_missing(row.get("choices")):
            return answer
        return self.choosing.answer(row["choices"], answer, alone)


def media_of(row: Row) -> str:
    """Return the column in which a row keeps an image, a sound or a film; the empty string for a row of text.

    The name of a file counts; a number, such as the identifier of an image, does not.
    """
    named = (name for name in row if MEDIA.fullmatch(name))
    return next((name for name in named if not is_missing(row[name]) and not isinstance(row[name], int | float)), "")


def refuse_media(row: Row) -> None:
    """Raise ``Skip`` for a row that means nothing without its image, sound or film."""
    name = media_of(row)
    if name:
        raise Skip(f'a column {name!r}, which no text model reads (columns.unused = "{name}" reads rows without it)')


def template_variables(row: Row, names: Collection[str] = ("tools", "chat_template_kwargs")) -> dict[str, Any]:
    """Return what a row gives its chat template. Raises ``Skip`` for tools or variables that are no JSON."""
    variables: dict[str, Any] = {}
    if "chat_template_kwargs" in names and not is_missing(row.get("chat_template_kwargs")):
        given = structured(row["chat_template_kwargs"])
        if not isinstance(given, Mapping):
            raise Skip("chat_template_kwargs: not an object", f"a {type(given).__name__}")
        reserved = next((name for name in given if name in RESERVED), None)
        if reserved:
            raise Skip(f"chat_template_kwargs with {reserved!r}, which the stage sets itself")
        # A table holds the keys of all rows in every row, empty ones as None.
        variables |= {str(name): value for name, value in given.items() if value is not None}
    if "tools" in names and not is_missing(row.get("tools")):
        given = structured(row["tools"])
        given = [given] if isinstance(given, Mapping) else given
        tools = [structured(tool) for tool in given] if isinstance(given, Sequence) else [given]
        if isinstance(given, str) or not all(isinstance(tool, Mapping) for tool in tools):
            raise Skip("tools: not a list of JSON schemas")
        variables["tools"] = [_schema(tool) for tool in tools]
    return variables


def _schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool as chat templates take it; OpenAI's older ``functions`` have no wrapper."""
    plain = {name: value for name, value in tool.items() if value is not None}
    return plain if "function" in plain or "type" in plain else {"type": "function", "function": plain}


def _asked(prompt: Prompt, change: Any) -> Prompt:
    """Return a prompt whose text, or whose last user message, is changed."""
    if isinstance(prompt, str):
        return str(change(prompt))
    last = max((place for place, item in enumerate(prompt) if item["role"] == "user"), default=None)
    if last is None:
        raise Skip("no user message that a context or choices could belong to")
    changed = {**prompt[last], "content": change(prompt[last]["content"])}
    return with_variables([*prompt[:last], changed, *prompt[last + 1 :]], variables_of(prompt))


def _joined(value: object) -> str:
    value = structured(value)
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Sequence):
        return "\n\n".join(_joined(item) for item in value if not is_missing(item))
    raise Skip("context: not text", f"a {type(value).__name__}")


def as_answer(parts: Parts, row: Row, answer: Answer) -> Answer:
    """Return an example's answer with the choice that it names; messages stay as they are."""
    return str(parts.answer(row, answer)) if isinstance(answer, str) else answer
