"""Reading which of two responses a judge prefers, and the grade that it gives one. Nothing is guessed.

An article is never taken for a letter.
"""

from __future__ import annotations

import re
from typing import Literal

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

FIRST, SECOND, TIE = "A", "B", "TIE"
Verdict = Literal["A", "B", "TIE"]

_NOUN = r"(?:answer|response|option|assistant|candidate|completion|choice|reply|output|text|model|solution)"
_PLACES = {"a": FIRST, "1": FIRST, "first": FIRST, "1st": FIRST, "former": FIRST, "b": SECOND, "2": SECOND, "c": TIE}


def _side(number: int) -> str:
    """Return a pattern of one response: "Answer b", "response_2", "the second one", or a capital letter alone."""
    return (
        rf"(?:the\s+)?(?:{_NOUN}[\s-]+(?P<noun{number}>[ab12])\b(?![./]\d)|(?P<letter{number}>(?-i:[AB]))\b"
        rf"|(?P<place{number}>first|second|former|latter|1st|2nd)\b(?:\s+(?:one|{_NOUN})\b)?)"
    )


_EQUAL = (
    r"(?:both\s+(?:are\s+)?)?(?:(?:roughly\s+|about\s+)?equally\s+(?:good|bad|strong|weak|helpful|poor)|equal|the\s+same"
    r"|of\s+(?:equal|the\s+same)\s+quality)(?![\w-]|\s+as\b)|no\s+preference(?![\w-])"
)
_TIE = rf"(?:(?:an?\s+)?(?:tie|tied|draw)(?![\w-])(?:\s+between\s.*)?|{_EQUAL})"
_HOW = r"(?:(?:clearly|slightly|strongly|somewhat|definitely|still)\s+)?"
_ADVERB = r"(?:(?:clearly|slightly|much|far|somewhat|definitely|overall|the|marginally|significantly|a\s+bit)\s+)*"
_BEST = rf"(?:better|best|stronger|superior|preferable|preferred|winner)\b(?:\s+(?:one|{_NOUN}))?"
_BETTER = rf"{_ADVERB}(?:{_BEST}|more\s+\w+)"
_WORSE = rf"{_ADVERB}(?:worse|weaker|inferior|less\s+\w+)"
_LEAD = (
    r"(?:(?:overall|so|thus|therefore|hence|finally|ultimately|in\s+(?:conclusion|summary)|to\s+conclude"
    r"|in\s+my\s+(?:view|opinion|judge?ment)|i(?:\s+|\s*'d\s+)(?:think|believe|judge|find|conclude|say|would\s+say)(?:\s+that)?"
    r"|(?:based\s+on|given)\s+(?:this|that|these|the\s+above)(?:\s+\w+)?"
    r")[,:]?\s+)*"
)
_REASON = r"(?:,?\s+(?:because|since|as|for|due\s+to|given|in\s+that)\b(?!.*\b(?:but|however|yet)\b).*)?"
_CHOOSE = rf"(?:(?:would|'d|will)\s+)?{_HOW}(?:prefer|choose|pick|select|favou?r|vote\s+for|go\s+with)"
_THEY = (
    rf"(?:it'?s|it\s+is|it\s+was|this\s+is|that'?s|they'?re|they\s+are"
    rf"|i\s+(?:call|consider|judge|rate)\s+(?:it|this|them|the\s+two|both)(?:\s+to\s+be)?"
    rf"|(?:both|the|the\s+two)(?:\s+{_NOUN}s)?\s+are)"
)

_BARE = re.compile(rf"{_side(1)}|(?P<tie>{_TIE})", re.IGNORECASE | re.DOTALL)
_LETTER = re.compile(r"[abc]", re.IGNORECASE)
_COMPARED = re.compile(rf"{_side(1)}\s*(?P<sign>[>≻]+|[<≺]+|=+|[≈~])\s*{_side(2)}", re.IGNORECASE)
_SENTENCES = tuple(
    re.compile(rf"{_LEAD}{pattern}{_REASON}", re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"{_side(1)}\s+(?:is|was)\s+{_BETTER}(?:\s+than\s+{_side(2)})?",
        rf"{_side(1)}\s+(?:wins|won)",
        rf"{_side(1)}\s+(?:beats|outperforms)\s+{_side(2)}",
        rf"i\s*{_CHOOSE}\s+{_side(1)}(?:\s+(?:over|to)\s+{_side(2)})?",
        rf"(?P<worse>){_side(1)}\s+(?:is|was)\s+{_WORSE}\s+than\s+{_side(2)}",
        rf"{_THEY}\s+(?P<tie>{_TIE})",
        rf"(?P<tie>neither)(?:\s+{_NOUN}|\s+one)?\s+(?:is|was)\s+{_BETTER}(?:\s+than\s+the\s+other)?",
        rf"(?:so|thus|therefore|hence)[,:]?\s+{_side(1)}",
    )
)
# What may follow a verdict behind its label. An article is followed by a noun or an adjective, which stands not here.
_TAIL = re.compile(
    rf"""["')\]}}]*(?:
        \s*\Z
      | [ \t]*\n(?![ \t]*(?-i:[a-z]))
      | [.!;:](?=[\s"')\]}}]|\Z)
      | ,(?=\s)(?!\s*(?:and\s+|or\s+)?(?:{_NOUN}\s+)?[ab]\b)
      | \s*[\u2013\u2014] | \s+-+\s
      | \s+\((?![^)]*\b(?:tie|tied|draw|equal|both)\b)
      | \s+(?:wins|won|because|since|as|over|for|due|by)(?![-\w])
      | \s+(?:is|was)\s+{_BETTER}(?![^.\n]*\b(?:but|however|yet|although|though)\b)
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def read_verdict(text: str) -> Reading[str]:
    """Return "A", "B" or "TIE" if a reply states it in an explicit form, else None with the reason.

    Explicit forms: a label ("Verdict: B", "Winner: Answer B", "Verdict: a tie"), JSON, ``[[B]]``, ``\\boxed{B}``,
    tags; else a whole sentence ("Response A is better than B.", "I prefer the second.", "A > B", "It's a tie."); else
    a reply, or its first or last line, that is nothing but a verdict. Labels override sentences. Forms that contradict
    each other make the reply unreadable.

    >>> read_verdict("Verdict: a tie").value, read_verdict("A better one exists.").value
    ('TIE', None)
    """
    visible = without_reasoning(text)
    if visible is None:
        return Reading(None, OPEN_REASONING)
    if not visible:
        return Reading(None, NO_TEXT)
    found = stated(visible, _FORM)
    if found is not None:
        return found
    cleaned = plain(visible).strip()
    value = _whole(cleaned)
    if value is not None:
        return Reading(value)
    parts = sentences(cleaned)
    bare = [_bare(part) for part in parts]
    said = [value for part in parts if (value := _sentence(part)) is not None]
    if said:
        return agreed([*said, *(value for value in bare[-1:] if value)])
    if parts and (bare[0] or bare[-1]):
        return agreed([value for value in bare if value])
    return Reading(None, NONE_STATED)


def read_group(match: re.Match[str]) -> Reading[str]:
    """Return the verdict in group 1 of a pattern of the user's own.

    A pattern that ends with its group leaves open what follows, so the letter is read by the common rule.
    """
    found = match[1] or ""
    value = _start(match.string[match.start(1) :]) if match[1] and match.end() == match.end(1) else _whole(found)
    return Reading(value, "" if value else NONE_STATED)


def _whole(text: str) -> str | None:
    """Read a text that is nothing but a verdict; a letter may be small here."""
    text = text.strip().strip("\"'().<>[]{} \n").rstrip("!,;:").strip()
    if _LETTER.fullmatch(text):
        return _PLACES[text.lower()]
    return _bare(text) or _sentence(text)


def _bare(text: str) -> str | None:
    text = text.strip().rstrip(".!").strip("\"'()")
    compared = _COMPARED.fullmatch(text)
    if compared:
        return _compared(compared)
    match = _BARE.fullmatch(text)
    return _named(match) if match else None


def _sentence(text: str) -> str | None:
    text = text.strip().rstrip(".!").strip()
    for pattern in _SENTENCES:
        match = pattern.fullmatch(text)
        if match is None:
            continue
        named = _named(match)
        groups = match.groupdict()
        other = _place(groups, 2)
        if other == named:  # "A is better than A"
            return None
        return _swapped(named) if "worse" in groups else named
    return None


def _start(text: str) -> str | None:
    """Read a text that begins with a verdict and goes on with something that shows it to be one."""
    text = text.lstrip("\"'( \t\n")
    for pattern, read in ((_COMPARED, _compared), (_OPENING, _named)):
        match = pattern.match(text)
        if match and _TAIL.match(text, match.end()):
            return read(match)
    first = sentences(text)[:1]
    return _sentence(first[0]) if first else None


_OPENING = re.compile(
    rf"(?:it'?s\s+|it\s+is\s+)?(?P<tie>(?:an?\s+)?(?:tie|tied|draw)(?![\w-])(?:\s+between\s+[^.\n]*)?|{_EQUAL})"
    rf"|(?P<letter0>[abc])\b|{_side(1)}",
    re.IGNORECASE,
)
_FORM: Form[str] = Form(
    names=("verdict",),
    colon_names=(
        "winner",
        "judge?ment",
        "decision",
        "preference",
        "preferred",
        "better",
        "result",
        "pick",
        "(?:final\\s+)?(?:answer|choice)",
        f"(?:better|best|preferred|winning)\\s+{_NOUN}",
    ),
    keys=(
        "verdict",
        "winner",
        "answer",
        "choice",
        "decision",
        "preference",
        "preferred",
        "better",
        "best",
        "judgment",
        f"(?:better|best|preferred|chosen|winning)\\s+{_NOUN}",
    ),
    whole=_whole,
    start=_start,
)


def _named(match: re.Match[str]) -> str:
    groups = match.groupdict()
    if groups.get("tie"):
        return TIE
    return _PLACES[groups["letter0"].lower()] if groups.get("letter0") else _place(groups, 1)


def _place(groups: dict[str, str | None], number: int) -> str:
    words = (groups.get(f"{kind}{number}") for kind in ("noun", "letter", "place"))
    word = next(filter(None, words), "")
    return _PLACES.get(word.lower(), SECOND) if word else ""


def _compared(match: re.Match[str]) -> str | None:
    first, second = _place(match.groupdict(), 1), _place(match.groupdict(), 2)
    if first == second:
        return None
    sign = match["sign"][0]
    return TIE if sign in "=≈~" else first if sign in ">≻" else second


def _swapped(verdict: str) -> str:
    return SECOND if verdict == FIRST else FIRST


GRADE_LINE = "Grade:"
OUTSIDE = "a grade outside the scale"

_NUMBER = re.compile(
    r"(?P<number>[-+]?(?:\d+(?:\.\d+)?|\.\d+))(?:\s*\(?(?:/|out\s+of)\s*(?P<most>\d+(?:\.\d+)?))?"
    r"(?:\s+(?:points?|stars?)\b)?",
    re.IGNORECASE,
)
# A range ("7-8"), a decimal comma, a percentage or a letter behind the number makes it another thing than a grade.
_GRADE_TAIL = re.compile(
    r"""["')\]}>]*(?:\s*\Z|[ \t]*\n|[.!;:](?=[\s"')\]}]|\Z)|,(?=\s)(?!\s*\d)|\s+\(|\s+-+\s|\s*[\u2013\u2014](?!\s*\d)
    |\s+(?:because|since|as|for|due)\b)""",
    re.IGNORECASE | re.VERBOSE,
)
_GRADED = re.compile(
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
        return taken(match) if match and _GRADE_TAIL.match(match.string, match.end()) else None

    found = stated(visible, Form(("grade",), ("score", "rating", "mark"), ("grade", "score", "rating"), whole, start))
    if found is None:
        parts = sentences(plain(visible))
        matches = [match for part in parts if (match := _GRADED.fullmatch(part.rstrip(".!")))]
        said: list[float | None] = [whole(match["grade"]) for match in matches]
        bare = [whole(part) for part in parts]
        if not said and parts and (bare[0] is not None or bare[-1] is not None):
            said = [value for value in bare if value is not None]
        found = agreed(said) if said else Reading(None, NONE_STATED)
    if found.value is not None and not lowest <= found.value <= highest:
        return Reading(None, OUTSIDE)
    return found
