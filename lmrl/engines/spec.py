"""Sampling specification: one object that the sampler and the scorer both take.

The log-probability that a sampler records is that of the distribution it drew from, so whoever rescores a token must
apply the same temperature and the same restriction of the support. Both call ``SamplingSpec.log_distribution``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lmrl.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

OnLength = Literal["terminate", "truncate"]


@dataclass(frozen=True)
class SamplingSpec:
    """The distribution that tokens are drawn from, and when a response ends.

    ``temperature`` 0 means greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch those filters off. A response ends
    at one of ``eos_ids``, at one of ``stop_strings`` (text that is not part of the response), after
    ``max_new_tokens``, or when prompt and response fill ``context_length``. ``on_length`` says what the last two mean:
    ``"terminate"`` ends the episode and scores it, ``"truncate"`` withholds the score and lets the learner bootstrap.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 64
    eos_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    forbidden_ids: tuple[int, ...] = ()
    context_length: int | None = None
    on_length: OnLength = "terminate"

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, expected: str) -> None:
            if not condition:
                raise SettingsError(f"sampling.{name} is {getattr(self, name)!r}; expected {expected}")

        require(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "a finite number >= 0")
        require(self.top_k >= 0, "top_k", "an integer >= 0 (0 switches it off)")
        require(0 < self.top_p <= 1, "top_p", "a number in (0, 1] (1 switches it off)")
        require(0 <= self.min_p < 1, "min_p", "a number in [0, 1) (0 switches it off)")
        require(self.max_new_tokens >= 1, "max_new_tokens", "an integer >= 1")
        require(self.on_length in ("terminate", "truncate"), "on_length", "'terminate' or 'truncate'")
        require(all(self.stop_strings), "stop_strings", "strings that are not empty")
        require(self.context_length is None or self.context_length >= 2, "context_length", "an integer >= 2 or none")

    @property
    def filters_support(self) -> bool:
        """Whether top-k, top-p or min-p drop tokens, so that the support depends on the policy's own logits."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def log_distribution(self, logits: Tensor) -> Tensor:
        """Return the log-probabilities that tokens are drawn from, -inf outside the support.

        Shapes: logits and result (..., V). The order is that of transformers: forbidden tokens, temperature, top-k,
        top-p, min-p, then renormalisation. Computed in float32. Temperature 0 puts all mass on the first maximum.
        """
        from lmrl.engines.distribution import log_distribution

        return log_distribution(self, logits)
