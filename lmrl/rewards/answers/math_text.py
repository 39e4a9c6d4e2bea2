"""Answers as people write them, turned into LaTeX that can be parsed whole: units, percentages, powers, containers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_DELIMITED = re.compile(r"\$+(?P<dollars>[^$]*)\$+|\\\((?P<round>.*)\\\)|\\\[(?P<square>.*)\\\]", re.DOTALL)
_SYMBOLS = {
    "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/",  # noqa: RUF001
    "π": r"\pi ",
    "∞": r"\infty ", "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",  # noqa: RUF001
    "∅": r"\emptyset ", "∈": r"\in ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "°": r"^\circ ",
}  # fmt: skip
_SPACES = re.compile(r"\\[,;:! ]|~|\\q?quad|\\(?:left|right|displaystyle)(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<![\d.,(\[{])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,])")
_MIXED = re.compile(r"(?<![\d.^_{])(\d+)\s+(\d+)/(\d+)$")
_EXPONENT = re.compile(r"(?<![A-Za-z])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?![\w.])")
_POWER = re.compile(r"(?<=\d)\s*(?:x|\*)\s*10\s*(?:\^|\*\*)\s*\{?([-+]?\d+)\}?")
_PERCENT = re.compile(r"(?<=[\d})])\s*(?:\\?%|percent|per\s?cent|pct)$", re.IGNORECASE)
_UNIT = re.compile(
    r"(?<=[\d}).])\s*(?:\\(?:text|mathrm|mbox|rm|operatorname)\s*\{\s*(?P<latex>[^{}]*)\}"
    r"|(?P<words>(?<=\s)[A-Za-z][A-Za-z. ]*|[A-Za-z]{2,}))"
    r"(?P<power>\^\{?\d\}?)?$"
)
_DEGREES = re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?$")
_ASSIGNED = re.compile(r"^\s*[A-Za-z](?:_\{?\w+\}?)?(?:\([a-z]\))?\s*(?:=|\\in(?![A-Za-z]))\s*(?=.)")
_CALCULATED = re.compile(r"^[^A-Za-z=<>,]*=\s*(?=[^=]+$)")
_DECIMAL = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_FUNCTIONS = "sin cos tan cot sec csc log ln exp sqrt pi arcsin arccos arctan sinh cosh tanh max min gcd lcm"
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SAME = {
    "kilometer": "km", "kilometre": "km", "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm",
    "millimeter": "mm", "millimetre": "mm", "mile": "mi", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft",
    "yard": "yd",
    "kilogram": "kg", "gram": "g", "milligram": "mg", "pound": "lb", "ounce": "oz", "liter": "l", "litre": "l",
    "milliliter": "ml", "millilitre": "ml", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h",
    "degree": "deg", "dollar": "$", "usd": "$", "euro": "€", "cent": "¢",
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """An answer: LaTeX without delimiters, its unit, and whether it was a percentage."""

    latex: str
    unit: str = ""
    percent: bool = False

    @property
    def text(self) -> bool:
        """True for words, which are compared as words."""
        return any(word.casefold() not in _FUNCTIONS.split() for word in _WORD.findall(_without_commands(self.latex)))

    @property
    def number(self) -> Fraction | None:
        """The value of a plain decimal, exactly."""
        bare = self.latex.replace(" ", "")
        if not _DECIMAL.fullmatch(bare):
            return None
        return Fraction(bare) / (100 if self.percent else 1)


def written(answer: str) -> Written:
    """Return an answer in the form in which it is compared."""
    text = answer.strip()
    for _ in range(3):
        text = text.strip().rstrip(".").strip("*`")
        if (found := _DELIMITED.fullmatch(text)) is not None:
            text = next(part for part in found.groups() if part is not None).strip()
    if (inner := re.fullmatch(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", text)) is not None:
        text = inner[1].strip()
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = _SPACES.sub(" ", text)
    text = _CALCULATED.sub("", text, count=1)
    if text.count("=") <= 1:
        text = _ASSIGNED.sub("", text, count=1)
    text, percent, unit = _measured(text)
    text = _THOUSANDS.sub(lambda found: re.sub(r"[,{}]", "", found[0]), text)
    text = _POWER.sub(r" \\cdot 10^{\1}", _EXPONENT.sub(r"\1 \\cdot 10^{\2}", text))
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text.strip())
    if text.startswith("{") and text.endswith("}") and "," in text:  # a set without the backslashes of LaTeX
        text = rf"\{{{text[1:-1]}\}}"
    return Written(text.strip(), unit, percent)


def _measured(text: str) -> tuple[str, bool, str]:
    """Return the text without its percent sign and unit."""
    if (currency := re.match(r"^([-+]?)\s*\\?([$€£¥])\s*(?=[\d.])", text)) is not None:
        return text[: currency.end(1)] + text[currency.end() :], False, currency[2]
    if _PERCENT.search(text):
        return _PERCENT.sub("", text), True, ""
    if _DEGREES.search(text):
        return _DEGREES.sub("", text), False, "deg"
    found = _UNIT.search(text)
    if found is None:
        return text, False, ""
    words = (found["latex"] or found["words"] or "").casefold().strip(" .").split()
    bare = text[: found.start()]
    if words and words[0] in _SCALES:
        bare, words = f"{bare} \\cdot 10^{{{_SCALES[words[0]]}}}", words[1:]
    if words in (["percent"], ["per", "cent"]):
        return bare, True, ""
    unit = " ".join(_SAME.get(word, _SAME.get(word.removesuffix("s"), word.removesuffix("s"))) for word in words)
    return bare, False, unit + re.sub(r"[{}]", "", found["power"] or "")


def _without_commands(latex: str) -> str:
    return re.sub(r"\\[A-Za-z]+", " ", latex)


def bracketed(one: str, other: str) -> tuple[str, str]:
    """Return both with the same brackets where one is a bare list: ``3, 4`` is ``(3, 4)`` beside a point."""
    kinds = [_brackets(text) for text in (one, other)]
    if kinds[0] and not kinds[1] and "," in other:
        return one, f"{kinds[0][0]}{other}{kinds[0][1]}"
    if kinds[1] and not kinds[0] and "," in one:
        return f"{kinds[1][0]}{one}{kinds[1][1]}", other
    return one, other


def same_kind(one: str, other: str) -> bool:
    """True unless one alone is an equation, or one is a set in braces and the other a point or an interval."""
    if ("=" in one) != ("=" in other):
        return False
    kinds = {pair[0][-1] for pair in map(_brackets, (one, other)) if pair}
    return not ("{" in kinds and len(kinds) > 1)


def _brackets(text: str) -> tuple[str, str] | None:
    if re.match(r"^[(\[]", text) and re.search(r"[)\]]$", text) and "," in text:
        return text[0], text[-1]
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return r"\{", r"\}"
    return None
