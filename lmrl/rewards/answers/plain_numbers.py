"""Reading one plain number from a text, strictly: a number that cannot be read whole is not read at all.

A plain number is an optional sign, an optional currency symbol and digits with an optional decimal point; commas stand
only between groups of thousands. ``1/2``, ``2:3``, ``50%``, ``1e3``, ``5km``, ``3 million``, ``2 to 3``, ``(1, 2)`` and
the operands of a calculation are not plain numbers.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

MARK = "####"
_CORE = re.compile(
    r"(?P<sign>[-+])?(?:\\?[$€£¥])?(?P<inner>[-+])?(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)
_MINUS = str.maketrans(dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{NON-BREAKING HYPHEN}\N{HYPHEN}", "-"))
_OPENING = re.compile(
    r"^(?:[(\[{\"'“‘*_`]|\\[(\[]|\$(?=[-+.]?[\d\\]|\$)|\\(?:boxed|fbox|text|textbf|mathbf|mathrm)\{)+"  # noqa: RUF001
)
_CLOSING = re.compile(r"(?:[.,;:?)\]}\"'”’*_`。]|\\[)\]]|\$)+$")  # noqa: RUF001
_RELATIONS = re.compile(r"\s*(?:<=>|=>|->|→|⇒|==|=|≈)\s*")
_LABEL = re.compile(r"(?<=[^\W\d_])(\*{0,3}|_{0,3}):(\*{0,3}|_{0,3})(?=\S)")
_OPERATORS = frozenset("+-*×·⋅÷/^%‰°<>≤≥±∓~√!|&")  # noqa: RUF001
_LINKS = frozenset(("to", "through", "of", "in", "over", "per", "by", "vs", "plus", "minus", "times"))
_ALTERNATIVES = frozenset(("or", "and", "&"))
_NEGATIONS = frozenset(("minus", "negative", "plus"))
_SCALES = """hundred thousand million billion trillion dozen percent pct k m bn mn halves half thirds
quarters fourths fifths tenths hundredths thousandths pi π e i x squared cubed factorial"""
_UNITS = """km m dm cm mm nm mi ft in yd kg g mg lb lbs oz t l ml dl cl h hr hrs min mins s sec secs ms
km/h kmh mph kwh wh w kw mw v a hz khz mhz ghz kb mb gb tb pa kpa j kj cal kcal c f n mol rad
deg usd eur gbp"""


def plain_number(text: str) -> Decimal | None:
    """Return the number that the text ends with, or None if it is missing or not a plain number.

    After the last ``####`` it is the first number there; otherwise the last number of the text.

    >>> plain_number("5 - 3 = 2, so she has $1,002.50.")
    Decimal('1002.50')
    """
    _, mark, after = text.rpartition(MARK)
    lines = [_tokens(line) for line in (after if mark else text).translate(_MINUS).splitlines()]
    lines = [line for line in lines if any(map(_numeric, line))]
    if not lines:
        return None
    tokens = lines[0] if mark else lines[-1]
    places = [place for place, token in enumerate(tokens) if _numeric(token)]
    return _read(tokens, places[0] if mark else places[-1])


def _tokens(line: str) -> list[str]:
    """Return the words of a line; a relation such as ``=`` and a label's colon stand alone."""
    return _LABEL.sub(r"\1: \2", _RELATIONS.sub(" = ", line)).split()


def _numeric(token: str) -> bool:
    return any(unicodedata.category(mark) in ("Nd", "Nl", "No") for mark in token)


def _read(tokens: list[str], place: int) -> Decimal | None:
    token = tokens[place]
    opened = _OPENING.match(token)
    bare = token[opened.end() :] if opened else token
    core = _CLOSING.sub("", bare)
    found = _CORE.fullmatch(core)
    if found is None or (found["sign"] and found["inner"]):
        return None
    before, after = tokens[:place], tokens[place + 1 :]
    if _belongs_to_what_precedes(before, opened is not None, bare[len(core) :]):
        return None
    if bare == core and _belongs_to_what_follows(after):
        return None
    number = Decimal(found["digits"].replace(",", ""))
    return -number if "-" in (found["sign"], found["inner"]) else number


def _belongs_to_what_precedes(before: list[str], opens: bool, closing: str) -> bool:
    """True for operands, ranges, ratios, tuples and intervals."""
    if not before:
        return False
    last, rest = before[-1], before[:-1]
    word = last.casefold().strip("(")
    if all(mark in _OPERATORS for mark in last) and not _emphasis(last, rest[-1:]):
        return True
    if word in _NEGATIONS or last[-1] in "+/×÷^±√<>~":  # noqa: RUF001
        return True
    if (
        rest
        and _numeric(rest[-1])
        and (word in _LINKS or word in _ALTERNATIVES or last == ":" or rest[-2:][:1] == ["out"])
    ):
        return True
    if (word == "of" and rest[-1:] == ["out"]) or (
        word == "and" and len(rest) > 1 and rest[-2].casefold() == "between"
    ):
        return True
    if _numeric(last) and last[-1] not in ".,;:)]}*_":  # 3 1/2, 1 234
        return True
    closes = any(mark in ")]}" for mark in closing)
    return closes and not opens and _numeric(last) and last[-1] in ",;"


def _belongs_to_what_follows(after: list[str]) -> bool:
    """True for an operator, a scale or the symbol of a unit behind the number."""
    if not after or after[0] == "=":
        return False
    word = after[0].casefold().strip(".,;:!?)]}*_$\\")
    if (
        word in _SCALES.split()
        or word in _UNITS.split()
        or after[0][:2] in (r"\%", r"\t", r"\c", r"\p", r"\s", r"\m", r"\f")
    ):
        return True
    if word == "per" and after[1:] and after[1].casefold().startswith("cent"):
        return True
    return (
        after[0][0] in _OPERATORS and not _emphasis(after[0], after[1:2]) and not (after[0] == "-" and len(after) > 1)
    )


def _emphasis(token: str, beside: list[str]) -> bool:
    """True for the asterisks of a bullet or of Markdown emphasis; beside an operand they multiply."""
    return set(token) <= {"*"} and (not beside or (token != "*" and not _numeric(beside[0])))
