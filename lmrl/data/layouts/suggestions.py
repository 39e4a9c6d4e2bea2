"""Proposal of a mapping of columns for rows of an unknown shape."""

from __future__ import annotations

import re
from collections.abc import Collection

LIKELY = {
    "prompt": r"prompt|question|query|instruction|problem|request|user|input|post|title|source",
    "completion": r"completion|response|answer|output|solution|reply|assistant|target|summary|generation",
    "chosen": r"chosen|better|best|preferred|win|accept|positive",
    "rejected": r"reject|worse|worst|dispreferred|los|negative",
    "preferences": r"preference|annotator|winner|label|choice|vote|better|verdict",
    "choices": r"choice|option",
    "context": r"context|passage|body|document|background",
}
"""Frequent names of columns, by meaning."""
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
    found |= _assigned(left, ("choices", "context")) if use != "rankings" else {}
    pairs = " ".join(f"{setting}.columns.{ours}={theirs}" for ours, theirs in found.items() if theirs != f'"{ours}"')
    return f"Perhaps: {pairs}." if pairs else ""


def _assigned(columns: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for ours in wanted:
        taken = set(found.values())
        likely = [name for name in columns if _is_like(ours, name) and f'"{name}"' not in taken]
        if likely:
            found[ours] = f'"{likely[0]}"'
    return found


def _is_like(ours: str, name: str) -> bool:
    return re.search(LIKELY[ours], name, re.IGNORECASE) is not None


def _listed(names: Collection[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"
