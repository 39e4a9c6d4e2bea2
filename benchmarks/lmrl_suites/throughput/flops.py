"""Work of a model's arithmetic: floating-point operations, bytes of a decode step, and the floor of both.

A multiplication and an addition are two operations. A token of the body costs two per parameter (Kaplan et al. 2020,
sec. 2.1), a token whose successor is predicted two per entry of the output layer, and attention over c states
4 c width per layer. A training step costs three times its forward pass. The input embedding is a look-up.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmrl_suites.throughput.shapes import Shape


def _attention(shape: Shape, tokens: int, before: int = 0) -> int:
    """Operations of attention of ``tokens`` new states after ``before`` others, each over all up to itself."""
    last = before + tokens
    return 4 * shape.layers * shape.width * (last * (last + 1) - before * (before + 1)) // 2


def _forward(shape: Shape, tokens: int, predicted: int) -> int:
    return 2 * shape.body * tokens + 2 * shape.vocabulary * shape.width * predicted


def sampling_flops(shape: Shape, prompt: int, prompts: int, responses: Sequence[int]) -> int:
    """Return the operations of sampling: each distinct prompt is read once, and no response's last token is read."""
    total = _forward(shape, prompts * prompt, 0) + prompts * _attention(shape, prompt)
    for length in responses:
        total += _forward(shape, length - 1, length) + _attention(shape, length - 1, prompt)
    return total


def scoring_flops(shape: Shape, prompt: int, responses: Sequence[int]) -> int:
    """Return the operations of one teacher-forced forward pass over every row, prompts included."""
    total = 0
    for length in responses:
        tokens = prompt + length - 1
        total += _forward(shape, tokens, length) + _attention(shape, tokens)
    return total


def update_flops(shape: Shape, prompt: int, responses: Sequence[int]) -> int:
    """Return the operations of forward and backward passes over every row: three forward passes."""
    return 3 * scoring_flops(shape, prompt, responses)


def episode_flops(shape: Shape, prompt: int, prompts: int, responses: Sequence[int]) -> int:
    """Return the operations of sampling, the reference's pass, and the update."""
    scoring = scoring_flops(shape, prompt, responses)
    return sampling_flops(shape, prompt, prompts, responses) + 4 * scoring


def decode_step_flops(shape: Shape, rows: int, context: float) -> float:
    """Return the operations of one decode step of ``rows`` rows that have ``context`` states each."""
    return _forward(shape, rows, rows) + 4 * shape.layers * shape.width * context * rows


def decode_step_bytes(shape: Shape, rows: int, context: float, element: int) -> float:
    """Return the bytes that a decode step must read at the least: every weight once and every row's keys and values."""
    return element * (shape.parameters + 2 * shape.layers * shape.width * context * rows)


def decode_floor(shape: Shape, rows: int, context: float, element: int, flops: float, bandwidth: float) -> float:
    """Return the seconds that a decode step takes at the least, at measured peaks of operations and bytes a second."""
    return max(
        decode_step_flops(shape, rows, context) / flops, decode_step_bytes(shape, rows, context, element) / bandwidth
    )
