"""One self-contained HTML page of headings, text, tables, images and commands, for the reports of stages and commands.

All content is text and is escaped; images are embedded, so the page can be sent as one file. It prints well, fits a
narrow screen and follows dark mode. It contains no script and no address outside the page. Its look is in `templates/`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lmrl.errors import DataError


@dataclass(frozen=True)
class Cell:
    """A table's cell of running text with a smaller note below it, such as the answer's reward."""

    text: str
    note: str = ""
    strong: bool = False
    is_number: bool = False


CellLike = Cell | str | int | float | None


@dataclass(frozen=True)
class _Image:
    name: str
    address: str


@dataclass(frozen=True)
class _Block:
    """A part of the page, as the template reads it."""

    kind: Literal["heading", "text", "table", "figure", "panels", "commands"]
    text: str = ""
    level: int = 2
    caption: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    images: Sequence[_Image] = field(default=())


class Page:
    """A page that grows from top to bottom; ``write`` stores it. ``light`` ignores the reader's dark mode."""

    def __init__(self, title: str, light: bool = False) -> None:
        self.title = title
        self.light = light
        self._blocks: list[_Block] = []

    def _add(self, block: _Block) -> Page:
        self._blocks.append(block)
        return self

    def add_heading(self, text: str, level: int = 2) -> Page:
        """Add a heading of level 1 (as the title) to 6."""
        return self._add(_Block("heading", text, level=min(max(level, 1), 6)))

    def add_text(self, text: str) -> Page:
        """Add running text; blank lines separate paragraphs."""
        self._blocks += [_Block("text", part) for part in text.split("\n\n") if part.strip()]
        return self

    def add_table(self, columns: Sequence[str], rows: Iterable[Sequence[CellLike]], caption: str = "") -> Page:
        """Add a table: text cells keep their line ends, numbers are aligned on the right, None is an empty cell.

        Raises ``DataError`` for a row with another number of cells than there are columns.
        """
        cells = []
        for number, row in enumerate(rows, start=1):
            if len(row) != len(columns):
                raise DataError(
                    f"row {number} of the table {caption or self.title!r} has {len(row)} cells; expected one for each "
                    f"of the {len(columns)} columns {', '.join(columns)}"
                )
            cells.append([_cell(value) for value in row])
        return self._add(_Block("table", columns=columns, rows=cells, caption=caption))

    def add_image(self, image: Path | str | bytes, caption: str = "") -> Page:
        """Add a PNG image, from a file or as bytes; raises ``DataError`` if it is none."""
        content = image if isinstance(image, bytes) else _read(Path(image))
        if not content.startswith(b"\x89PNG\r\n"):
            raise DataError(f"{'the image' if isinstance(image, bytes) else image} is not a PNG image; expected one")
        return self._add(_Block("figure", images=[_Image(caption, _address("png", content))], caption=caption))

    def add_drawing(self, svg: str, caption: str = "") -> Page:
        """Add an SVG image; raises ``DataError`` if it is none."""
        return self._add(_Block("figure", images=[_drawing(svg, caption)], caption=caption))

    def add_panels(self, panels: Iterable[tuple[str, str]], caption: str = "") -> Page:
        """Add small SVG images with their names, as many side by side as there is room for."""
        return self._add(_Block("panels", images=[_drawing(svg, name) for name, svg in panels], caption=caption))

    def add_commands(self, commands: Sequence[str]) -> Page:
        """Add commands of a shell, one a line, to be copied."""
        return self._add(_Block("commands", "\n".join(commands)))

    def __str__(self) -> str:
        return str(_template().render(title=self.title, light=self.light, blocks=self._blocks))

    def write(self, path: Path | str) -> Path:
        """Write the page, making its folder if need be, and return its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(self), encoding="utf-8")
        return path


def printable(value: Any) -> Any:
    r"""Return a value's text with U+FFFD for the control characters that HTML cannot hold.

    >>> printable("a\x00b")
    'a\ufffdb'
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if (ord(c) < 32 and c not in "\n\t") or "\ud800" <= c <= "\udfff" else c
        for c in value.replace("\r\n", "\n")
    )


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("lmrl.reporting"),
        autoescape=True,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.jinja")


def _cell(value: CellLike) -> Cell:
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell("")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value))
    shown = f"{value:,}" if isinstance(value, int) else (f"{value:.4g}" if math.isfinite(value) else str(value))
    return Cell(shown, is_number=True)


def _drawing(svg: str, name: str) -> _Image:
    if not svg.startswith("<svg"):
        raise DataError(f"the drawing {name!r} begins with {svg[:20]!r}; expected <svg")
    # As an image of its own: the names inside of two drawings may be the same.
    return _Image(name, _address("svg+xml", svg.encode("utf-8")))


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the image {path} cannot be read ({error.strerror}); expected a PNG file") from error
