"""Decoding and scoring rows as soon as they are complete, while the engine samples the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmrl.engines.finish import FinishReason
from lmrl.engines.spec import SamplingSpec
from lmrl.rewards.concurrent import ConcurrentReward
from lmrl.rewards.function import RewardResult
from lmrl.rewards.offered import sampled_columns
from lmrl.text.card import TextCodec, contains_stop, response_texts


class EarlyScores:
    """Texts and scores of one batch. ``ids``, ``texts`` and ``columns`` are the prompts', one per row.

    ``add`` is what an engine takes as ``on_finished``. Rows that it does not tell of are decoded and scored at the end.
    """

    def __init__(
        self,
        concurrent: ConcurrentReward,
        codec: TextCodec,
        spec: SamplingSpec,
        ids: Sequence[Sequence[int]],
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> None:
        self._pending = concurrent.batch()
        self._reward = concurrent.reward
        self._codec, self._spec = codec, spec
        self._ids, self._texts, self._columns = ids, texts, columns
        self._responses: dict[int, str] = {}
        self._sampled: dict[int, list[int]] = {}

    def add(self, rows: list[int], response_ids: list[list[int]]) -> None:
        """Decode complete rows and have those scored that are not cut off."""
        self._decode(rows, response_ids)
        pairs = zip(rows, response_ids, strict=True)
        self._submit([row for row, ids in pairs if self._spec.on_length == "terminate" or self._ended(row, ids)])

    def responses(self, response_ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of every row, given what all of them sampled."""
        missing = [row for row in range(len(response_ids)) if row not in self._responses]
        if missing:
            self._decode(missing, [response_ids[row] for row in missing])
        return [self._responses[row] for row in range(len(response_ids))]

    def result(self, rows: Sequence[int]) -> RewardResult:
        """Return the scores of these rows, whose texts are known; waits for them."""
        self._submit([row for row in rows if row not in self._pending.rows])
        return self._pending.result(rows)

    def cancel(self) -> None:
        """Give up the calls that have not begun."""
        self._pending.cancel()

    def _decode(self, rows: Sequence[int], response_ids: Sequence[Sequence[int]]) -> None:
        prompts, spec = [self._ids[row] for row in rows], self._spec
        texts = response_texts(self._codec, prompts, response_ids, spec.eos_ids, spec.stop_strings)
        self._responses.update(zip(rows, texts, strict=True))
        self._sampled.update((row, list(ids)) for row, ids in zip(rows, response_ids, strict=True))

    def _submit(self, rows: Sequence[int]) -> None:
        if not rows:
            return
        columns = {name: [column[row] for row in rows] for name, column in self._columns.items()}
        prompts, sampled = [self._ids[row] for row in rows], [self._sampled[row] for row in rows]
        reasons = [self._reason(row, ids) for row, ids in zip(rows, sampled, strict=True)]
        columns |= sampled_columns(self._reward, self._codec, prompts, sampled, reasons)
        texts = [self._texts[row] for row in rows]
        self._pending.submit(rows, texts, [self._responses[row] for row in rows], columns)

    def _ended(self, row: int, ids: list[int]) -> bool:
        return self._reason(row, ids) in (FinishReason.EOS, FinishReason.STOP)

    def _reason(self, row: int, ids: list[int]) -> FinishReason:
        spec = self._spec
        if ids[-1] in spec.eos_ids:
            return FinishReason.EOS
        if spec.stop_strings and contains_stop(self._codec, self._ids[row], ids, spec.stop_strings):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(ids) >= spec.max_new_tokens else FinishReason.CONTEXT
