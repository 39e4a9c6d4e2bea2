"""Documents of a corpus with the place they came from, and the imports of the text extra."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lmrl.errors import DataError


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it was found: the file (or the id on the hub) and its number there, from 1.

    The number is a line of a JSON file, a row of a table, a record of a web archive, or a piece of a text file.
    ``address`` is the web address where there is one.
    """

    text: str
    source: str
    number: int
    address: str = ""

    @property
    def where(self) -> str:
        """The document's place in words, for reports."""
        return f"{self.source}:{self.number}" + (f" ({self.address})" if self.address else "")


def extra(module: str, purpose: str) -> Any:
    """Return a module of the extra ``text``. Raises ``DataError`` that names the extra when it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(
            f'{purpose} needs {module.split(".")[0]} ({error}); it comes with: pip install "lmrl[text]"'
        ) from error
