"""Labels of a classifier: which of its numbers is the score of a text. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmrl.errors import ModelError, nearest

Output = Literal["log_probability", "probability", "logit"]
DEFAULT_LABELS = 2
"""Number of labels that transformers assumes where config.json names none."""


@dataclass(frozen=True)
class Choice:
    """The number of a classifier that is the score: its place among the labels, and the form that it is given in.

    ``independent``: each label has a probability of its own (multi-label classification) instead of a share.
    """

    place: int = 0
    output: Output | None = None
    independent: bool = False


ONLY_SCORE = Choice()
"""The choice of a reward model, which has one number."""


def label_names(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the labels of a sequence classification checkpoint, in order."""
    named = config.get("id2label") or {}
    count = int(config.get("num_labels") or len(named) or DEFAULT_LABELS)
    texts = {int(place): str(name) for place, name in named.items()}
    return [texts.get(place, f"LABEL_{place}") for place in range(count)]


def choose_label(name: str, config: Mapping[str, Any], label: str, output: Output = "log_probability") -> Choice:
    """Return the choice that ``label`` stands for: a label's name, in any case, or its number.

    A model with one label is a reward model and needs no choice. Raises ``ModelError`` for a missing or unknown label.
    """
    labels = label_names(config)
    listed = _listed(labels)
    if len(labels) == 1:
        if label:
            raise ModelError(f"{name} has one label, its score, but label is {label!r}; leave label out.")
        return ONLY_SCORE
    if not label:
        raise ModelError(
            f"{name} is a classifier with {len(labels)} labels: {listed}; expected the label whose score is the "
            f"reward. Set it, for example label = {labels[-1]!r}."
        )
    found = [place for place, one in enumerate(labels) if one == label] or [
        place for place, one in enumerate(labels) if one.casefold() == label.casefold()
    ]
    if not found and label.isdecimal() and int(label) < len(labels):
        found = [int(label)]
    if len(found) != 1:
        guess = nearest(label.casefold(), [one.casefold() for one in labels])
        guess = next((one for one in labels if one.casefold() == guess), "")
        raise ModelError(
            f"{name} has no label {label!r}"
            + (f"; did you mean {guess!r}?" if guess else ".")
            + f" Its {len(labels)} labels are {listed}."
        )
    return Choice(found[0], output, config.get("problem_type") == "multi_label_classification")


def _listed(labels: Sequence[str], most: int = 20) -> str:
    return ", ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")
