"""``lexicon``: the sentiment of a response by the mean valences of its words, from a file that the user names.

The sum of the valences s is squashed to s / sqrt(s^2 + 15), VADER's compound score (Hutto and Gilbert, 2014). Of
VADER's rules only negation is kept: a word after a negation counts -0.74 times. Left out: boosters, capitals,
exclamation marks, idioms and the weighing of "but".
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmrl.errors import DataError, SettingsError, nearest

NORMALISATION = 15.0
NEGATION_FACTOR = -0.74
NEGATIONS = frozenset(
    {"not", "no", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "without", "cannot"}
    | {"hardly", "rarely", "seldom", "despite"}
)


@dataclass
class LexiconSettings:
    """Settings of the reward ``lexicon``."""

    path: str = ""
    """Lexicon file, absolute or from the current folder: a word, a tab and its mean valence on each line; further
    columns, as VADER has, are ignored."""
    negate: bool = False
    """Reward negative sentiment: the score's sign is turned round."""
    negation_window: int = 3
    """A word's valence counts -0.74 times if one of this many words before it negates ("not", "never", "didn't");
    0 switches negation off."""

    def __post_init__(self) -> None:
        if self.negation_window < 0:
            raise SettingsError(f"negation_window is {self.negation_window}; expected an integer >= 0")


class Lexicon:
    """Scores lie in (-1, 1); a response without a word of the lexicon scores 0."""

    bounds = (-1.0, 1.0)

    reads_columns = ()

    def __init__(self, settings: LexiconSettings) -> None:
        if not settings.path:
            raise SettingsError(
                "the lexicon reward needs a file: set its path, to VADER's vader_lexicon.txt say (a word, a tab and a "
                "number on each line)"
            )
        self.valences = read_lexicon(Path(settings.path).expanduser())
        self.sign = -1.0 if settings.negate else 1.0
        self.negation_window = settings.negation_window

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """Return one score per response; prompts are not read."""
        return [self.sign * self.sentiment(response) for response in responses]

    def sentiment(self, text: str) -> float:
        """Return the sentiment of one text, in (-1, 1)."""
        words = [self._word(piece) for piece in text.split()]
        total = 0.0
        for index, word in enumerate(words):
            valence = self.valences.get(word, 0.0)
            if valence:
                before = words[max(0, index - self.negation_window) : index]
                total += valence * (NEGATION_FACTOR if any(map(negates, before)) else 1.0)
        return total / math.sqrt(total * total + NORMALISATION)

    def _word(self, piece: str) -> str:
        """An emoticon of the lexicon stays as it is; anything else loses the punctuation around it."""
        lowered = piece.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        if piece in self.valences or lowered in self.valences:
            return piece if piece in self.valences else lowered
        return lowered.strip(string.punctuation + "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}")


def negates(word: str) -> bool:
    """Say whether a lower-case word is a negation."""
    return word in NEGATIONS or word.endswith("n't")


def read_lexicon(path: Path) -> dict[str, float]:
    """Return the valence of each word of a tab-separated file.

    Raises ``DataError`` for a missing file and for a line that is not a word, a tab and a finite number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (FileNotFoundError, NotADirectoryError) as error:
        guess = nearest(path.name, [item.name for item in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise DataError(
            f"there is no lexicon file {path}" + (f"; did you mean {path.parent / guess}?" if guess else ".")
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the lexicon file {path} cannot be read: {error}") from error
    valences: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        try:
            valence = float(cells[1])
        except (IndexError, ValueError):
            valence = math.nan
        if not math.isfinite(valence) or not cells[0].strip():
            raise DataError(
                f"{path}, line {number}: found {line[:60]!r}; "
                "expected a word, a tab and a number, such as 'happy\\t2.7'"
            )
        valences[cells[0].strip()] = valence
    if not valences:
        raise DataError(f"the lexicon file {path} is empty; expected a word, a tab and a number on each line")
    return valences
