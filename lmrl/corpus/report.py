"""Report of a corpus: the documents that each step left out or changed, the reason, and one example of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lmrl.corpus.documents import Document

STEPS = ("read", "extract", "language", "quality", "exact duplicates", "near duplicates", "tokens")
"""The steps that can leave a document out, in their order."""


@dataclass
class Count:
    """Documents that a step left out or changed for one reason, and the place of the first of them."""

    documents: int = 0
    characters: int = 0
    example: str = ""


@dataclass
class CorpusReport:
    """Documents in and out, and what happened between."""

    documents_in: int = 0
    characters_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    dropped: dict[str, dict[str, Count]] = field(default_factory=dict)
    """Left out: step -> reason -> count."""
    changed: dict[str, dict[str, Count]] = field(default_factory=dict)
    """Kept, but changed: step -> what was done -> count."""
    sources: dict[str, int] = field(default_factory=dict)
    """Documents read per file or hub id."""
    notes: list[str] = field(default_factory=list)

    def read(self, document: Document) -> None:
        """Count a document that came out of its source."""
        self.documents_in += 1
        self.characters_in += len(document.text)
        self.sources[document.source] = self.sources.get(document.source, 0) + 1

    def skip(self, step: str, reason: str, where: str, source: str = "", characters: int = 0) -> None:
        """Count a record that never became a document: broken, or without text."""
        self.documents_in += 1
        self.characters_in += characters
        if source:
            self.sources[source] = self.sources.get(source, 0) + 1
        _add(self.dropped, step, reason, where, characters)

    def drop(self, step: str, reason: str, document: Document) -> None:
        """Count a document that a step left out."""
        _add(self.dropped, step, reason, document.where, len(document.text))

    def change(self, step: str, what: str, document: Document, characters: int) -> None:
        """Count a document that a step changed, and the characters that it lost."""
        _add(self.changed, step, what, document.where, characters)

    def keep(self, document: Document) -> None:
        """Count a document that came through."""
        self.documents_out += 1
        self.characters_out += len(document.text)

    @property
    def dropped_documents(self) -> int:
        """Documents that were left out in all."""
        return sum(count.documents for reasons in self.dropped.values() for count in reasons.values())

    def rows(self) -> list[tuple[str, str, int, int, str]]:
        """Return (step, reason, documents, characters, example) for a table, in the order of the steps."""
        found = []
        for step in sorted(self.dropped, key=_place):
            for reason, count in sorted(self.dropped[step].items(), key=lambda item: -item[1].documents):
                found.append((step, reason, count.documents, count.characters, count.example))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CorpusReport:
        """Read back what ``to_json`` returned."""
        counts = {
            name: {
                step: {reason: Count(**count) for reason, count in reasons.items()}
                for step, reasons in content[name].items()
            }
            for name in ("dropped", "changed")
        }
        return cls(**{**content, **counts})

    def to_markdown(self) -> str:
        """Return the report as a Markdown table."""
        lines = ["| step | reason | documents | characters | first example |", "|---|---|---:|---:|---|"]
        lines.append(f"| in | | {self.documents_in:,} | {self.characters_in:,} | |")
        for step, reason, documents, characters, example in self.rows():
            shown = example.replace("|", "\\|")
            lines.append(f"| {step} | {reason} | -{documents:,} | -{characters:,} | {shown} |")
        for step, changes in self.changed.items():
            for what, count in changes.items():
                lines.append(
                    f"| {step} | kept, {what} | {count.documents:,} | -{count.characters:,} | {count.example} |"
                )
        lines.append(f"| out | | {self.documents_out:,} | {self.characters_out:,} | |")
        return "\n".join(lines)


def _add(table: dict[str, dict[str, Count]], step: str, reason: str, where: str, characters: int) -> None:
    count = table.setdefault(step, {}).setdefault(reason, Count(example=where))
    count.documents += 1
    count.characters += characters


def _place(step: str) -> int:
    return STEPS.index(step) if step in STEPS else len(STEPS)
