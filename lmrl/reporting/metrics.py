"""Reading the metrics of a run: one JSON object per update or step."""

from __future__ import annotations

import json
from pathlib import Path

from lmrl.errors import SettingsError

METRICS_FILE = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the lines of ``metrics.jsonl``; a line half written by a kill is left out."""
    file = folder / METRICS_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise SettingsError(f"{file}:{number + 1} is not valid JSON: {line[:80]!r}") from None
    return records
