"""Decoding and scoring responses as soon as they are complete, while the engine samples the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmrl.engines.protocol import Response
from lmrl.rewards.binding import sampled_columns
from lmrl.rewards.concurrent import ConcurrentReward
from lmrl.rewards.result import RewardResult
from lmrl.text.card import TextCodec, response_texts


class EarlyScores:
    """Texts and scores of one batch. ``texts`` and ``columns`` are the prompts', one per row.

    ``add`` takes each response when it is complete; the ids of the requests are the rows.
    """

    def __init__(
        self,
        concurrent: ConcurrentReward,
        codec: TextCodec,
        texts: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> None:
        self._pending = concurrent.batch()
        self._reward = concurrent.reward
        self._codec, self._texts, self._columns = codec, texts, columns
        self._responses: dict[int, str] = {}

    def add(self, response: Response) -> None:
        """Decode a response, and have it scored unless it is cut off."""
        request = response.request
        row, prompt, spec = request.id, list(request.ids), request.spec
        [text] = response_texts(self._codec, [prompt], [response.ids], spec.eos_ids, spec.stop_strings)
        self._responses[row] = text
        if response.truncated or not response.ids:
            return
        columns = {name: [column[row]] for name, column in self._columns.items()}
        columns |= sampled_columns(self._reward, self._codec, [prompt], [response.ids], [response.finish])
        self._pending.submit([row], [self._texts[row]], [text], columns)

    def responses(self) -> list[str]:
        """Return the text of every row."""
        return [self._responses[row] for row in range(len(self._responses))]

    def result(self, rows: Sequence[int]) -> RewardResult:
        """Return the scores of these rows; waits for them."""
        return self._pending.result(rows)

    def cancel(self) -> None:
        """Give up the calls that have not begun."""
        self._pending.cancel()
