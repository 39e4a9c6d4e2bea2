"""Choices of a question, and answers that name one of them by its letter, its number or its text.

An answer such as 2 or "A" may be the place of one choice and the text of another, so all rows decide together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmrl.data.layouts.reading import Skip, is_missing, native, structured

Row = Mapping[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BARE = re.compile(r"\(?([A-Za-z]|\d{1,2}(?=(?:\.0)?\)?\.?$))(?:\.0)?\)?\.?")
"""An answer that means nothing without its choices: a letter or a number, which a table may store as a float."""
LABELLED = re.compile(r"\s*\(?[A-Za-z0-9]{1,2}\s*[).:]\s*\S")
ANSWERS = ("answer", "completion", "output", "target", "solution")
"""Columns whose answers may name a choice."""


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


def bare(answer: object) -> str:
    """Return the letter or number that an answer consists of, and the empty string for any other answer."""
    answer = native(answer)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return ""
    found = BARE.fullmatch(str(answer).strip())
    return found[1].upper() if found else ""


@dataclass(frozen=True)
class _Named:
    """A bare answer with the places of the choice that it names by letter or number, and by text; None for none."""

    place: int | None
    text: int | None
    is_number: bool


class Choosing:
    """Reader of answers that name choices, made for all rows of a data set."""

    def __init__(self, rows: Sequence[Row]) -> None:
        told = [found for found in map(_told, rows) if found]
        self.base = _base(told)
        named = [self._named(*one) for one in told]
        by_place = sum(one.text is None for one in named if one.place is not None)
        by_text = sum(one.place is None for one in named if one.text is not None)
        self.by_text: bool | None = None if bool(by_place) == bool(by_text) else by_text > 0
        """True if bare answers are texts of choices, False if letters or numbers; None if the rows do not show it."""
        self.mixed = by_place > 0 and by_text > 0
        self.digits_are_texts = all(isinstance(given, str) for given, _, _ in told)
        self.counted = self.texts = 0

    def notes(self, where: str) -> list[str]:
        """Return how answers that are letters or numbers were read."""
        counted = f"{where}: answers that are numbers count the choices from {self.base}"
        texts = f"{where}: {self.texts} answers that are a letter or a number were read as the text of a choice"
        return [*([counted] if self.counted else []), *([texts] if self.texts else [])]

    def answer(self, choices: object, answer: Any, alone: bool) -> Any:
        """Return an answer that names a choice as its letter and text (the letter ``alone`` for a reward).

        Raises ``Skip`` for a letter or number that names no choice, or two different ones. Any other answer is
        returned as it is.
        """
        given = native(answer)
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            return answer
        labels, texts = choices_of(choices)
        if not bare(given):
            place = _place_of_text(given, texts)
            if place is None:
                return answer
        else:
            place = self._chosen(self._named(given, labels, texts), given, len(texts))
        return labels[place] if alone else _entry(labels[place], texts[place])

    def _chosen(self, named: _Named, given: object, count: int) -> int:
        if named.place is None and named.text is None:
            raise Skip("an answer that is none of the choices", f"{given} of {count} choices")
        by_text = self.by_text
        if by_text is None:
            if self.mixed and None not in (named.place, named.text) and named.place != named.text:
                raise Skip("an answer that is the text of one choice and the letter or number of another", str(given))
            # Text digits are texts as often as numbers; a JSON number and a letter are places.
            by_text = named.is_number and self.digits_are_texts
        first, second = (named.text, named.place) if by_text else (named.place, named.text)
        if first is None:
            first, by_text = second, not by_text
        self.texts += by_text
        self.counted += not by_text and named.is_number
        assert first is not None, "one of the two names a choice"
        return first

    def _named(self, given: object, labels: Sequence[str], texts: Sequence[str]) -> _Named:
        said = bare(given)
        if said in labels:
            return _Named(labels.index(said), _place_of_text(given, texts), False)
        place = int(said) - self.base if said.isdigit() else LETTERS.index(said)
        return _Named(place if 0 <= place < len(texts) else None, _place_of_text(given, texts), said.isdigit())


Told = tuple[object, list[str], list[str]]


def _told(row: Row) -> Told | None:
    """Return a row's bare answer with the labels and texts of its choices."""
    given = next((native(row[name]) for name in ANSWERS if bare(row.get(name))), None)
    if given is None:
        return None
    try:
        return (given, *choices_of(row.get("choices")))
    except Skip:
        return None


def _base(told: Sequence[Told]) -> int:
    """Return the number of the first choice: 1 where an answer is as high as the number of its choices, 0 otherwise.

    Answers that are also the text of a choice decide only where there are no others.
    """
    numbers = [
        (int(bare(given)), len(texts), _place_of_text(given, texts) is not None)
        for given, labels, texts in told
        if bare(given).isdigit() and bare(given) not in labels
    ]
    sure = [one for one in numbers if not one[2]] or numbers
    return int(any(said == count for said, count, _ in sure) and all(said > 0 for said, _, _ in sure))


def _place_of_text(given: object, texts: Sequence[str]) -> int | None:
    """Return the place of the choice with this text; a whole number that a table stored as a float has no point."""
    said, folded = str(given).strip().casefold(), [text.casefold() for text in texts]
    without_point = said.removesuffix(".0") if bare(said) else said
    return next((folded.index(text) for text in (said, without_point) if text in folded), None)
