"""Examples to imitate: conversations, and texts with their completions, out of rows of any known shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from lmrl.data.layouts.conversations import opening
from lmrl.data.layouts.reading import Answered, Skip
from lmrl.data.layouts.rows import RowSettings, Tally, as_asked, conversation, load
from lmrl.data.layouts.shapes import Row, Shape
from lmrl.data.loading.sources import Source
from lmrl.data.records import ChatExample, CompletionExample
from lmrl.data.splitting import digest_of, held_out_places, others
from lmrl.text.conversation import variables_of

Example: TypeAlias = ChatExample | CompletionExample


@dataclass(frozen=True)
class ExampleSet:
    """Examples, with what the rows were taken for and what was left out.

    ``skipped`` counts the rows left out by reason, ``notes`` says the same in sentences with the first row of each.
    """

    examples: list[Example]
    shape: str = ""
    skipped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def select(self, indices: Sequence[int]) -> ExampleSet:
        """Return the examples at these indices, in this order; an index may come more than once."""
        return replace(self, examples=[self.examples[index] for index in indices])

    def split(self, held_out: float, seed: int = 0) -> tuple[ExampleSet, ExampleSet]:
        """Return (training, held-out) examples; ``held_out`` is a count, or a share below 1.

        Membership depends on the seed and the prompt alone, as in ``PromptSet.split``: equal prompts, and conversations
        that begin alike, stay on one side.
        """
        keys = [_opening(example) for example in self.examples]
        chosen = held_out_places(keys, held_out, seed, "examples")
        return self.select(others(chosen, len(self))), self.select(chosen)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the examples: a resumed run compares it to refuse changed data."""
        return digest_of(
            _plain(example) if isinstance(example, ChatExample) else [example.prompt, example.completion]
            for example in self.examples
        )


def load_examples(
    source: Source | None = None, settings: RowSettings | None = None, setting: str = "data"
) -> ExampleSet:
    """Read examples to imitate from a file, a list of rows, a saved folder or the hub.

    ``source`` defaults to ``settings.path``, and ``setting`` names its section in messages.
    The shape is recognised by the columns (``docs/datasets.md`` has them
    all); where a prompt has several answers, the best is taken. A row without an answer, with an empty message or an
    unknown role is left out and counted.

    Raises ``DataError`` when the source is missing, broken, of an unknown shape, or no row is left.
    """
    settings = settings or RowSettings()

    def make(answered: Answered, row: Row, shape: Shape, tally: Tally) -> Example:
        prompt, completions = as_asked(answered, settings.chat, shape)
        answer = completions[answered.ranks.index(0)] if answered.ranks else ""
        if isinstance(answer, str) and not answer.strip():
            raise Skip("an empty answer")
        if isinstance(prompt, str):
            return CompletionExample(prompt, str(answer))
        return ChatExample(conversation(prompt, answer))

    found = load(source, settings, "examples", make, setting)
    return ExampleSet(found.records, found.shape, found.skipped, found.notes)


def _plain(example: ChatExample) -> list[object]:
    variables = variables_of(example.messages)
    return [*(dict(item) for item in example.messages), *([{"variables": variables}] if variables else [])]


def _opening(example: Example) -> str:
    return opening(example.messages if isinstance(example, ChatExample) else example.prompt)
