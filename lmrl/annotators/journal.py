"""The journal of an annotator: every answer on the disk before the next question, so that no kill loses one.

One JSON object per line: the header, answers (``index``, ``ranks``, ``scores``, ``details``), comparisons without an
answer (``index``, ``unanswered``), and what each session took (``session``). The newest line about a comparison counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmrl.annotators.annotators import Judgement, Unanswered
from lmrl.errors import ResumeError

REPEATED = ("undone", "failed")
"""Reasons for which a comparison is asked about again."""


class Journal:
    """An annotator's answers by the number of the comparison; each is kept when ``append`` returns."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Open a journal or begin one. Raises ``ResumeError`` for one that is broken or belongs to other questions."""
        self.path = path
        self.answers: dict[int, Judgement | Unanswered] = {}
        self.counts: dict[str, int] = {}
        lines, torn = _read(path)
        if torn:  # killed in the middle of a line: the answer in it was not given yet
            os.truncate(path, sum(len(line) for line in lines))
        records = [_parsed(line, number, path) for number, line in enumerate(lines, start=1)]
        if records and records[0] != dict(header):
            raise ResumeError(
                f"{path} begins with {json.dumps(records[0])}, but this run's answers belong to "
                f"{json.dumps(dict(header))}; take another run.folder, or move the journal away"
            )
        for number, record in enumerate(records[1:], start=2):
            try:
                self._take(record)
            except (KeyError, TypeError, ValueError) as error:
                raise ResumeError(
                    f"{path}, line {number} is no answer ({error!r}); it has been changed by hand. Repair it or "
                    "move the journal away"
                ) from error
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if not records:
            self._write(header)

    @property
    def settled(self) -> set[int]:
        """The comparisons that are not asked about again."""
        return {
            index
            for index, answer in self.answers.items()
            if isinstance(answer, Judgement) or answer.reason not in REPEATED
        }

    @property
    def judgements(self) -> dict[int, Judgement]:
        """The comparisons that were ranked."""
        return {index: answer for index, answer in self.answers.items() if isinstance(answer, Judgement)}

    def append(self, index: int, answer: Judgement | Unanswered) -> None:
        """Keep one answer."""
        self.append_all([(index, answer)])

    def append_all(self, answers: Iterable[tuple[int, Judgement | Unanswered]]) -> None:
        """Keep several answers that came together."""
        records = [_record(index, answer) for index, answer in answers]
        self._write(*records)
        for record in records:
            self._take(record)

    def close_session(self, counts: Mapping[str, int]) -> None:
        """Add what this session took, and close the file."""
        if any(counts.values()):
            self._write({"session": dict(counts)})
            self._take({"session": dict(counts)})
        os.close(self._file)

    def _write(self, *records: Mapping[str, Any]) -> None:
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        while data:  # a full disk or a signal may take a part only
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def _take(self, record: Mapping[str, Any]) -> None:
        if "session" in record:
            for name, count in record["session"].items():
                self.counts[name] = self.counts.get(name, 0) + int(count)
            return
        index = int(record["index"])
        if "unanswered" in record:
            self.answers[index] = Unanswered(record["unanswered"])
            if record["unanswered"] == "undone":
                del self.answers[index]
            return
        ranks, scores = (tuple(record[name]) for name in ("ranks", "scores"))
        self.answers[index] = Judgement(ranks, scores, record.get("details", {}))


def _record(index: int, answer: Judgement | Unanswered) -> dict[str, Any]:
    if isinstance(answer, Unanswered):
        return {"index": index, "unanswered": answer.reason}
    record = {"index": index, "ranks": list(answer.ranks), "scores": list(answer.scores)}
    return record | ({"details": dict(answer.details)} if answer.details else {})


def _read(path: Path) -> tuple[list[bytes], bool]:
    """Return the whole lines of a file, and whether an unfinished one follows."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    torn = bool(lines) and not lines[-1].endswith(b"\n")
    return (lines[:-1], True) if torn else (lines, False)


def _parsed(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ResumeError(f"{path}, line {number} is not valid JSON; repair it or move the journal away") from error
    if not isinstance(record, dict):
        raise ResumeError(f"{path}, line {number} holds a {type(record).__name__}; expected a JSON object")
    return record
