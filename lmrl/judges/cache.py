"""SQLite file of the replies that judges have given, so that no question is asked twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lmrl.errors import SettingsError
from lmrl.judges.asking import Answer

_TABLE = (
    "CREATE TABLE IF NOT EXISTS replies "
    "(key TEXT PRIMARY KEY, judge TEXT NOT NULL, reply TEXT NOT NULL, unreadable TEXT NOT NULL)"
)
"""Another name than the table of version 0.1, which did not record why a reply must not be read."""


class AnswerCache:
    """Answers by (judge, question); each is on the disk when ``put`` returns. ``path`` empty keeps nothing.

    ``judge`` holds all that an answer depends on beside the question: address, model, temperature and so on, but no
    key. Several processes may use one file.
    """

    def __init__(self, path: str, judge: str) -> None:
        self.path, self.judge = path, judge

    def get_many(self, questions: Sequence[str]) -> dict[str, Answer]:
        """Return the cached replies, by question."""
        if not self.path or not Path(self.path).exists():
            return {}
        known: dict[str, Answer] = {}
        query = "SELECT reply, unreadable FROM replies WHERE key = ?"
        with self._open() as connection:
            for question in questions:
                row = connection.execute(query, (self._key(question),)).fetchone()
                if row:
                    known[question] = Answer(str(row[0]), unreadable=str(row[1]))
        return known

    def put(self, question: str, answer: Answer) -> None:
        """Store a reply, with the reason why it is unreadable if it is."""
        if self.path:
            with self._open() as connection:
                row = (self._key(question), self.judge, answer.text or "", answer.unreadable)
                connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?)", row)

    def _key(self, question: str) -> str:
        return hashlib.sha256(json.dumps([self.judge, question]).encode()).hexdigest()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            try:
                connection.execute(_TABLE)
                yield connection
            finally:
                connection.close()
        except (sqlite3.Error, OSError) as error:
            raise SettingsError(
                f"judge.cache: {self.path} cannot be used ({error}); expected a file of answers that a judge has "
                'kept, or a new one. Name another file, or none with judge.cache = "".'
            ) from error
