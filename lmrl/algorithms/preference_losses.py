"""Losses of preference pairs and of labelled responses: pure functions of log-probabilities, each with its source.

Notation: P pairs, B responses; arguments are (P,) or (B,). The gap of a pair is the log-ratio of the chosen response
minus that of the rejected one, h = log pi(w)/pi_ref(w) - log pi(l)/pi_ref(l) (Rafailov et al. 2023), in nats; a margin
is beta times the gap. The trainer averages the losses, with the count of all ranks.
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
    """Settings of an optimizer that applies ``pair_loss``; an optimizer's settings inherit from this class.

    Raises ``SettingsError`` for a value out of range and for a ``label_smoothing`` that the loss does not use.
    """

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
    """Return the log-probability of each row, (B,), of those of its tokens, (B, T): their sum, or their mean per token.

    Rows without tokens get 0.
    """
    total = logprobs.masked_fill(~mask, 0).sum(1)
    return total / mask.sum(1).clamp_min(1) if average else total


def pair_loss(gap: Tensor, settings: PairLossSettings) -> Tensor:
    """Return the loss of each pair, (P,), of its ``gap`` (P,): the one of the four functions below that the settings
    name.

    Raises ``ValueError`` for another name.
    """
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
    """Return -(1 - e) log sigmoid(margin) - e log sigmoid(-margin), (P,), with e = ``label_smoothing``.

    With e = 0 it is the loss of DPO (Rafailov et al. 2023, eq. 7), else that of conservative DPO (Mitchell 2023), which
    assumes that a fraction e of the preferences is the wrong way round. It is stable at any margin.
    """
    return functional.softplus(-margin) + label_smoothing * margin  # log sigmoid(-m) = log sigmoid(m) - m


def robust_loss(margin: Tensor, label_smoothing: float) -> Tensor:
    """Return ((1 - e) l(margin) - e l(-margin)) / (1 - 2 e), (P,), with l = -log sigmoid (Chowdhury et al. 2024, sec.
    3).

    If a fraction e < 1/2 of the preferences was flipped, its expectation is that of DPO's loss without flips. It is
    unbounded below: a pair with a large margin has a negative loss.
    """
    flipped = functional.softplus(margin)
    return ((1 - label_smoothing) * functional.softplus(-margin) - label_smoothing * flipped) / (
        1 - 2 * label_smoothing
    )


def hinge_loss(margin: Tensor) -> Tensor:
    """Return max(0, 1 - margin), (P,): SLiC-HF's loss (Zhao et al. 2023) of log-ratios, as in RSO (Liu et al. 2024)."""
    return functional.relu(1 - margin)


def identity_loss(gap: Tensor, beta: float) -> Tensor:
    """Return (gap - 1 / (2 beta))^2, (P,): the loss of IPO (Azar et al. 2024, eq. 17, where beta is called tau)."""
    return (gap - 1 / (2 * beta)) ** 2


def log_odds(mean_logprobs: Tensor) -> Tensor:
    """Return log(p / (1 - p)), (B,), of p = exp(mean_logprobs) (Hong et al. 2024, ORPO, eq. 4).

    log(1 - p) is log(-expm1(log p)), which keeps all digits near p = 1, where 1 - exp(log p) would lose them. A row
    with p = 1 counts as one rounding error less certain, and has no gradient.
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
    """Return lambda_y - v of each response, (B,) (Ethayarajh et al. 2024, KTO, sec. 4.1).

    v is lambda_D sigmoid(reward - z0) of a ``desirable`` (B,) response and lambda_U sigmoid(z0 - reward) of an
    undesirable one. ``rewards`` (B,) and ``reference_point`` (z0) both include the factor beta.
    """
    away = rewards - reference_point
    return torch.where(
        desirable, desirable_weight * torch.sigmoid(-away), undesirable_weight * torch.sigmoid(away)
    )  # 1 - sigmoid(x) is sigmoid(-x)
