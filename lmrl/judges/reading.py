"""Rules for reading a judge's reply that verdicts and grades share.

Reasoning is removed first. A value counts only where the reply states it in an explicit form, and all explicit forms
must agree. Anything else is unreadable, with a reason that is counted. Nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")

NO_TEXT = "no text"
OPEN_REASONING = "unfinished reasoning"
NONE_STATED = "no value stated"
CONTRADICTION = "contradicting values"
NOT_A_VALUE = "no value behind the label"

_THINK = r"(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad)"
_OPEN = rf"(?:[<◁]\|?(?:\w+:)?{_THINK}\|?[>▷]|\[{_THINK}\])"
_CLOSE = rf"(?:[<◁]\|?/\|?(?:\w+:)?{_THINK}\|?[>▷]|\[/{_THINK}\])"
_BLOCK = re.compile(rf"{_OPEN}(?:(?!{_OPEN}|{_CLOSE}).)*{_CLOSE}", re.IGNORECASE | re.DOTALL)
_ORPHAN = re.compile(rf"\A.*{_CLOSE}", re.IGNORECASE | re.DOTALL)
_STILL_OPEN = re.compile(_OPEN, re.IGNORECASE)
_CHANNEL, _FINAL = "<|channel|>", "<|channel|>final<|message|>"
"""Harmony's channels (gpt-oss), where a server passes them on: only the final one is the reply."""

_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\u226b\uff1e\uff1a\u2212", "''\"\">>:-")
_MARKUP = (
    (re.compile("[\u2705\u2714\u2611\u2b50\ufe0f\U0001f31f\U0001f3c6\U0001f947\U0001f44d\U0001f449]"), ""),
    (re.compile(r"<B>(.*?)</B>", re.DOTALL), r"\1"),
    (re.compile(r"</?(?:b|i|u|em|strong|p|br|code|span|div|s)\s*/?>|<\|[^|>\s]+\|>|<(?:bos|eos|end_of_turn)>"), ""),
    (re.compile(r"(?<=[A-Za-z])_(?=[A-Za-z0-9])"), " "),
    (re.compile(r"```[a-zA-Z]*|[*_`$]|\\[()\[\]]"), ""),
    (re.compile(r"""\[\[?([^\[\]\n]*)\]\]?"""), r"\1"),
    (re.compile(r"""(?<!\w)(?:<([AB])>|\(([AaBb])\)|['"]([AaBb])['"])(?!\w)"""), r"\1\2\3"),
)
_BOXED = re.compile(r"\\boxed\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\{)?([^{}]*)\}\}?")
_BRACKETS = re.compile(r"\[\[([^\[\]\n]*)\]\]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")
_LEAD = r"(?:(?:my|the|our|final|overall|so|thus|therefore|hence|in conclusion)\b[ \t,:]*)*"
_DOUBTFUL = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|can't|if|whether|unless|would|could|should|might|may|unclear)\b|n't\b|[?\"]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Reading(Generic[Value]):
    """A value that a reply states, or None with the reason why there is none."""

    value: Value | None
    reason: str = ""


@dataclass(frozen=True)
class Form(Generic[Value]):
    """Explicit forms of one kind of value.

    ``names`` are label words that may stand alone before the value ("Verdict B"), ``colon_names`` label words that
    need a colon ("Winner: B"), ``keys`` those of JSON objects and of tags; all are patterns. ``whole`` reads a short
    text that is nothing but a value, ``start`` a text that begins with one.
    """

    names: Sequence[str]
    colon_names: Sequence[str]
    keys: Sequence[str]
    whole: Callable[[str], Value | None]
    start: Callable[[str], Value | None]


def without_reasoning(text: str) -> str | None:
    """Return a reply without its reasoning blocks; None if one was never closed.

    >>> without_reasoning("<think>Verdict: A</think>Verdict: B")
    'Verdict: B'
    """
    if _CHANNEL in text:
        _, final, text = text.rpartition(_FINAL)
        if not final:
            return None
    while True:
        shorter = _BLOCK.sub(" ", text)
        if shorter == text:
            break
        text = shorter
    text = _ORPHAN.sub("", text)  # the chat template had opened the block
    return None if _STILL_OPEN.search(text) else text.strip()


def plain(text: str) -> str:
    """Return a text without Markdown, HTML emphasis, marks of approval and brackets around single letters."""
    text = text.translate(_QUOTES)
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text, without the quotation marks around them."""
    return [part for piece in _SENTENCE_END.split(text) if (part := piece.strip().strip("\"'").strip())]


def agreed(values: Sequence[Value | None]) -> Reading[Value]:
    """Return the one value that all forms state."""
    if any(value is None for value in values):
        return Reading(None, NOT_A_VALUE)
    if any(value != values[0] for value in values):
        return Reading(None, CONTRADICTION)
    return Reading(values[0])


def stated(text: str, form: Form[Value]) -> Reading[Value] | None:
    """Return the value of labels, JSON objects, boxes, double brackets and tags; None if the text has none of them."""
    text, objects = _without_json(text, form.keys)
    values: list[Value | None] = [form.whole(plain(value)) for value in objects]
    values += [form.whole(plain(match[1])) for match in _BOXED.finditer(text)]
    values += [value for match in _BRACKETS.finditer(text) if (value := form.whole(plain(match[1]))) is not None]
    tag = re.compile(rf"<({'|'.join(form.keys)})>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
    values += [value for match in tag.finditer(text) if (value := form.whole(plain(match[2]))) is not None]
    text = plain(re.sub(rf"</?(?:{'|'.join(form.keys)})>", " ", _BOXED.sub(r"\1", text), flags=re.IGNORECASE))
    anchored = [form.start(text[match.end() :]) for match in _labels(form).finditer(text)]
    if anchored:
        # A heading or a remark may bear the label first; the last one must state a value, and no other may contradict.
        values += [value for value in anchored[:-1] if value is not None] + anchored[-1:]
    inline: Iterator[Value] = _inline(text, form)
    values.extend(inline)
    return agreed(values) if values else None


def _labels(form: Form[Any]) -> re.Pattern[str]:
    bare, colon = "|".join(form.names), "|".join([*form.names, *form.colon_names])
    mark = r"""(?:\s+is\b\s*:?|["']?\s*[:=]|\s+-+>?(?=\s)|\s*[→\u2013\u2014])\s*["']?"""
    return re.compile(
        rf"""(?:^|(?<=[.!?])["')\]]*\s)[ \t>\#"'{{(|-]*(?:\d+[.)]\s*)?{_LEAD}"""
        rf"""(?:(?:{colon})\b{mark}|(?:{bare})\b(?!{mark})["']?(?=\s))[\s"'(]*""",
        re.IGNORECASE | re.MULTILINE,
    )


def _inline(text: str, form: Form[Value]) -> Iterator[Value]:
    """Yield the values of labels in the middle of a sentence, unless the sentence denies, doubts or quotes them."""
    label = re.compile(
        rf"\b(?:{'|'.join([*form.names, *form.colon_names])})\b(?:\s+is\b\s*:?|\s*[:=])\s*", re.IGNORECASE
    )
    for sentence in sentences(text):
        for match in label.finditer(sentence):
            value = None if _DOUBTFUL.search(sentence[: match.end()]) else form.start(sentence[match.end() :])
            if value is not None:
                yield value


def _without_json(text: str, keys: Sequence[str]) -> tuple[str, list[str]]:
    """Return a text without the JSON objects that hold one of the keys, and the values of these keys."""
    decoder, kept, values, place = json.JSONDecoder(), [], list[str](), 0
    while (start := text.find("{", place)) >= 0:
        kept.append(text[place:start])
        try:
            found, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            found, end = None, start + 1
        held = list(_values(found, keys))
        values += held
        kept.append(" " if held else text[start:end])
        place = end
    return "".join([*kept, text[place:]]), values


def _values(found: Any, keys: Sequence[str]) -> Iterator[str]:
    if isinstance(found, Mapping):
        for key, value in found.items():
            if _named(str(key), keys) and not isinstance(value, Mapping | list):
                yield "" if value is None else str(value)
            else:
                yield from _values(value, keys)
    elif isinstance(found, list):
        for item in found:
            yield from _values(item, keys)


def _named(key: str, keys: Sequence[str]) -> bool:
    name = re.sub(r"[_\s-]+", " ", key).strip()
    return re.fullmatch(rf"(?:(?:my|the|final|overall)\s+)*(?:{'|'.join(keys)})", name, re.IGNORECASE) is not None
