"""What a decode engine is: prompts and a ``SamplingSpec`` in, ``Samples`` with behaviour log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lmrl.models.card import TextCodec
from lmrl.rollout import Samples
from lmrl.sampling.spec import SamplingSpec


class Engine(Protocol):
    """Samples one response per prompt row.

    ``generate`` receives the policy's transformers model, token-id prompts (equal rows are samples of one prompt), the
    spec, a seed, and the codec if stop strings must be found. The same seed gives the same tokens.
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
