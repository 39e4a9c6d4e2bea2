"""Reading the grade that a judge gives one response, by the same rules as verdicts."""

from __future__ import annotations

import re

from lmrl.judges.reading import (
    NO_TEXT,
    NONE_STATED,
    OPEN_REASONING,
    Form,
    Reading,
    agreed,
    plain,
    sentences,
    stated,
    without_reasoning,
)

GRADE_LINE = "Grade:"
OUTSIDE = "a grade outside the scale"

_NUMBER = re.compile(
    r"(?P<number>[-+]?(?:\d+(?:\.\d+)?|\.\d+))(?:\s*\(?(?:/|out\s+of)\s*(?P<most>\d+(?:\.\d+)?))?"
    r"(?:\s+(?:points?|stars?)\b)?",
    re.IGNORECASE,
)
# A range ("7-8"), a decimal comma, a percentage or a letter behind the number makes it another thing than a grade.
_TAIL = re.compile(
    r"""["')\]}>]*(?:\s*\Z|[ \t]*\n|[.!;:](?=[\s"')\]}]|\Z)|,(?=\s)(?!\s*\d)|\s+\(|\s+-+\s|\s*[\u2013\u2014](?!\s*\d)
    |\s+(?:because|since|as|for|due)\b)""",
    re.IGNORECASE | re.VERBOSE,
)
_SENTENCE = re.compile(
    r"(?:(?:overall|so|thus|therefore|hence|i\s+(?:think|believe))[,:]?\s+)*"
    r"(?:i(?:\s+(?:would|will)|'d|'ll)?\s+(?:give|rate|grade|score)\s+(?:it|this|(?:this|the)\s+response)(?:\s+an?|\s+as)?"
    r"|(?:this|the)\s+response\s+(?:deserves|gets|earns)(?:\s+an?)?)\s+"
    r"(?P<grade>[-+]?[\d.]+(?:\s*(?:/|out\s+of)\s*[\d.]+)?)(?:,?\s+(?:because|since|as|for|due)\b.*)?",
    re.IGNORECASE,
)


def read_grade(text: str, lowest: float, highest: float) -> Reading[float]:
    """Return the grade that a reply states in an explicit form, else None with the reason.

    Explicit forms: a label ("Grade: 4", "Score: 4/5"), JSON, ``[[4]]``, ``\\boxed{4}``, tags; else a whole sentence ("I
    give it a 4."); else a reply, or its first or last line, that is only a number. A fraction must have ``highest`` as
    its denominator. A grade outside the scale, a range and two different grades are unreadable.

    >>> read_grade("Two errors. Grade: 3/5", 1, 5).value, read_grade("Grade: 3-4", 1, 5).value
    (3.0, None)
    """
    visible = without_reasoning(text)
    if visible is None:
        return Reading(None, OPEN_REASONING)
    if not visible:
        return Reading(None, NO_TEXT)

    def taken(match: re.Match[str] | None) -> float | None:
        if match is None or (match["most"] and float(match["most"]) != highest):
            return None
        return float(match["number"])

    def whole(part: str) -> float | None:
        return taken(_NUMBER.fullmatch(part.strip().strip("\"'()<>[]{}").rstrip(".!,;").strip()))

    def start(part: str) -> float | None:
        match = _NUMBER.match(part.lstrip("<"))
        return taken(match) if match and _TAIL.match(match.string, match.end()) else None

    found = stated(visible, Form(("grade",), ("score", "rating", "mark"), ("grade", "score", "rating"), whole, start))
    if found is None:
        parts = sentences(plain(visible))
        matches = [match for part in parts if (match := _SENTENCE.fullmatch(part.rstrip(".!")))]
        said: list[float | None] = [whole(match["grade"]) for match in matches]
        bare = [whole(part) for part in parts]
        if not said and parts and (bare[0] is not None or bare[-1] is not None):
            said = [value for value in bare if value is not None]
        found = agreed(said) if said else Reading(None, NONE_STATED)
    if found.value is not None and not lowest <= found.value <= highest:
        return Reading(None, OUTSIDE)
    return found
