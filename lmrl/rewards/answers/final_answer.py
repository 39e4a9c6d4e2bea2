"""The final answer of a text as one expression: after ``####``, in a box, behind "the answer is", or at the end."""

from __future__ import annotations

import re

from lmrl.rewards.answers.plain_numbers import plain_number

MARK = "####"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SAID = re.compile(r"(?i)\b(?:answer|result|solution)\b(?:\s+(?:is|are|equals)\b|\s*[:=])[\s:*_]*")
_CLAUSE = re.compile(r",\s+(?=[a-z]{2,})|\s+(?=(?:because|since|so|which|as)\b)")
_MATH = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\$\d])\$(?!\d[\d,.]*(?:\s|$))([^$\n]+?)(?<!\\)\$", re.DOTALL
)
_NUMBER = r"[-+\N{MINUS SIGN}]?[$€£]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_LAST = re.compile(
    rf"(?<![\w.,:/^(\[{{}}\\+*×·])(?P<found>{_NUMBER}"  # noqa: RUF001
    r"(?:\s+\d+/\d+|\s*[/:]\s*\d+|[eE][-+]?\d+)?(?:\s*(?:\\?%|percent\b|per cent\b))?)"
    r"(?P<rest>[^\n\d]*)$"
)


def final_answer(text: str) -> str:
    """Return the expression that a text gives as its answer, or an empty string.

    Of prose without a mark, a box, "the answer is" or mathematics between dollars only a number is read, and only if it
    can be read whole: a plain one, a fraction, a ratio, a mixed number or a percentage.
    """
    _, mark, after = text.rpartition(MARK)
    if mark:
        return _one_line(after)
    boxes = [found.end() for found in _BOX.finditer(text)]
    if boxes:
        return _braced(text, boxes[-1])
    said = list(_SAID.finditer(text))
    if said:
        rest = _sentence(text[said[-1].end() :])
        return _mathematics(rest) or rest
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if len(lines) == 1 and not _prose(lines[0]):
        return lines[0].strip()
    found = _mathematics(text) or _number(lines[-1] if lines else "")
    return found or (lines[0].strip() if len(lines) == 1 else "")  # words are compared as words


def _one_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _braced(text: str, start: int) -> str:
    """Return the text from ``start`` to the brace that closes it; without one, nothing: the box was cut off."""
    depth = 1
    for place in range(start, len(text)):
        escaped = text[place - 1] == "\\"
        depth += (text[place] == "{") * (not escaped) - (text[place] == "}") * (not escaped)
        if not depth:
            return text[start:place].strip()
    return ""


def _sentence(text: str) -> str:
    """Return the text up to the end of its line or sentence; a point between digits ends no sentence."""
    line = _CLAUSE.split(_one_line(text))[0]
    return re.split(r"(?<=[^\d.])\.(?:\s|$)|\.\s+(?=[A-Z])", line)[0].strip().rstrip(".*_ ")


def _mathematics(text: str) -> str:
    found = [next(filter(None, match.groups())).strip() for match in _MATH.finditer(text)]
    return found[-1] if found else ""


def _prose(line: str) -> bool:
    """True if a line has words; LaTeX commands and one unit behind a number are not words."""
    if re.match(r"\s*[^\W\d_]{2,}.*(?:\d|\$|\\[(\[])", line) and not re.match(
        r"\s*(?:sin|cos|tan|log|ln|exp|sqrt)\b", line
    ):
        return True
    bare = re.sub(r"\\[A-Za-z]+(?:\{[^{}]*\})?", " ", line)
    return len(re.findall(r"[^\W\d_]{2,}", bare)) > 1


def _number(line: str) -> str:
    number = plain_number(line)
    if number is not None:
        return str(number)
    found = _LAST.search(line)
    compound = found["found"].strip() if found else ""
    return compound if re.search(r"[/:%\seE]", compound) else ""  # a plain number was judged above
