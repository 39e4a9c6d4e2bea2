"""Prediction of reference texts by a model: nats, perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmrl.algorithms import Sequences
from lmrl.data import ChatExample, CompletionExample, load_examples
from lmrl.data.loading.sources import open_rows
from lmrl.engines.protocol import SamplingSpec
from lmrl.errors import DataError, LmrlError
from lmrl.models.loading import LanguageModel
from lmrl.models.policy import PolicyModel
from lmrl.models.text_policy import score_logprobs
from lmrl.stages.evaluate.config import TextSettings
from lmrl.stages.evaluate.scores import token_budget
from lmrl.statistics.intervals import Interval, bootstrap_interval
from lmrl.text.card import ModelCard
from lmrl.text.chat_template import chat_row, response_row
from lmrl.text.encoding import opening_ids


@dataclass(frozen=True)
class TextRow:
    """Token ids of a text, which of them are predicted and counted, and the bytes that these stand for."""

    ids: list[int]
    counted: list[bool]
    size: int


@dataclass(frozen=True)
class ReferenceTexts:
    """Reference texts as they were read: answered prompts, or plain texts."""

    examples: list[ChatExample | CompletionExample]
    plain: list[str]
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.examples or self.plain)


def read_texts(settings: TextSettings) -> ReferenceTexts:
    """Read the reference texts; none if no path is named. Raises ``DataError`` for what cannot be read."""
    if not settings.rows.path:
        return ReferenceTexts([], [], ())
    if settings.kind == "examples":
        return _examples(settings)
    path = Path(settings.rows.path).expanduser()
    if path.suffix.lower() == ".txt" and path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 (byte {error.start}); convert it") from error
        return _plain([text], str(path), settings.characters)
    rows = open_rows(None, settings.rows, "reference texts", "texts.rows").rows
    if settings.kind == "plain" and rows and "text" not in rows[0]:
        raise DataError(f"{path} has no column 'text', but {', '.join(rows[0])}; expected one for texts.kind = plain")
    if rows and "text" in rows[0]:
        limited = rows[: settings.rows.limit] if settings.rows.limit else rows
        return _plain([str(row.get("text") or "") for row in limited], str(path), settings.characters)
    return _examples(settings)


def text_rows(texts: ReferenceTexts, card: ModelCard, context: int) -> list[TextRow | None]:
    """Return the texts as one model's rows; None in place of an example that does not fit into its context.

    Of an example the answers count, with the token that ends them. Plain text is cut into pieces of ``context`` tokens
    that share one token, so that each token but the first is predicted, and none twice.
    """
    if texts.plain:
        return [row for text in texts.plain for row in _pieces(text, card, context)]
    return [_example_row(example, card, context) for example in texts.examples]


def row_nats(model: LanguageModel, rows: Sequence[TextRow]) -> list[float]:
    """Return -log p of each row's counted tokens, in nats."""
    starts = [row.counted.index(True) for row in rows]
    inputs = Sequences.of_pairs(
        [(row.ids[:s], row.ids[s:]) for row, s in zip(rows, starts, strict=True)], model.model.device
    )
    spec = SamplingSpec()
    scored = score_logprobs(PolicyModel(model.model), inputs, spec, token_budget(model.model.device))
    nats = []
    for row, start, logprobs in zip(rows, starts, scored.double().tolist(), strict=True):
        nats.append(-math.fsum(p for p, one in zip(logprobs, row.counted[start:], strict=False) if one))
    return nats


def text_measures(nats: Sequence[float], rows: Sequence[TextRow], seed: int) -> dict[str, Interval]:
    """Return nats per token, perplexity and bits per byte with bootstrap intervals over the rows."""
    tokens = [float(sum(row.counted)) for row in rows]
    per_token = bootstrap_interval(nats, tokens, seed=seed)
    bits = [value / math.log(2) for value in nats]
    return {
        "nats_per_token": per_token,
        "perplexity": Interval(_exp(per_token.mean), _exp(per_token.low), _exp(per_token.high), per_token.count),
        "bits_per_byte": bootstrap_interval(bits, [float(row.size) for row in rows], seed=seed),
    }


def _examples(settings: TextSettings) -> ReferenceTexts:
    found = load_examples(settings.rows.path, settings.rows, "texts.rows")
    return ReferenceTexts(list(found.examples), [], tuple(found.notes))


def _plain(texts: list[str], where: str, characters: int) -> ReferenceTexts:
    kept: list[str] = []
    left = characters or sum(map(len, texts))
    for text in texts:
        if text.strip() and left > 0:
            kept.append(text[:left])
            left -= len(text)
    if not kept:
        raise DataError(f"{where} holds no text; expected some")
    left_out = sum(not text.strip() for text in texts)
    notes = (f"{where}: {left_out} texts without a word were left out",) if left_out else ()
    return ReferenceTexts([], kept, notes)


def _pieces(text: str, card: ModelCard, context: int) -> list[TextRow]:
    plain, spans = card.codec.encode_spans(text)
    before = opening_ids(card.codec)
    if plain[: len(before)] == before:  # the text begins with BOS
        before = []
    ids = [*before, *plain]
    # Bytes from token to token, not of the tokens' own spans: some leave spaces out, and some share a character.
    edges = [0] * len(before) + [len(text[:start].encode()) for start, _ in spans] + [len(text.encode())]
    if before:
        edges[len(before)] = 0
    rows = []
    for start in range(0, len(ids) - 1, context - 1):
        piece = ids[start : start + context]
        size = edges[start + len(piece)] - edges[start + 1]
        rows.append(TextRow(piece, [False] + [True] * (len(piece) - 1), max(size, 1)))
    return rows


def _example_row(example: ChatExample | CompletionExample, card: ModelCard, context: int) -> TextRow | None:
    if isinstance(example, ChatExample):
        ids, counted = chat_row(card.codec, card.eos_ids, example.messages)
        size = sum(len(turn["content"].encode()) for turn in example.messages if turn["role"] == "assistant")
    else:
        prompt, answer = response_row(card.codec, card.eos_ids, example.prompt, example.completion)
        ids, counted = [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)
        size = len(example.completion.encode())
    if not ids or not any(counted) or counted[0] or len(ids) > context or size == 0:
        return None
    return TextRow(list(ids), list(counted), size)


def why_not(error: LmrlError) -> str:
    """Return the first sentence of an error, for a note."""
    return str(error).split("; ")[0]


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
