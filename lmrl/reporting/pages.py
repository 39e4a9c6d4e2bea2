"""One self-contained HTML page of headings, text, tables, images and commands: what stages and commands report with.

Everything that is given is text and is escaped; images are embedded, so that the page can be sent as one file. It reads
well on paper, on a narrow screen and in the dark. Leaves out scripts, and any address outside the page.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmrl.errors import DataError

DARK = """
@media (prefers-color-scheme: dark) { :root { --line: #3a4048; --soft: #1d2126; --note: #9aa4af; --mark: #6cb0ff; } }
"""
LIGHT = ":root { color-scheme: light; } body { background: #fff; color: #1a1a1a; }\n"
STYLE = (
    """
:root { color-scheme: light dark; --line: #d5d9de; --soft: #f4f6f8; --note: #5c6670; --mark: #1f6feb; }"""
    + DARK
    + """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1.05rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; color: var(--note); padding: .3rem 0; }
th, td { border: 1px solid var(--line); padding: .45rem .6rem; text-align: left; vertical-align: top; min-width: 5rem; }
thead th { background: var(--soft); }
td { white-space: pre-wrap; overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.strong { font-weight: 600; }
.note { display: block; color: var(--note); font-size: .85em; margin-top: .35rem; }
pre { background: var(--soft); border: 1px solid var(--line); padding: .7rem .9rem; overflow-x: auto; }
figure { margin: 1rem 0; } img { max-width: 100%; background: #fff; } figcaption { color: var(--note); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .3rem; }
.panels img { width: 100%; }
@media print {
  body { max-width: none; margin: 0; font-size: 10pt; } .scroll { overflow: visible; } pre { white-space: pre-wrap; }
  tr, figure > img, .panels img { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .panels { grid-template-columns: repeat(3, 1fr); } th, td { padding: .15rem .3rem; min-width: 0; }
  td.number { white-space: normal; }
}
"""
)


@dataclass(frozen=True)
class Cell:
    """A table's cell of running text with a smaller note below it, such as the answer's reward."""

    text: str
    note: str = ""
    strong: bool = False


CellLike = Cell | str | int | float | None


class Page:
    """A page that grows from top to bottom; ``write`` stores it. ``light`` keeps it dark on white in the dark, too."""

    def __init__(self, title: str, light: bool = False) -> None:
        self.title = title
        self.style = STYLE if not light else STYLE.replace(DARK, "") + LIGHT
        self._body: list[str] = [f"<h1>{escape(title)}</h1>"]

    def add_heading(self, text: str, level: int = 2) -> Page:
        """Add a heading of level 1 (as the title) to 6."""
        level = min(max(level, 1), 6)
        self._body.append(f"<h{level}>{escape(text)}</h{level}>")
        return self

    def add_text(self, text: str) -> Page:
        """Add running text; blank lines part paragraphs."""
        self._body += [f"<p>{escape(part)}</p>" for part in text.split("\n\n") if part.strip()]
        return self

    def add_table(self, columns: Sequence[str], rows: Iterable[Sequence[CellLike]], caption: str = "") -> Page:
        """Add a table: text cells keep their line ends, numbers stand on the right, None is an empty cell.

        Raises ``DataError`` for a row with another number of cells than there are columns.
        """
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
        lines = []
        for number, row in enumerate(rows, start=1):
            if len(row) != len(columns):
                raise DataError(
                    f"row {number} of the table {caption or self.title!r} has {len(row)} cells; expected one for each "
                    f"of the {len(columns)} columns {', '.join(columns)}"
                )
            lines.append(f"<tr>{''.join(_cell(value) for value in row)}</tr>")
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        body = "\n".join(lines)
        self._body.append(
            f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
        )
        return self

    def add_image(self, image: Path | str | bytes, caption: str = "") -> Page:
        """Add a PNG image, from a file or as bytes; raises ``DataError`` if it is none."""
        content = image if isinstance(image, bytes) else _read(Path(image))
        if not content.startswith(b"\x89PNG\r\n"):
            raise DataError(f"{'the image' if isinstance(image, bytes) else image} is not a PNG image; expected one")
        data = base64.b64encode(content).decode("ascii")
        below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._body.append(f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">{below}</figure>')
        return self

    def add_drawing(self, svg: str, caption: str = "") -> Page:
        """Add an SVG image; raises ``DataError`` if it is none."""
        below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._body.append(f"<figure>{_drawing(svg, caption)}{below}</figure>")
        return self

    def add_panels(self, panels: Iterable[tuple[str, str]], caption: str = "") -> Page:
        """Add small SVG images with their names, as many side by side as there is room for."""
        images = "\n".join(_drawing(svg, name) for name, svg in panels)
        below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._body.append(f'<figure><div class="panels">{images}</div>{below}</figure>')
        return self

    def add_commands(self, commands: Sequence[str]) -> Page:
        """Add commands of a shell, one a line, to be copied."""
        lines = "\n".join(escape(command) for command in commands)
        self._body.append(f"<pre>{lines}</pre>")
        return self

    def __str__(self) -> str:
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{self.style}</style>\n</head>\n<body>\n"
            + "\n".join(self._body)
            + "\n</body>\n</html>\n"
        )

    def write(self, path: Path | str) -> Path:
        """Write the page, making its folder if need be, and return its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(self), encoding="utf-8")
        return path


def escape(text: object) -> str:
    """Return text that a browser shows as it is; control characters, which HTML cannot hold, become U+FFFD.

    >>> escape('<b> & "c"')
    '&lt;b&gt; &amp; &quot;c&quot;'
    """
    shown = "".join(
        "\N{REPLACEMENT CHARACTER}" if (ord(c) < 32 and c not in "\n\t") or "\ud800" <= c <= "\udfff" else c
        for c in str(text).replace("\r\n", "\n")
    )
    return html.escape(shown)


def _cell(value: CellLike) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, bool) or not isinstance(value, int | float | Cell):
        return f"<td>{escape(value)}</td>"
    if isinstance(value, Cell):
        kind = ' class="strong"' if value.strong else ""
        note = f'<span class="note">{escape(value.note)}</span>' if value.note else ""
        return f"<td{kind}>{escape(value.text)}{note}</td>"
    shown = f"{value:,}" if isinstance(value, int) else (f"{value:.4g}" if math.isfinite(value) else str(value))
    return f'<td class="number">{shown}</td>'


def _drawing(svg: str, name: str) -> str:
    if not svg.startswith("<svg"):
        raise DataError(f"the drawing {name!r} begins with {svg[:20]!r}; expected <svg")
    # As an image of its own: the names inside of two drawings may be the same.
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return f'<img alt="{escape(name)}" src="data:image/svg+xml;base64,{data}">'


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the image {path} cannot be read ({error.strerror}); expected a PNG file") from error
