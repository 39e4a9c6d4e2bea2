"""Scorers of the frozen reference: with a key-value cache, or by reading every state anew.

Imports torch. Rows stand at different positions, because episodes end and start again at different times.
"""

from __future__ import annotations

import multiprocessing
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lmrl.engines.protocol import SamplingSpec
from lmrl.envs.reference import FrozenModel

Ids = NDArray[np.int64]
PREFILL_ROWS = 32
"""Prompts read side by side; they are sorted by length first, so that little padding is read."""


class Scorer(Protocol):
    """Log-probabilities of actions in B states; see ``Reference.logprobs``."""

    def begin(self, row: int) -> None:
        """Forget what was computed for this row."""
        ...

    def logprobs(self, tokens: Ids, lengths: Ids, actions: Ids, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return log pi_ref of each action, anything outside ``rows``."""
        ...


def make_scorer(model: FrozenModel, temperature: float, rows: int, length: int) -> Scorer:
    """Return the cached scorer where it is right for this model, and the plain one elsewhere."""
    if multiprocessing.current_process().daemon:
        # A worker of AsyncVectorEnv: its neighbours fill the cores, and a fork inherits a thread pool without threads.
        torch.set_num_threads(1)
    if model.cache_works is None:
        model.cache_works = _cache_works(model)
    if model.cache_works:
        return CachedScorer(model, temperature, rows, length)
    return ReencodingScorer(model, temperature)


class ReencodingScorer:
    """Reads each state from its first token on: no cache, no padding, no mask. States of one length go together."""

    def __init__(self, model: FrozenModel, temperature: float) -> None:
        self.model = model
        self.spec = SamplingSpec(temperature=temperature)

    def begin(self, row: int) -> None:
        """There is nothing to forget."""

    @torch.no_grad()
    def logprobs(self, tokens: Ids, lengths: Ids, actions: Ids, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return log pi_ref of each action, 0 outside ``rows``."""
        model = self.model.load().model
        result = np.zeros(len(tokens))
        for length in np.unique(lengths[rows]):
            chosen = np.flatnonzero(rows & (lengths == length))
            ids = torch.from_numpy(tokens[chosen, :length]).to(model.device)
            logits = self.model.last_logits(input_ids=ids, use_cache=False)
            result[chosen] = _of_actions(self.spec, logits, actions[chosen])
        return result


class RowLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (B, heads, L, width), each row filled up to a length of its own.

    Before a forward pass either ``positions`` (B,) says where each row's one new token goes, or ``rows`` says which
    rows are read from their first token on.
    """

    def __init__(self, batch: int, capacity: int) -> None:
        super().__init__()
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.batch = batch
        self.capacity = capacity
        self.rows: Tensor | None = None
        self.positions: Tensor | None = None
        self.width = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the new columns and return all that may be attended to."""
        if self.keys is None or self.values is None:
            heads, depth = key_states.shape[1], (key_states.shape[3], value_states.shape[3])
            self.dtype, self.device = key_states.dtype, key_states.device
            # Zeros, because masked columns are still multiplied, and 0 times NaN is NaN.
            self.keys = key_states.new_zeros(self.batch, heads, self.capacity, depth[0])
            self.values = value_states.new_zeros(self.batch, heads, self.capacity, depth[1])
            self.is_initialized = True
        if self.positions is None:
            columns = key_states.shape[2]
            self.keys[self.rows, :, :columns] = key_states
            self.values[self.rows, :, :columns] = value_states
            return key_states, value_states
        every_row = torch.arange(self.batch, device=key_states.device)
        self.keys[every_row, :, self.positions] = key_states[:, :, 0]
        self.values[every_row, :, self.positions] = value_states[:, :, 0]
        return self.keys[:, :, : self.width], self.values[:, :, : self.width]

    def get_seq_length(self, *args: Any) -> int:
        """Return how many columns precede the new ones."""
        return 0 if self.positions is None else self.width - 1

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        """Return the number of columns attended to, and the first one."""
        new = query if isinstance(query, int) else len(query)
        return (new if self.positions is None else self.width), 0


class CachedScorer:
    """Reads one new token per row and step. A row that starts again has its prompt read first.

    The cache only ever holds tokens of the state *before* the action, so a step that fails leaves it right.
    """

    def __init__(self, model: FrozenModel, temperature: float, rows: int, length: int) -> None:
        self.model = model
        self.spec = SamplingSpec(temperature=temperature)
        self.length = length
        self.cached = np.zeros(rows, dtype=np.int64)
        """Tokens of each row in the cache."""
        self.layers = [RowLayer(rows, length) for _ in DynamicCache(config=model.load().model.config).layers]

    def begin(self, row: int) -> None:
        """Forget what was computed for this row."""
        self.cached[row] = 0

    @torch.no_grad()
    def logprobs(self, tokens: Ids, lengths: Ids, actions: Ids, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return log pi_ref of each action, anything outside ``rows``."""
        unread = np.flatnonzero(rows & (self.cached < lengths - 1))
        unread = unread[np.argsort(lengths[unread], kind="stable")]
        for start in range(0, len(unread), PREFILL_ROWS):
            self._prefill(tokens, lengths, unread[start : start + PREFILL_ROWS])
        # Rows outside `rows` read their first token once more: it lands where it was, and no row is left out.
        positions = np.where(rows, lengths - 1, 0)
        logits = self._read(tokens[np.arange(len(tokens)), positions], positions)
        self.cached[rows] = lengths[rows]
        return _of_actions(self.spec, logits, np.where(rows, actions, 0))

    def _prefill(self, tokens: Ids, lengths: Ids, rows: Ids) -> None:
        """Read all tokens but the last of these rows. Padding on the right is never attended to: the pass is causal."""
        model = self.model.load().model
        width = int(lengths[rows].max()) - 1
        ids = torch.from_numpy(np.where(np.arange(width) < (lengths[rows] - 1)[:, None], tokens[rows, :width], 0))
        for layer in self.layers:
            layer.rows, layer.positions = torch.from_numpy(rows).to(model.device), None
        self.model.last_logits(
            input_ids=ids.to(model.device), past_key_values=Cache(layers=self.layers), use_cache=True
        )
        self.cached[rows] = lengths[rows] - 1

    def _read(self, ids: Ids, positions: Ids) -> Tensor:
        """Read one token per row at its position and return the next-token logits, (B, V)."""
        model = self.model.load().model
        place = torch.from_numpy(positions).to(model.device)
        width = int(positions.max()) + 1
        hidden = torch.arange(width, device=model.device)[None, :] > place[:, None]
        mask = torch.zeros(hidden.shape, dtype=model.dtype, device=model.device)
        mask = mask.masked_fill(hidden, torch.finfo(model.dtype).min)[:, None, None, :]
        for layer in self.layers:
            layer.positions, layer.width = place, width
        return self.model.last_logits(
            input_ids=torch.from_numpy(ids).to(model.device)[:, None],
            position_ids=place[:, None],
            attention_mask=mask,
            past_key_values=Cache(layers=self.layers),
            use_cache=True,
        )


def _of_actions(spec: SamplingSpec, logits: Tensor, actions: Ids) -> NDArray[np.float64]:
    chosen = torch.from_numpy(actions).to(logits.device)[:, None]
    logprobs: NDArray[np.float64] = spec.log_distribution(logits).gather(-1, chosen).squeeze(-1).double().cpu().numpy()
    return logprobs


def _cache_works(model: FrozenModel) -> bool:
    """Try a few tokens both ways: families whose layers, masks or positions are of another kind are re-encoded."""
    language_model = model.load()
    own = DynamicCache(config=language_model.model.config)
    plain_layers = bool(own.layers) and all(type(layer) is DynamicLayer for layer in own.layers)
    if language_model.card.sliding_window or not plain_layers:
        return False
    vocabulary = language_model.card.vocab_size
    tokens = np.arange(1, 13, dtype=np.int64).reshape(2, 6) % vocabulary
    actions, rows = np.array([0, 1]) % vocabulary, np.ones(2, dtype=np.bool_)
    plain, cached = ReencodingScorer(model, 1.0), CachedScorer(model, 1.0, 2, 6)
    tolerance = 1e-4 if language_model.model.dtype == torch.float32 else 5e-2
    try:
        for lengths in (np.array([3, 1]), np.array([4, 2]), np.array([5, 3])):
            expected = plain.logprobs(tokens, lengths, actions, rows)
            found = cached.logprobs(tokens, lengths, actions, rows)
            if not np.allclose(found, expected, rtol=tolerance, atol=tolerance):
                return False
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError):
        return False
    return True
