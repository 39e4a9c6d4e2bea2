"""Losses of preference pairs and of labelled answers: pure functions of log-probabilities, each with its source.

Shared notation: every argument is (P,), one entry per pair, or (B,), one per answer; a gap is the log-ratio of the
chosen answer minus that of the rejected one, h = log pi(w)/pi_ref(w) - log pi(l)/pi_ref(l) (Rafailov et al. 2023).
Leaves out: models, and averaging (the trainer does it, with the count of all ranks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lmrl.algorithms.optimizer import OptimizerSettings
from lmrl.errors import SettingsError

PairLoss = Literal["sigmoid", "ipo", "hinge", "robust"]
"""Names of the losses of ``pair_loss``."""


@dataclass
class PairLossSettings(OptimizerSettings):
    """Settings of an optimizer that applies ``pair_loss``; its own inherit from this class."""

    beta: float = 0.1
    """Strength of the pull to the reference; IPO's tau."""
    loss: PairLoss = "sigmoid"
    """Loss of each pair. sigmoid: DPO, conservative with label_smoothing; ipo: a squared distance to a finite gap;
    hinge: SLiC's; robust: unbiased if a fraction label_smoothing of the pairs is the wrong way round."""
    label_smoothing: float = 0.0
    """Share of the pairs that is taken to be the wrong way round (sigmoid and robust)."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise SettingsError(f"beta is {self.beta}; expected a finite number above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise SettingsError(f"label_smoothing is {self.label_smoothing}; expected a share from 0 to below 0.5")
        if self.loss == "robust" and self.label_smoothing == 0:
            raise SettingsError(
                'loss is "robust", which corrects for flipped pairs; expected a label_smoothing above 0'
            )
        if self.loss in ("ipo", "hinge") and self.label_smoothing:
            raise SettingsError(
                f'label_smoothing is {self.label_smoothing}, but loss "{self.loss}" knows none; set it to 0, or choose '
                '"sigmoid" or "robust"'
            )


def sequence_logprobs(logprobs: Tensor, mask: Tensor, average: bool = False) -> Tensor:
    """Return the log-probability of each row, (B,), of its tokens' (B, T): their sum, or their mean per token.

    Rows without any token get 0.
    """
    total = logprobs.masked_fill(~mask, 0).sum(1)
    return total / mask.sum(1).clamp_min(1) if average else total


def pair_loss(gap: Tensor, settings: PairLossSettings) -> Tensor:
    """Return the loss of each pair, (P,), that the settings name: one of the four functions below."""
    beta, loss = settings.beta, settings.loss
    if loss == "sigmoid":
        return sigmoid_loss(beta * gap, settings.label_smoothing)
    if loss == "ipo":
        return identity_loss(gap, beta)
    if loss == "hinge":
        return hinge_loss(beta * gap)
    if loss == "robust":
        return robust_loss(beta * gap, settings.label_smoothing)
    raise ValueError(f"unknown loss of pairs {loss!r}; expected 'sigmoid', 'ipo', 'hinge' or 'robust'")


def sigmoid_loss(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return -(1 - e) log sigmoid(margin) - e log sigmoid(-margin), e being ``label_smoothing``.

    With e = 0 the loss of DPO (Rafailov et al. 2023, eq. 7), else that of conservative DPO (Mitchell 2023), which takes
    a share e of the preferences to be the wrong way round. Stable at any margin.
    """
    return functional.softplus(-margin) + label_smoothing * margin  # log sigmoid(-m) = log sigmoid(m) - m


def robust_loss(margin: Tensor, label_smoothing: float) -> Tensor:
    """Return ((1 - e) l(margin) - e l(-margin)) / (1 - 2 e) with l = -log sigmoid (Chowdhury et al. 2024, sec. 3).

    If a share e < 1/2 of the preferences was flipped, its expectation is that of DPO's loss without flips. It is
    unbounded below: a pair that is certain enough has a negative loss.
    """
    flipped = functional.softplus(margin)
    return ((1 - label_smoothing) * functional.softplus(-margin) - label_smoothing * flipped) / (
        1 - 2 * label_smoothing
    )


def hinge_loss(margin: Tensor) -> Tensor:
    """Return max(0, 1 - margin), SLiC-HF's loss (Zhao et al. 2023) over log-ratios, as in RSO (Liu et al. 2024)."""
    return functional.relu(1 - margin)


def identity_loss(gap: Tensor, beta: float) -> Tensor:
    """Return (gap - 1 / (2 beta))^2, the loss of IPO (Azar et al. 2024, eq. 17, where beta is called tau)."""
    return (gap - 1 / (2 * beta)) ** 2


def log_odds(mean_logprobs: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of p = exp(mean_logprobs) (Hong et al. 2024, eq. 4).

    log(1 - p) is log(-expm1(log p)), which keeps all digits near p = 1, where 1 - exp(log p) would lose them. A row
    that is certain to rounding counts as one rounding error less certain, and has no gradient.
    """
    bounded = mean_logprobs.clamp_max(-torch.finfo(mean_logprobs.dtype).eps)
    return bounded - torch.log(-torch.expm1(bounded))


def kahneman_tversky_loss(
    rewards: Tensor,
    reference_point: float,
    desirable: Tensor,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Return lambda_y - v of each answer, (B,) (Ethayarajh et al. 2024, sec. 4.1).

    v is lambda_D sigmoid(reward - z0) of a ``desirable`` (B,) answer and lambda_U sigmoid(z0 - reward) of another one.
    ``rewards`` and ``reference_point`` (z0) are both times beta already.
    """
    away = rewards - reference_point
    return torch.where(
        desirable, desirable_weight * torch.sigmoid(-away), undesirable_weight * torch.sigmoid(away)
    )  # 1 - sigmoid(x) is sigmoid(-x)
