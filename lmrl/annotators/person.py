"""A person who ranks completions in the terminal, without being told where each comes from or how it scored."""

from __future__ import annotations

import hashlib
import random
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from lmrl.annotators.annotators import Comparison, Judgement, Unanswered, judge_all
from lmrl.annotators.ranks import compact_ranks
from lmrl.errors import LmrlError
from lmrl.judges.questions import as_text
from lmrl.seeds import derive_seed

WIDTH = 96
PAIR_HELP = "Which is better? a, b or tie   (s skip, u undo, q save and quit)"
RANKING_HELP = "Rank all {count}, best first, such as {example}   (tie, s skip, u undo, q save and quit)"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class UnreadableAnswer(LmrlError, ValueError):
    """A person's input is no ranking; the message says why."""


class PersonAnnotator:
    """Asks a person. Completions are shown in an order that hangs on their texts and the seed alone."""

    def __init__(
        self, name: str = "person", seed: int = 0, stdin: TextIO | None = None, stdout: TextIO | None = None
    ) -> None:
        self.name, self.seed = name, seed
        self.stopped = ""
        self.counts: dict[str, int] = {}
        self._stdin, self._stdout = stdin, stdout
        self._reading = self._interrupted = False

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgement | None]:
        """Return one judgement per comparison; None for those skipped or not reached."""
        return judge_all(self, comparisons)

    def stream(
        self, comparisons: Sequence[Comparison], should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Judgement | Unanswered]]:
        """Yield each answer once it is given. Ctrl-C and the end of the input are taken for `q`."""
        self.stopped = ""
        with self._interrupts_while_reading():
            yield from self._session(comparisons, should_stop)

    def _session(
        self, comparisons: Sequence[Comparison], should_stop: Callable[[], bool]
    ) -> Iterator[tuple[int, Judgement | Unanswered]]:
        index, undoable = 0, 0
        while index < len(comparisons):
            try:
                answer = self._ask(comparisons[index], index, len(comparisons))
            except (KeyboardInterrupt, EOFError):
                answer = "q"
            if answer == "q" or should_stop():
                self.stopped = f"{len(comparisons) - index} left by the person"
                self._say("")
                return
            if answer == "u":
                if not undoable:
                    self._say("There is nothing to undo in this session.")
                    continue
                index, undoable = index - 1, undoable - 1
                yield index, Unanswered("undone")
                continue
            yield index, Unanswered("skipped") if isinstance(answer, str) else Judgement(answer)
            index, undoable = index + 1, undoable + 1

    def _ask(self, comparison: Comparison, index: int, count: int) -> tuple[int, ...] | str:
        """Show one comparison and return its ranks, or "s", "u" or "q"."""
        shown = shuffled(comparison.completions, self.seed)
        pair = len(shown) == 2
        self._say(f"\n{'=' * WIDTH}\n[{index + 1}/{count}] Prompt\n\n{_indented(as_text(comparison.prompt))}\n")
        for place, original in enumerate(shown):
            label = "AB"[place] if pair else str(place + 1)
            self._say(f"--- {label} {'-' * (WIDTH - 5 - len(label))}\n{_indented(comparison.completions[original])}\n")
        while True:
            example = ">".join(map(str, range(2, len(shown) + 1))) + "=1"
            self._say(PAIR_HELP if pair else RANKING_HELP.format(count=len(shown), example=example))
            try:
                typed = self._read().strip().lower()
                if typed in {"s", "u", "q"}:
                    return typed
                ranks = read_ranking(typed, len(shown))
            except UnreadableAnswer as error:
                self._say(f"{error}\n")
                continue
            places = {original: place for place, original in enumerate(shown)}
            return tuple(ranks[places[original]] for original in range(len(shown)))

    def _read(self) -> str:
        output = self._stdout or sys.stdout
        output.write("> ")
        output.flush()
        self._reading = True
        try:
            if self._interrupted:
                raise KeyboardInterrupt
            line = _line(self._stdin or sys.stdin)
        finally:
            self._reading = False
        if not line:
            raise EOFError
        return line

    @contextmanager
    def _interrupts_while_reading(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM interrupt the wait for an answer, but not the keeping of one that was given."""
        self._reading = self._interrupted = False
        if threading.current_thread() is not threading.main_thread():
            yield  # signal handlers belong to the main thread
            return

        def handle(number: int, frame: Any) -> None:
            self._interrupted = True
            if self._reading:
                raise KeyboardInterrupt

        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _say(self, text: str) -> None:
        print(text, file=self._stdout or sys.stdout, flush=True)


def shuffled(completions: Sequence[str], seed: int) -> list[int]:
    """Return the order in which completions are shown: the same whatever order they come in, so blind to it."""
    order = sorted(range(len(completions)), key=lambda index: (completions[index], index))
    digest = hashlib.sha256("\0".join(sorted(completions)).encode("utf-8", "surrogatepass")).digest()
    random.Random(derive_seed(seed, "shown", int.from_bytes(digest[:6], "big"))).shuffle(order)
    return order


def read_ranking(typed: str, count: int) -> tuple[int, ...]:
    """Return the ranks of ``count`` completions from what a person typed.

    ``2>1=3`` (best first; ties joined by ``=``), ``tie`` for all equal; of two also ``a``, ``b``. Raises
    ``UnreadableAnswer`` with the reason.

    >>> read_ranking("2 > 1 = 3", 3)
    (1, 0, 1)
    """
    text = typed.strip().lower()
    if text in {"tie", "t", "="}:
        return (0,) * count
    if count == 2 and text in {"a", "b", "1", "2"}:
        return (0, 1) if text in {"a", "1"} else (1, 0)
    labels = "a and b" if count == 2 else f"1 to {count}"
    if not text:
        raise UnreadableAnswer(f"Nothing was typed; expected {_expected(count)}, or s, u, q.")
    ranks: dict[int, int] = {}
    for rank, group in enumerate(text.split(">")):
        for part in group.split("="):
            label = part.strip()
            if count == 2:
                label = {"a": "1", "b": "2"}.get(label, label)
            if not label.isascii() or not label.isdigit():
                raise UnreadableAnswer(f"{label or 'nothing'!r} is no completion; expected {_expected(count)}.")
            number = int(label)
            if not 1 <= number <= count:
                raise UnreadableAnswer(f"There is no completion {number}; they are {labels}.")
            if number in ranks:
                raise UnreadableAnswer(f"Completion {number} is named twice; expected each once.")
            ranks[number] = rank
    missing = [str(number) for number in range(1, count + 1) if number not in ranks]
    if missing:
        raise UnreadableAnswer(f"{', '.join(missing)} is missing; expected each of {labels} once.")
    return compact_ranks([ranks[number] for number in range(1, count + 1)])


def _line(stream: TextIO) -> str:
    """Return the next line. Bytes are read where there are any: a broken one must not take other lines with it."""
    raw = getattr(stream, "buffer", None)
    if raw is None:
        return stream.readline()
    try:
        return str(raw.readline().decode(stream.encoding or "utf-8"))
    except UnicodeDecodeError as error:
        raise UnreadableAnswer(f"What was typed could not be read: it is not {stream.encoding or 'utf-8'}.") from error


def _expected(count: int) -> str:
    return "a, b or tie" if count == 2 else f"a ranking such as {'>'.join(map(str, range(2, count + 1)))}=1"


def _indented(text: str) -> str:
    """Return text wrapped for the terminal, without the control characters by which a text could take it over."""
    safe = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\t", "    ").replace("\r\n", "\n"))
    lines = [wrapped for line in safe.split("\n") for wrapped in (textwrap.wrap(line, WIDTH - 4) or [""])]
    return "\n".join(f"    {line}" for line in lines)
