"""``multiple_choice``: True where the letter that the response chooses is the answer."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmrl.errors import SettingsError
from lmrl.rewards.answers.base import AnswerReward, Unreadable

_BOX = re.compile(
    r"\\(?:boxed|fbox)\s*\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(?\s*([A-Za-z])\s*(?:[).]?\s*\}|[).:]\}?\s)"
)
_QUOTED = r"[\s:*_`\"'\u2018\u2019\u201c\u201d$>]*(?:\\\(\s*)?"
_SAID = re.compile(
    r"(?:(?i:\b(?:answer|choice|option)\b(?:\s+(?:is|are|would be|must be|should be)\b)?\s*[:=]?)"
    r"|\bI\s+(?i:choose|pick|select)\b)"
    rf"{_QUOTED}(?:(?i:option|choice|letter|answer)\s+)?{_QUOTED}(?:\\(?:text|textbf|mathbf|mathrm)\{{)?"
    r"(?P<open>[(\[]?)\s*(?P<letter>[A-Za-z])(?P<close>\s*[)\]}])?(?=(?P<rest>[^\n]*))"
)
_LINE = re.compile(
    r"^[\s*_`\"'$>#-]*(?P<open>[(\[]?)(?P<letter>[A-Za-z])(?P<close>[)\].:]?)(?P<rest>[^\n]*)$", re.MULTILINE
)
_IN_BRACKETS = re.compile(r"[(\[]([A-Za-z])[)\]]")
_ENDS = re.compile(
    r"^(?:[*_`\"'\u2019\u201d$}]*)(?:\\\)|<|\s*$|\s*[.,;:!?)\]-](?:\W|\s|$)|\s*[\N{EM DASH}\N{EN DASH}]|\s*\()"
)
_REASON = re.compile(r"^[*_`\"'$}]*\s+(?:because|since|as|for|which|is|with|due|given|based|by)\b", re.IGNORECASE)
_MORE = re.compile(
    r"^[*_`\"'$})\]]*\s*(?:,|/|&|\+|and\b|or\b|, and\b|, or\b)\s*(?:option\s+)?[(\[*_]*([A-Za-z])"
    r"(?![A-Za-z']|\.[A-Za-z])",
    re.IGNORECASE,
)
_VERB = r"(?:is|was|are|seems|looks|can|must|does)"
_WRONG = r"(?:wrong|incorrect|not|false|impossible|eliminated|excluded|ruled)"
_DENIED = re.compile(rf"^[\s*_`\"'$)\]}}.:]*(?:{_VERB}n['\u2019]t|cannot|{_VERB}\b[^.;,\n]*\b{_WRONG})\b")
_RIGHT = re.compile(
    r"(?<![\w'])(?P<letter>[A-Z])[)\]*_`]*\s+is\s+(?:the\s+)?(?:correct|right|best)(?:\s+(?:answer|choice|option))?"
    r"(?=[ \t*_`]*(?:[.,;!)\n]|\Z)|\s+(?:because|since|as|and)\b)"
)
_DOUBTED = re.compile(r"\b(?:not|never|if|whether|unless|neither|nor|why)\b|n['\u2019]t\b", re.IGNORECASE)


@dataclass
class MultipleChoiceSettings:
    """Settings of the reward ``multiple_choice``."""

    column: str = "answer"
    """Column of the data that contains the answer: a letter ("B", "(B)", "B."), the number of the option (see first),
    or the option's text where choices is set."""
    choices: str = ""
    """Column of the data that contains the options: a list, or a mapping with the keys text and label. Empty: the
    setting letters."""
    letters: str = "ABCDEFGHIJ"
    """Letters that name an option where choices is empty; other letters choose nothing."""
    first: int = 0
    """Number of the first option in answers that are numbers: 0 (as in MMLU) or 1."""
    right: float = 1.0
    """Score of a right answer."""
    wrong: float = 0.0
    """Score of a wrong answer, and of a response that chooses several letters."""
    missing: float = 0.0
    """Score of a response that chooses no letter."""

    def __post_init__(self) -> None:
        self.letters = self.letters.upper()
        if not self.letters or len(set(self.letters)) < len(self.letters) or not set(self.letters) <= set(_ALL):
            raise SettingsError(f"letters is {self.letters!r}; expected different letters from A to Z")


_ALL = string.ascii_uppercase


class MultipleChoice(AnswerReward[tuple[str, str]]):
    """Compares the letter that a response chooses with the answer's."""

    name = "multiple_choice"

    def __init__(self, settings: MultipleChoiceSettings) -> None:
        super().__init__(settings, settings.missing)
        self.settings = settings

    @property
    def reads_columns(self) -> tuple[str, ...]:
        """Columns that the reward reads."""
        return (self.column, self.settings.choices) if self.settings.choices else (self.column,)

    def read(self, answer: Any, row: Mapping[str, Any]) -> tuple[str, str]:
        """Return the answer's letter and all letters."""
        letters, options = self._options(row)
        found = self._letter(answer, letters, options)
        if found not in letters or not found:
            raise Unreadable(f"expected one of the letters {letters}" + (", or an option's text" if options else ""))
        return found, letters

    def score(self, response: str, answer: tuple[str, str]) -> float:
        """Return the score of a response."""
        right, letters = answer
        chosen = chosen_letter(response, letters)
        if chosen is None:
            return self.settings.missing
        return self.right if chosen == right else self.wrong

    def _options(self, row: Mapping[str, Any]) -> tuple[str, list[str]]:
        if not self.settings.choices:
            return self.settings.letters, []
        given = row.get(self.settings.choices)
        labels: list[str] = []
        if isinstance(given, Mapping):
            labels = [str(label).upper() for label in given.get("label", [])]
            given = given.get("text")
        tolist: Any = getattr(given, "tolist", None)  # a numpy array, as parquet files give
        given = tolist() if callable(tolist) else given
        if not isinstance(given, list | tuple) or not 0 < len(given) <= len(_ALL):
            raise Unreadable(f"the column {self.settings.choices!r} contains no list of 1 to {len(_ALL)} options")
        if labels and all(len(label) == 1 and label in _ALL for label in labels):
            return "".join(labels), [str(one) for one in given]
        return _ALL[: len(given)], [str(one) for one in given]

    def _letter(self, answer: Any, letters: str, options: list[str]) -> str:
        if isinstance(answer, bool) or answer is None:
            return ""
        if not isinstance(answer, str):
            try:
                number = float(answer)
            except (TypeError, ValueError):
                return ""
            place = int(number) - self.settings.first if number.is_integer() else -1
            return letters[place] if 0 <= place < len(letters) else ""
        if answer.strip().isdecimal() and not any(answer.strip() == option.strip() for option in options):
            return self._letter(int(answer), letters, options)
        bare = answer.strip().strip("()[].:*\"' ").upper()
        if len(bare) == 1 and bare in letters:
            return bare
        texts = [" ".join(option.casefold().split()) for option in options]
        wanted = " ".join(answer.casefold().split())
        if texts.count(wanted) == 1:
            return letters[texts.index(wanted)]
        return chosen_letter(answer, letters) or ""


def chosen_letter(response: str, letters: str) -> str | None:
    """Return the letter that a response chooses, "" if it chooses several, None if it chooses none.

    Read are, in this order: a box; "the answer is B", "Answer: (B)"; a line that is or begins with "B", "(B)", "B)",
    "**B**", "B. Paris"; "B is correct"; one letter in brackets within the text. A letter that the text calls wrong is
    not chosen. The last box or statement counts. An article ("A dog")
    or the pronoun I is no letter, and a lower-case letter counts only in a box, in brackets or alone.
    """
    boxes = _BOX.findall(response)
    if boxes:
        return boxes[-1].upper() if boxes[-1].upper() in letters else None
    said = [found for found in (_stated(match, letters) for match in _SAID.finditer(response)) if found is not None]
    if said:
        return said[-1]
    lines = [match for match in _LINE.finditer(response) if _stands_alone(match)]
    found = {match["letter"].upper() for match in lines if match["letter"].upper() in letters}
    if any(_more(match["close"] + match["rest"]) for match in lines):
        return ""
    if not found:
        found = {match["letter"] for match in _RIGHT.finditer(response) if not _doubted(response, match)}
        found &= set(letters)
    if not found:
        marked = [match for match in _IN_BRACKETS.finditer(response) if not _DENIED.match(response[match.end() :])]
        found = {match[1].upper() for match in marked if match[1].upper() in letters}
    return next(iter(found)) if len(found) == 1 else ("" if found else None)


def _stated(match: re.Match[str], letters: str) -> str | None:
    """Return the letter behind "the answer is": "" for several, None for a word or a letter that names no option."""
    letter, rest = match["letter"], match["rest"]
    if rest[:1].isalnum() or (rest[:1] in ("'", "\N{RIGHT SINGLE QUOTATION MARK}") and rest[1:2].isalpha()):
        return None
    marked = bool(match["open"] and match["close"])
    if letter.upper() not in letters or _DENIED.match(rest):
        return None
    if not marked and not _ENDS.match(rest) and not _REASON.match(rest) and not match["close"]:
        article = letter in "AaIi" or letter.islower()
        if (article and not _more(rest)) or not (rest[:1].isspace() or rest[:1] in "*_`\"'$}/&+"):
            return None
    if letter.islower() and not marked and rest.strip(" .*_`\"')"):
        return None
    more = _more((match["close"] or "") + rest)
    return "" if more and more in letters and more != letter.upper() else letter.upper()


def _more(rest: str) -> str:
    """Return the letter that a list goes on with; not an article or a pronoun, and not the subject of a new clause."""
    match = _MORE.match(rest)
    if match is None:
        return ""
    after = rest[match.end() :]
    article = (match[1] in "AaIi" or match[1].islower()) and re.match(r"\s+(?!and\b|or\b)[a-z]", after)
    return "" if article or re.match(r"\s+(?:is|was|isn|seems|can|cannot|does)\b", after) else match[1].upper()


def _doubted(response: str, match: re.Match[str]) -> bool:
    """True if the words of its sentence before the match deny, doubt or ask it."""
    return _DOUBTED.search(re.split(r"[.!?\n]", response[: match.start()])[-1]) is not None


def _stands_alone(match: re.Match[str]) -> bool:
    """True for a line that is a letter, or begins with one that is set apart by a bracket, a point or emphasis."""
    rest = match["rest"]
    if _DENIED.match(rest):
        return False
    if not rest.strip(" *_`\"'$.)]"):
        return True  # nothing else in the line
    if match["open"]:
        return match["close"] in (")", "]")
    emphasized = bool(re.match(r"^[*_`]{1,3}(?:[.):\s]|$)", rest)) and re.match(r"^\s*[*_`]", match[0]) is not None
    if match["close"] in (")", ".", ":"):
        return match["letter"].isupper() and (rest[:1].isspace() or rest[:1] in "*_`")
    reasoned = re.match(r"\s+(?:because|since)\b", rest) is not None
    return emphasized or (match["letter"].isupper() and (reasoned or bool(_more(rest))))
