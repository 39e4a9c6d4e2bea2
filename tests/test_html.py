"""The page builder: one file, nothing in a text is markup, images inside."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrl.errors import DataError
from lmrl.reporting.pages import Cell, Page

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Reader(HTMLParser):
    """Collects tags, attributes and text; an unclosed or crossed tag is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(page)
        assert not self.open, f"{self.open} are not closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def test_a_page_holds_what_was_added(tmp_path):
    (tmp_path / "plot.png").write_bytes(PNG)
    page = Page("Results & more").add_heading("Table").add_text("First.\n\nSecond <i>.")
    page.add_table(
        ["model", "reward", "n"], [["base", 0.25, 1200], [Cell("SFT\nlines", "KL 1"), None, float("nan")]], "c"
    )
    page.add_image(tmp_path / "plot.png", "a plot").add_image(PNG).add_commands(["lmrl chat <x>", "lmrl eval"])
    written = page.write(tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    reader = Reader(written)
    text = "".join(reader.text)
    for part in (
        "Results & more",
        "First.",
        "Second <i>.",
        "0.25",
        "1,200",
        "SFT\nlines",
        "KL 1",
        "nan",
        "lmrl chat <x>",
    ):
        assert part in text
    assert "i" not in reader.tags and reader.tags.count("td") == 6 and reader.tags.count("p") == 2
    images = [value for name, value in reader.attributes if name == "src"]
    assert len(images) == 2
    assert all(base64.b64decode(image.removeprefix("data:image/png;base64,")) == PNG for image in images)


def test_a_page_needs_nothing_from_outside():
    page = Page("t").add_table(["a"], [["https://example.org"]]).add_image(PNG)
    reader = Reader(str(page))
    assert not {"script", "link", "iframe", "a"} & set(reader.tags)
    assert all("//" not in (value or "") for name, value in reader.attributes if name in ("src", "href"))
    assert "url(" not in str(page) and "@import" not in str(page)


@given(st.text(), st.text())
def test_no_text_is_markup(first, second):
    page = Page(first).add_text(second).add_table([first], [[Cell(second, first)]], second).add_commands([first])
    plain = Reader(str(Page("x").add_text("x" if second.strip() else "").add_table(["x"], [[Cell("x", "x")]], "x")))
    reader = Reader(str(page.add_heading(second)))
    assert set(reader.tags) <= {*plain.tags, "pre", "h2", "span", "p", "caption"}
    str(page).encode("utf-8")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(DataError, match="row 2 of the table 'numbers' has 1 cells; expected one for each of the 2"):
        Page("t").add_table(["a", "b"], [[1, 2], [1]], "numbers")
    (tmp_path / "no.png").write_text("text")
    with pytest.raises(DataError, match="is not a PNG image"):
        Page("t").add_image(tmp_path / "no.png")
    with pytest.raises(DataError, match="cannot be read"):
        Page("t").add_image(tmp_path / "missing.png")
