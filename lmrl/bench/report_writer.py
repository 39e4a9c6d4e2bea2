"""A report's page and its Markdown, written side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lmrl.reporting.pages import Page


class Writer:
    """Writes a page and its Markdown side by side."""

    def __init__(self, title: str) -> None:
        self.page = Page(title, light=True)
        self.lines = [f"# {title}", ""]

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading."""
        self.page.add_heading(text, level)
        self.lines += [f"{'#' * level} {text}", ""]

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self.page.add_text(text)
        self.lines += [text, ""]

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str | int]], caption: str = "") -> None:
        """Add a table."""
        rows = [list(row) for row in rows]
        self.page.add_text(caption)  # a caption would be as wide as the table, and scroll with it
        self.page.add_table(columns, rows)
        self.lines += [
            *([caption, ""] if caption else []),
            "| " + " | ".join(columns) + " |",
            "|---" * len(columns) + "|",
        ]
        self.lines += ["| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in rows] + [""]

    def commands(self, commands: Sequence[str]) -> None:
        """Add commands."""
        self.page.add_commands(commands)
        self.lines += ["```sh", *commands, "```", ""]


def _markdown_cell(cell: str | int) -> str:
    """Return text that stays within its cell: an error can have several lines.

    >>> _markdown_cell("a | b\\nc")
    'a \\\\| b c'
    """
    return " ".join(str(cell).split()).replace("|", "\\|").replace("<", "&lt;")
