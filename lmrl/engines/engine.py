"""What a decode engine is: prompts and a ``SamplingSpec`` in, ``Samples`` with behaviour log-probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lmrl.algorithms.rollout import Samples
from lmrl.engines.spec import SamplingSpec
from lmrl.text.card import TextCodec

OnFinished = Callable[[list[int], list[list[int]]], None]
"""Takes rows whose responses are complete, by their index in the prompts, and the ids that each sampled."""


class Engine(Protocol):
    """Samples one response per prompt row.

    ``generate`` receives the policy's transformers model, token-id prompts (equal rows are samples of one prompt), the
    spec, a seed, and the codec if stop strings must be found. The same seed gives the same tokens.

    An engine whose ``EngineSpec`` says ``streams=True`` takes a further argument, ``on_finished=None``: a function
    ``(rows, ids)`` that it calls in the caller's thread while it samples, with each row once, when the row is complete.
    It may have a method ``close()``, which is called when a run ends.
    """

    def generate(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        spec: SamplingSpec,
        seed: int,
        codec: TextCodec | None = None,
    ) -> Samples:
        """Return one sampled response per row of ``prompts``."""
        ...
