"""Questions that compare two responses: the template, its places, and the verdict in a reply."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmrl.errors import SettingsError, nearest
from lmrl.judges.reading import OPEN_REASONING, Reading, without_reasoning
from lmrl.judges.settings import JudgeSettings
from lmrl.judges.verdicts import FIRST, SECOND, TIE, read_group, read_verdict

VERDICTS = (FIRST, SECOND, TIE)
VERDICT_LINE = "Verdict:"

QUESTION = """Compare two answers to one prompt. The better answer is the one that is more {criterion}. \
A longer answer is not better for its length, and which of the two stands first means nothing.

=== Prompt ===
{prompt}

=== Answer A ===
{first}

=== Answer B ===
{second}

=== Your verdict ===
"""
REASONED = (
    "Say in a sentence or two what makes the difference. Then end with a line of its own that reads "
    '"Verdict: A", "Verdict: B", or, if neither answer is better, "Verdict: TIE".'
)
AT_ONCE = 'Reply with one line: "Verdict: A", "Verdict: B", or, if neither answer is better, "Verdict: TIE".'

_NEEDED = ("first", "second")
_KNOWN = ("prompt", "first", "second", "criterion")
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """A question with places for the prompt, both answers and the criterion, and how to read the verdict."""

    text: str
    criterion: str
    verdict: re.Pattern[str] | None
    """Pattern of the user's own whose group 1 is the verdict; None reads the common forms."""

    def question(self, prompt: str, first: str, second: str) -> str:
        """Return the question; braces in what is filled in stay as they are."""
        values = {"prompt": prompt, "first": first, "second": second, "criterion": self.criterion}
        return _PLACE.sub(lambda place: values.get(place[1], place[0]), self.text)

    def read(self, answer: str) -> Reading[str]:
        """Return the verdict in a reply: ``read_verdict``'s, or that of the last match of the user's own pattern."""
        if self.verdict is None:
            return read_verdict(answer)
        visible = without_reasoning(answer)
        if visible is None:
            return Reading(None, OPEN_REASONING)
        found = list(self.verdict.finditer(visible))
        return read_group(found[-1]) if found else Reading(None, "no match of judge.verdict")


def load_template(settings: JudgeSettings, at_once: bool) -> Template:
    """Return the template of the settings, or the default one; ``at_once`` asks for a verdict without reasons.

    Raises ``SettingsError`` for a file that cannot be read or lacks a place, and for a broken regular expression.
    """
    text = _file(settings.template) if settings.template else QUESTION + (AT_ONCE if at_once else REASONED)
    return Template(text, settings.criterion, _pattern(settings.verdict) if settings.verdict else None)


def as_text(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """Return a prompt as a judge or a person reads it: one question alone as its text, otherwise with the roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].get("role") == "user":
        return str(prompt[0].get("content", ""))
    return "\n\n".join(f"{str(turn.get('role', '')).capitalize()}: {turn.get('content', '')}" for turn in prompt)


def read_template(setting: str, name: str, needed: Sequence[str], known: Sequence[str], expected: str) -> str:
    """Return the text of a template file that has the ``needed`` places; ``known`` are those without a column's name.

    Raises ``SettingsError`` if the file cannot be read, or lacks a place; ``expected`` is the end of that error.
    """
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        guess = nearest(path.name, [item.name for item in path.parent.iterdir()]) if path.parent.is_dir() else ""
        hint = f"; did you mean {path.parent / guess}?" if guess and not path.exists() else ""
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{setting}: {name} cannot be read ({reason}){hint}") from error
    places = _PLACE.findall(text)
    for place in needed:
        if place not in places:
            guess = nearest(place, [other for other in places if other not in known])
            hint = f" Is {{{guess}}} meant to be that?" if guess else ""
            raise SettingsError(f"{setting}: {name} has no place {{{place}}}; expected {expected}.{hint}")
    return text


def _file(name: str) -> str:
    expected = "{first} and {second}, and where they are wanted {prompt} and {criterion}"
    return read_template("judge.template", name, _NEEDED, _KNOWN, expected)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise SettingsError(f"judge.verdict is {text!r}, which is no regular expression: {error}") from error
    if pattern.groups < 1:
        raise SettingsError(f"judge.verdict is {text!r}; expected a group for the verdict, such as 'winner: (A|B|TIE)'")
    return pattern
