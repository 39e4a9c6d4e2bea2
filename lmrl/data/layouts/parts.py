"""Columns beside the prompt of any shape: a system text, a context, choices, tools and template variables.

Made once for a data set, because whether answers count choices from 0 or from 1 shows in all rows together.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lmrl.data.layouts import conversations as talk
from lmrl.data.layouts.mapping import PARTS
from lmrl.data.layouts.reading import Skip, is_missing, structured
from lmrl.data.records import Answer, Prompt
from lmrl.text.conversation import RESERVED, variables_of, with_variables

Row = Mapping[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BARE = re.compile(r"\(?([A-Za-z]|\d{1,2})\)?\.?")
"""An answer that means nothing without its choices: a letter or a number."""
LABELLED = re.compile(r"\s*\(?[A-Za-z0-9]{1,2}\s*[).:]\s*\S")


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
        self.base = _base(rows) if "choices" in self.names else 0
        self.numbered = False

    @property
    def spoken(self) -> tuple[str, ...]:
        """The parts that only a conversation can have."""
        return tuple(name for name in self.names if name in ("system", "tools", "chat_template_kwargs"))

    def notes(self, where: str) -> list[str]:
        """Return how numbers among the answers were read."""
        return [f"{where}: answers that are numbers count the choices from {self.base}"] if self.numbered else []

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

        Raises ``Skip`` for a letter or number beyond the choices; any other answer is returned as it is.
        """
        if "choices" not in self.names or is_missing(row.get("choices")) or not _names_a_choice(answer):
            return answer
        labels, texts = choices_of(row["choices"])
        said = str(answer).strip()
        folded = [text.strip().casefold() for text in texts]
        if said.casefold() in folded:
            place = folded.index(said.casefold())
        else:
            bare = BARE.fullmatch(said)
            if bare is None:
                return answer
            place = self._place(bare[1].upper(), labels, len(texts))
        return labels[place] if alone else _entry(labels[place], texts[place])

    def _place(self, named: str, labels: Sequence[str], count: int) -> int:
        if named in labels:
            return labels.index(named)
        self.numbered |= named.isdigit()
        place = int(named) - self.base if named.isdigit() else LETTERS.index(named)
        if not 0 <= place < count:
            raise Skip("an answer that is none of the choices", f"{named} of {count} choices")
        return place


def choices_of(value: object) -> tuple[list[str], list[str]]:
    """Return the labels and the texts of choices: a list, ``{text, label}``, or texts by their letters."""
    value = structured(value)
    if isinstance(value, Mapping):
        found = {str(name).lower(): structured(item) for name, item in value.items()}
        if isinstance(found.get("text"), list) and isinstance(found.get("label"), list):
            labels, texts = [str(item).upper() for item in found["label"]], found["text"]
        else:
            labels, texts = [str(name).upper() for name in value], list(value.values())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        texts = [item.get("text", item.get("content")) if isinstance(item, Mapping) else item for item in value]
        labels = list(LETTERS[: len(texts)])
    else:
        raise Skip("choices: not a list", f"a {type(value).__name__}")
    if len(texts) < 2 or len(texts) != len(labels) or any(is_missing(text) for text in texts):
        raise Skip("choices that are not two or more texts, each with a label")
    return labels, [str(text).strip() for text in texts]


def listed(value: object) -> list[str]:
    """Return choices as the lines of a prompt: ``A. first``; choices that bring their letters stay as they are."""
    labels, texts = choices_of(value)
    return [_entry(label, text) for label, text in zip(labels, texts, strict=True)]


def _entry(label: str, text: str) -> str:
    own = LABELLED.match(text) and text.lstrip(" (")[: len(label)].upper() == label
    return text if own else f"{label}. {text}"


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


def _names_a_choice(answer: object) -> bool:
    return isinstance(answer, str | int) and not isinstance(answer, bool)


def _base(rows: Sequence[Row]) -> int:
    """Return the number of the first choice: 1 where an answer is as high as the number of its choices, 0 otherwise."""
    found = 0
    for row in rows:
        values = [row.get(name) for name in ("answer", "completion", "output", "target", "solution")]
        said = next((str(value).strip() for value in values if _names_a_choice(value)), "")
        if said.isdigit():
            if int(said) == 0:
                return 0
            try:
                _, texts = choices_of(row.get("choices"))
            except Skip:
                continue
            found = max(found, int(int(said) == len(texts)))
    return found


def as_answer(parts: Parts, row: Row, answer: Answer) -> Answer:
    """Return an example's answer with the choice that it names; messages stay as they are."""
    return str(parts.answer(row, answer)) if isinstance(answer, str) else answer
