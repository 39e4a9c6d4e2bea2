"""Settings of the decode engines that ship with the core; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TransformersEngineSettings:
    """Settings of the default decode engine."""

    rows: int = 512
    """Rows decoded side by side at the most; more prompts are sampled in turns."""
    compact_share: float = 0.125
    """Finished rows are taken out of the batch once they are this share of it; 0 takes each out at once."""
