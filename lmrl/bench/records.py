"""Results as JSON lines: one run each, appended as it ends, so that what a kill leaves behind is still a result.

Reading skips, and says so, what is no whole line; it refuses files in which figures stand that must not be put
together: of two suites, of two budgets, or of one run under two settings.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any, Literal

from lmrl.bench.suite import Budget
from lmrl.config import build
from lmrl.errors import DataError, SettingsError

logger = logging.getLogger(__name__)

Key = tuple[str, str, float, int]
"""Task, optimizer, beta, seed: what tells the runs of a suite apart."""


@dataclass(frozen=True)
class Grid:
    """The runs that one call asked for: every optimizer on every task, at every coefficient, with every seed."""

    tasks: list[str] = field(default_factory=list)
    optimizers: list[str] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)
    seeds: int = 0
    """Seeds 0 to this number minus one; 0 where nothing is known."""

    def runs(self) -> list[Key]:
        """Return every run."""
        return list(product(self.tasks, self.optimizers, self.betas, range(self.seeds)))


@dataclass(frozen=True)
class Record:
    """One run and what it came to."""

    suite: str
    kind: str
    task: str
    optimizer: str
    beta: float
    seed: int
    budget: Budget
    status: Literal["done", "failed"]
    digest: str = ""
    """Of everything that the run depends on but its seed: two results of one run with other settings are told apart."""
    measure: str = ""
    """The metric that is compared."""
    margin: float = 0.05
    score: float | None = None
    """The measure on the task's scale, 0 to 1 where the task says its bounds; what is averaged over tasks."""
    metrics: dict[str, float] = field(default_factory=dict)
    curve: dict[str, list[float]] = field(default_factory=dict)
    """Columns over the run; the first, ``update`` of most kinds, is what the others are drawn over."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The resolved settings that matter."""
    details: list[dict[str, Any]] = field(default_factory=list)
    """Lines of a kind that measures more than one thing at once."""
    asked: str = ""
    """Arguments that repeat the suite on the command line: its name, --smoke, overrides."""
    grid: Grid = field(default_factory=Grid)
    """The whole request that it is a part of, so that missing runs are known."""
    error: str = ""
    seconds: float = 0.0
    commit: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Key of this run among those of its suite."""
        return self.task, self.optimizer, self.beta, self.seed

    @property
    def cell(self) -> tuple[str, float]:
        """Task and coefficient: what is the same for all optimizers and seeds."""
        return self.task, self.beta

    @property
    def title(self) -> str:
        """The run in words."""
        return f"{self.task}, {self.optimizer}, beta {self.beta:g}, seed {self.seed}"

    def line(self) -> str:
        """Return the JSON line."""
        return json.dumps(asdict(self), allow_nan=False, separators=(",", ":"))


def append(file: Path, record: Record) -> None:
    """Add one line, on a line of its own also after a kill in the middle of one."""
    end_half_written_line(file)
    with file.open("a", encoding="utf-8") as out:
        out.write(record.line() + "\n")


def end_half_written_line(path: Path) -> None:
    """Make sure that what is appended begins on a line of its own."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")


def read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of a file of JSON lines with their numbers; broken lines are skipped, and said in the log."""
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            found.append((number, value))
        else:
            logger.warning("%s, line %d is no whole record (a run that was killed?); it is left out", path, number)
    return found


def read_records(path: Path) -> list[Record]:
    """Return the runs of one file; of a run that was repeated after it failed, the last.

    Raises ``SettingsError`` for results of two suites or budgets, of one cell under two settings, or of one run that
    ended well twice, in one file.
    """
    records: dict[Key, Record] = {}
    first: Record | None = None
    for number, mapping in read_lines(path):
        record = record_of(mapping)
        if record is None:
            logger.warning("%s, line %d is no result of a suite; it is left out", path, number)
            continue
        first = first or record
        require_alike(first, record, f"{path}, line {number}")
        _keep(
            records,
            record,
            f"{path}, line {number}: {record.title} stands twice, with other figures or settings each; keep one of "
            "them, or results of other settings in a file of their own",
        )
    require_one_setting(records.values(), str(path))
    return list(records.values())


def require_one_setting(records: Iterable[Record], where: str) -> None:
    """Raise ``SettingsError`` unless the runs that ended well of one task, optimizer and coefficient had one setting.

    Their mean would be one of two things. What failed may have done so because of its settings.
    """
    known: dict[tuple[str, str, float], Record] = {}
    for record in records:
        if record.status != "done":
            continue
        first = known.setdefault((record.task, record.optimizer, record.beta), record)
        if record.digest != first.digest:
            raise SettingsError(
                f"{where}: {record.title} has other settings (digest {record.digest or 'unknown'}) than seed "
                f"{first.seed} ({first.digest or 'unknown'}), and would stand in one mean with it; keep the results of "
                "each settings in a file of their own"
            )


def require_alike(first: Record, other: Record, where: str) -> None:
    """Raise ``SettingsError`` unless two results are of one suite with one budget."""
    if other.suite != first.suite:
        raise SettingsError(
            f"{where} is of the suite {other.suite!r}, but the lines before it of {first.suite!r}; expected one suite: "
            "give each a file of its own"
        )
    if other.measure != first.measure:
        raise SettingsError(
            f"{where} measures {other.measure!r}, but the lines before it {first.measure!r}; expected one measure: "
            "give each a file of its own"
        )
    if other.budget != first.budget:
        raise SettingsError(
            f"{where} has the budget {other.budget}, but the lines before it {first.budget}; expected one budget: "
            "results of different budgets are not comparable, so give each a file of its own"
        )


def record_of(mapping: Mapping[str, Any]) -> Record | None:
    """Return the record of a line, or None if it is none: fields are missing, or not of the type that they have."""
    known = {name: value for name, value in mapping.items() if name in Record.__dataclass_fields__}
    try:
        record = build(Record, known)
    except (SettingsError, TypeError, ValueError):
        return None
    numbers = [record.beta, record.seconds, record.margin, *record.metrics.values(), *chain(*record.curve.values())]
    sane = all(map(math.isfinite, [*numbers, record.score or 0.0])) and len(set(map(len, record.curve.values()))) < 2
    scored = record.status == "done" and record.score is not None
    return record if sane and (scored or record.status == "failed") else None


def read_results(paths: Sequence[Path]) -> dict[str, list[Record]]:
    """Return the results of files and folders (their `*.jsonl`) by suite.

    Raises ``DataError`` where there is none, ``SettingsError`` for two budgets of a suite or a run that two files hold.
    """
    results: dict[str, list[Record]] = {}
    for path in paths:
        for file in _files(path):
            for record in read_records(file):
                mine = results.setdefault(record.suite, [])
                if mine:
                    require_alike(mine[0], record, str(file))
                mine.append(record)
    if not results:
        said = ", ".join(str(path) for path in paths)
        raise DataError(f"no results of a suite in {said}; expected JSON lines that `lmrl bench run` wrote")
    for suite, records in results.items():
        results[suite] = _unique(records)
        require_one_setting(results[suite], f"the suite {suite}")
    return results


def _unique(records: Iterable[Record]) -> list[Record]:
    found: dict[Key, Record] = {}
    for record in records:
        _keep(
            found,
            record,
            f"the suite {record.suite}: {record.title} stands in two files with different results; give files that "
            "hold other runs each, and `lmrl bench compare` for two results of the same ones",
        )
    return list(found.values())


def _keep(found: dict[Key, Record], record: Record, otherwise: str) -> None:
    """Add a run: one that ended well stays, what failed makes room; two that ended well and differ are an error."""
    known = found.get(record.key)
    if known is None or known.status != "done":
        found[record.key] = record
    elif record.status == "done" and record != known:
        raise SettingsError(otherwise)


def _files(path: Path) -> list[Path]:
    """Return the files of results; a folder's other JSON lines (results of other studies) are passed over."""
    if path.is_dir():
        files = [file for file in sorted(path.glob("*.jsonl")) if _holds_results(file)]
        passed = [file.name for file in sorted(path.glob("*.jsonl")) if file not in files]
        if passed:
            logger.info("%s: %s hold no results of suites", path, ", ".join(passed))
        return files
    if not path.exists():
        raise DataError(f"{path} does not exist; expected a file of results or a folder with such files")
    return [path]


def _holds_results(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                continue
            return isinstance(value, dict) and record_of(value) is not None
    return False
