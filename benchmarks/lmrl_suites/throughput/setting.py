"""Settings of the suite: one dataclass, and the cells that it comes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from lmrl.errors import SettingsError, unknown
from lmrl_suites.throughput.shapes import SHAPES

Lengths = Literal["full", "varying"]
WORKLOADS = ("sampling", "update", "episodes", "learning", "environment", "memory")
LENGTHS: tuple[Lengths, ...] = ("full", "varying")
SIDES = ("lmrl", "generate", "generate_logprobs", "padded", "plain", "trl_grpo", "trl_rloo")
"""Sides of a comparison: ``generate`` is transformers' own, ``padded`` an update over padded rows with all logits,
``plain`` a whole batch of these two, ``trl_*`` TRL's trainers."""
LEARNER = "0.1M"
"""The model of the learning check."""
MIDDLE, LARGE = 5_000_000, 30_000_000
"""From so many parameters on a CPU leaves out parts of the suite; ``complete`` brings them back."""


@dataclass
class ThroughputSettings:
    """Settings of the throughput suite."""

    workloads: list[str] = field(default_factory=lambda: list(WORKLOADS))
    """Any of sampling, update, episodes (a whole batch: sample, score, update), learning (the same reward after the
    same number of updates), environment, memory."""
    sizes: list[str] = field(default_factory=list)
    """Models by their number of parameters: 1M, 10M, 60M on a CPU; 125M, 350M, 1B, 1.5B on a GPU; smoke is the
    smallest. Empty: those three on a CPU, 125M, 1B and 1.5B on a GPU."""
    lengths: list[str] = field(default_factory=lambda: list(LENGTHS))
    """full: every response has new_tokens tokens; varying: a response ends with probability 1/16 per token."""
    group_sizes: list[int] = field(default_factory=lambda: [1, 8])
    """Responses per prompt; whole batches are measured at the largest, which must then be 2 or more."""
    sides: list[str] = field(default_factory=list)
    """Sides besides lmrl: generate, generate_logprobs, padded, plain, trl_grpo, trl_rloo; empty is all."""
    rounds: int = 5
    """Timed runs of every side, in turns, after one that is not counted."""
    rows: int = 64
    """Episodes of a batch."""
    queue: int = 256
    """Rows of the longer queue, which is sampled with at most `rows` side by side; 0 leaves it out."""
    prompt_tokens: int = 32
    """Tokens of every prompt."""
    new_tokens: int = 64
    """Tokens of a response at the most."""
    microbatch_rows: int = 64
    """Rows per forward and backward pass of the peers; lmrl's budget is as many positions at full length."""
    microbatch_tokens: int = 0
    """Positions per pass of lmrl; 0 is its own default for the device, and never more than the peers' budget."""
    trl_checkpointing: bool = False
    """Let TRL recompute activations, its default: less memory, a slower update."""
    learning_updates: int = 40
    """Updates of the check that both sides reach the same reward."""
    learning_seeds: int = 3
    """Runs of that check on each side."""
    threads: int = 0
    """Threads of torch; 0 leaves them as they are."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: bfloat16 weights for sampling; whole batches keep float32 weights and compute in bfloat16."""
    complete: bool = False
    """Also what a CPU leaves out: from 5M parameters on one response per prompt, the queue at full length, RLOO and the
    plain batch; from 30M on the whole queue, generate with log-probabilities, and TRL's memory when it recomputes
    activations; and for all models memory where lengths vary."""
    smoke: bool = False
    """The smallest of everything, once, to see that it runs."""

    def __post_init__(self) -> None:
        if self.smoke:
            self.sizes, self.rounds, self.rows, self.queue = ["smoke"], 1, 8, 16
            self.prompt_tokens, self.new_tokens, self.microbatch_rows = 8, 8, 8
            self.group_sizes = [1, 4] if self.group_sizes == [1, 8] else self.group_sizes
            self.learning_updates, self.learning_seeds = 2, 1
        if not self.sizes:
            self.sizes = ["1M", "10M", "60M"] if self.device == "cpu" else ["125M", "1B", "1.5B"]
        for name, known in (("workloads", WORKLOADS), ("sizes", SHAPES), ("lengths", LENGTHS), ("sides", SIDES)):
            for value in getattr(self, name):
                if value not in known:
                    raise SettingsError(unknown(f"throughput.{name}", value, list(known)))
        positive = ("rounds", "rows", "prompt_tokens", "new_tokens", "microbatch_rows")
        for name in (*positive, "learning_updates", "learning_seeds"):
            if getattr(self, name) < 1:
                raise SettingsError(f"throughput.{name} is {getattr(self, name)}; expected at least 1")
        for name in ("queue", "microbatch_tokens", "threads"):
            if getattr(self, name) < 0:
                raise SettingsError(f"throughput.{name} is {getattr(self, name)}; expected at least 0")
        for size in self.group_sizes:
            if size < 1 or self.rows % size:
                raise SettingsError(f"throughput.group_sizes holds {size}; expected a divisor of rows, {self.rows}")
        if self.rows % self.microbatch_rows:
            raise SettingsError(
                f"throughput.microbatch_rows is {self.microbatch_rows}; expected a divisor of rows, {self.rows}"
            )

    def takes(self, side: str) -> bool:
        """Say whether a side takes part; lmrl always does."""
        return side == "lmrl" or not self.sides or side in self.sides

    def leaves_out(self, size: str, above: int) -> bool:
        """Say whether parts are left out of models of this size: on a CPU, beyond so many parameters."""
        return self.device == "cpu" and not self.complete and SHAPES[size].parameters > above

    @property
    def budget(self) -> int:
        """Positions per forward and backward pass that every side may use."""
        return self.microbatch_rows * (self.prompt_tokens + self.new_tokens)


@dataclass(frozen=True)
class Cell:
    """One comparison: a workload on a model, with lengths and a group size; ``rows`` are those of the batch."""

    workload: str
    size: str
    lengths: Lengths
    group_size: int
    rows: int
    algorithm: str = ""

    @property
    def name(self) -> str:
        """Text of the progress bar."""
        return f"{self.workload} {self.algorithm} {self.size} {self.lengths}, groups of {self.group_size}"


def cells(settings: ThroughputSettings) -> Iterator[Cell]:
    """Yield what is to be measured, size by size, then the environment (smallest size) and the learning check."""
    for size in settings.sizes:
        cut = settings.leaves_out(size, MIDDLE)
        groups = [max(settings.group_sizes)] if cut else settings.group_sizes
        for workload in ("sampling", "update", "episodes", "memory"):
            if workload not in settings.workloads:
                continue
            for lengths in LENGTHS:
                if lengths in settings.lengths:
                    yield from _of_lengths(settings, workload, size, lengths, groups)
    smallest = min(settings.sizes, key=lambda name: SHAPES[name].parameters)
    for workload, size in (("environment", smallest), ("learning", "smoke" if settings.smoke else LEARNER)):
        if workload in settings.workloads:
            yield Cell(workload, size, "full", max(settings.group_sizes), settings.rows)


def _of_lengths(
    settings: ThroughputSettings, workload: str, size: str, lengths: Lengths, groups: list[int]
) -> Iterator[Cell]:
    rows, largest = settings.rows, max(settings.group_sizes)
    cut, cut_more = settings.leaves_out(size, MIDDLE), settings.leaves_out(size, LARGE)
    if workload in ("sampling", "update"):
        for group in groups:
            yield Cell(workload, size, lengths, group, rows)
        if workload == "sampling" and settings.queue and not (cut_more or (cut and lengths == "full")):
            yield Cell("queue", size, lengths, largest, settings.queue)
    elif largest > 1 and workload == "episodes":
        for algorithm in ("grpo",) if cut else ("grpo", "rloo"):
            yield Cell(workload, size, lengths, largest, rows, algorithm)
    elif largest > 1 and not (settings.leaves_out(size, 0) and lengths == "varying" and "full" in settings.lengths):
        yield Cell(workload, size, lengths, largest, rows, "grpo")
