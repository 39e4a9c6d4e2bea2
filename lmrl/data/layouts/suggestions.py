"""Proposal of a mapping of columns for rows of an unknown shape."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

LIKELY = {
    "prompt": r"prompt|question|query|instruction|problem|request|user|input|post|title|source",
    "completion": r"completion|response|answer|output|solution|reply|assistant|target|summary|generation|^correct",
    "chosen": r"chosen|better|best|preferred|win|accept|positive",
    "rejected": r"reject|worse|worst|dispreferred|los|negative",
    "preferences": r"preference|annotator|winner|label|choice|vote|better|verdict",
    "choices": r"choices|options|endings|choice|option",
    "context": r"context|passage|body|article|document|support|background",
}
"""Frequent names of columns, by meaning, the likeliest first."""
IDENTIFIER = re.compile(
    r"(?:.*[_ .-])?(?:id|idx|index|source|type|url|start|list)|(?:in)?correct_answers|meta.*", re.IGNORECASE
)
"""Columns that are no text to train on, although their names contain such a word."""
NUMBERED = re.compile(r".*[ _]?([a-hA-H]|\d)")


def suggest(columns: Collection[str], use: str, setting: str) -> str:
    """Return a sentence with a mapping for these columns, or an empty string where none is likely."""
    wanted = {
        "prompts": ("prompt",),
        "examples": ("prompt", "completion"),
        "rankings": ("prompt", "chosen", "rejected"),
    }
    found = _assigned(columns, wanted[use])
    if use == "rankings" and not {"chosen", "rejected"} <= set(found):
        several = [name for name in columns if NUMBERED.fullmatch(name) and _is_like("completion", name)]
        several += [name for name in columns if name.lower().startswith("prediction") and name not in several]
        votes = [name for name in columns if name not in several and _is_like("preferences", name)]
        found = {**_assigned([name for name in columns if name not in [*several, *votes]], ("prompt",))}
        if len(several) < 2 or not votes:
            return ""
        found |= {"completions": _listed(several), "preferences": _listed(votes)}
    if not found or (use != "rankings" and set(found) != set(wanted[use])):
        return ""
    left = [name for name in columns if f'"{name}"' not in " ".join(found.values())]
    if use != "rankings":
        beside = _assigned(left, ("choices", "context"))
        found = {**_as_question(found, columns), **beside} if beside else found
    pairs = " ".join(f"{setting}.columns.{ours}={theirs}" for ours, theirs in found.items() if theirs != f'"{ours}"')
    return f"Perhaps: {pairs}." if pairs else ""


def _as_question(found: Mapping[str, str], columns: Collection[str]) -> dict[str, str]:
    """Return a prompt and completion as question and answer: what stands beside a question becomes a part of it."""
    answer = found.get("completion") or _assigned(columns, ("completion",)).get("completion")
    return {"question": found["prompt"], "answer": answer} if answer else dict(found)


def _assigned(columns: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for ours in wanted:
        taken = set(found.values())
        likely = [name for name in columns if _is_like(ours, name) and f'"{name}"' not in taken]
        if likely:
            found[ours] = f'"{min(likely, key=lambda name: _rank(ours, name))}"'
    return found


def _is_like(ours: str, name: str) -> bool:
    return re.search(LIKELY[ours], name, re.IGNORECASE) is not None and not IDENTIFIER.fullmatch(name)


def _rank(ours: str, name: str) -> int:
    """Return the place of the first word for a meaning that a name contains."""
    words = LIKELY[ours].split("|")
    return next(place for place, word in enumerate(words) if re.search(word, name, re.IGNORECASE))


def _listed(names: Collection[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"
