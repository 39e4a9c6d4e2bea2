"""Tables for the terminal, which stay whole when the output goes into a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 160


def make_console() -> Console:
    """Return a console on standard output that takes no markup from the texts it prints."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, markup=False, highlight=False, emoji=False)


def make_table(columns: Iterable[str]) -> Table:
    """Return an empty table whose long cells are folded, never cut off."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
