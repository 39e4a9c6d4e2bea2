"""Examples as rows of token ids with the mask of what is trained; what cannot be used is left out and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from lmrl.data.encoding import LeftOut, encode_all
from lmrl.data.examples import Example, ExampleSet
from lmrl.data.layouts.conversations import before_answer, text_of_answer
from lmrl.data.prompts import dropped_keys
from lmrl.data.records import ChatExample
from lmrl.errors import DataError, ModelError
from lmrl.stages.sft.batches import Row
from lmrl.stages.sft.config import SFTDataSettings
from lmrl.text.chat_template import chat_row, prompt_ids, response_row
from lmrl.text.codec import TextCodec

SHOWN_AFTER_SECONDS = 3.0


@dataclass(frozen=True)
class EncodedSet:
    """Rows with their examples; ``skipped`` counts the examples left out by reason, ``notes`` says it in sentences."""

    rows: list[Row]
    examples: list[Example]
    skipped: dict[str, int]
    notes: tuple[str, ...]


def encode_examples(
    examples: ExampleSet,
    codec: TextCodec,
    eos_ids: Sequence[int],
    settings: SFTDataSettings,
    context: int,
    vocabulary: int,
    where: str = "training",
    progress: bool = False,
) -> EncodedSet:
    """Return the rows of the examples that can be trained on.

    ``context`` is the model's length in tokens, ``vocabulary`` the rows of its embedding table. Raises ``DataError``
    when no example is left, ``ModelError`` for an id beyond the table.
    """
    limit = min(settings.max_length or context, context)
    truncated = 0
    bar = tqdm(
        examples.examples, desc=f"encode {where}", unit="example", delay=SHOWN_AFTER_SECONDS, disable=not progress
    )

    def encode(example: Example) -> Row:
        nonlocal truncated
        row = encode_example(example, codec, eos_ids, settings)
        _refuse_foreign_ids(row, vocabulary, f"{where} example {bar.n + 1}")
        if len(row) > limit:
            if settings.too_long == "skip":
                raise LeftOut(f"longer than {limit} tokens", f"{len(row)} tokens")
            truncated += 1
            row = Row(row.ids[:limit], row.trained[:limit])
        if not row.count:
            raise LeftOut("nothing of the answer is left to learn", f"{len(row)} tokens")
        return row

    found = encode_all(bar, encode, "the chat template cannot render it")
    notes = [
        f"{where}: left out {count}: {reason} (first: example {found.first[reason][0]}: {found.first[reason][1]})"
        for reason, count in found.skipped.items()
    ]
    notes += dropped_keys(codec, [item.messages for item in found.kept if isinstance(item, ChatExample)], where)
    if not found.rows:
        raise DataError(f"no {where} example of {len(examples)} can be used. " + "; ".join(notes))
    if truncated:
        notes.append(f"{where}: cut off {truncated} of {len(examples)} at {limit} tokens, their end is not learnt")
    return EncodedSet(found.rows, found.kept, found.skipped, tuple(notes))


def encode_example(example: Example, codec: TextCodec, eos_ids: Sequence[int], settings: SFTDataSettings) -> Row:
    """Return one example's ids and mask."""
    if isinstance(example, ChatExample):
        return Row(*chat_row(codec, eos_ids, example.messages, turns=settings.turns))
    prompt, completion = response_row(codec, eos_ids, example.prompt, example.completion)
    return Row(prompt + completion, [False] * len(prompt) + [True] * len(completion))


@dataclass(frozen=True)
class Question:
    """A held-out prompt to answer: its text and ids, and what the data answer."""

    prompt: str
    ids: list[int]
    reference: str


def question_of(example: Example, codec: TextCodec) -> Question:
    """Return the prompt before an example's last answer."""
    if not isinstance(example, ChatExample):
        return Question(example.prompt, prompt_ids(codec, example.prompt)[1], example.completion)
    asked, answer = before_answer(example.messages)
    shown = "\n".join(f"{message['role']}: {message['content']}" for message in asked)
    return Question(shown, prompt_ids(codec, asked)[1], text_of_answer(answer))


def _refuse_foreign_ids(row: Row, vocabulary: int, where: str) -> None:
    highest = max(row.ids)
    if highest >= vocabulary:
        raise ModelError(
            f"{where} holds the token id {highest}, and the model's embedding table has {vocabulary} rows; the "
            "tokenizer does not belong to this model."
        )
