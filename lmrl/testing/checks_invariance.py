"""Checks that an update is the same however its rows are padded, ordered, cut or spread over ranks.

Each compares gradients of a policy that has moved off the sampling policy. What stands outside the action mask is 0, as
the contract promises; the mask is tested by where its holes are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from lmrl.algorithms.rollout import Rollout
from lmrl.testing.columns import map_tensors, with_gap
from lmrl.testing.trial import Trial, mask_rows

JUNK = 1e3


def check_padding(trial: Trial) -> str:
    """Three more columns of padding change nothing."""
    data = trial.experience()
    difference = trial.difference(trial.update(data), trial.update(with_gap(data, _width(data), 3)))
    if not difference:
        return ""
    return (
        f"three more columns of padding change the gradient by {difference:.0%}; expected no change: wherever an entry "
        "of a row or of the batch is counted or averaged, do it within batch.action_mask (ops.masked_mean)"
    )


def check_mask(trial: Trial) -> str:
    """Steps that the policy did not take, before or between its actions, are transparent."""
    data = trial.experience()
    whole = trial.update(data)
    for place in (0, 2):
        difference = trial.difference(whole, trial.update(with_gap(data, place)))
        if difference:
            where = "before the first action" if place == 0 else "between two actions"
            return (
                f"a step outside the action mask {where} changes the gradient by {difference:.0%}; expected no change: "
                "let action_mask say which columns are actions, never their place (ops.returns_to_go and "
                "ops.generalized_advantages step over the others)"
            )
    return ""


def check_bootstrap(trial: Trial) -> str:
    """The value of the state after the last action is used for truncated rows alone, whatever it is elsewhere."""
    data = trial.experience()
    if not isinstance(data, Rollout):
        return ""
    whole = trial.update(data)
    for junk in (JUNK, torch.nan):
        values = data.bootstrap_values.masked_fill(data.terminated, junk)
        changed = dataclasses.replace(data, declared={**data.declared, "bootstrap_values": values})
        difference = trial.difference(whole, trial.update(changed))
        if difference:
            return (
                f"rollout.bootstrap_values of terminated rows change the gradient by {difference:.0%}; expected no "
                "change, because nothing follows a terminated episode: use them only where rollout.truncated is true"
            )
    return ""


def check_unscored(trial: Trial) -> str:
    """A row without a score takes part in no average: its score and rewards change nothing."""
    data = trial.experience()
    if not isinstance(data, Rollout):
        return ""
    unscored = torch.arange(len(data)) % trial.group_size == 1
    data = dataclasses.replace(data, scored=data.scored & ~unscored, loss_mask=data.loss_mask & ~unscored[:, None])
    filled = dataclasses.replace(
        data,
        scores=data.scores.masked_fill(unscored, JUNK),
        rewards=data.rewards.masked_fill(unscored[:, None] & data.action_mask, JUNK),
    )
    difference = trial.difference(trial.update(data), trial.update(filled))
    if not difference:
        return ""
    return (
        f"the scores and rewards of rows without a score change the gradient by {difference:.0%}; expected no change: "
        "let baselines and deviations be those of the rows in rollout.scored, for example over "
        "ops.split_off(rollout.group, ~rollout.scored), and whiten within rollout.loss_mask"
    )


def check_order(trial: Trial) -> str:
    """Rows in another order, with other group numbers, give the same update."""
    data = trial.experience()
    whole = trial.update(data)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(5))
    difference = trial.difference(whole, trial.update(_with_other_groups(data.select(order))))
    if not difference:
        return ""
    return (
        f"the same rows in another order, with other group numbers, change the gradient by {difference:.0%}; expected "
        "no change: find the rows of one prompt by rollout.group, never by their places, and look for a view() or "
        "reshape() into groups"
    )


def check_microbatches(trial: Trial) -> str:
    """One row at a time gives the same gradient as all at once."""
    data = trial.experience()
    difference = trial.difference(trial.update(data), trial.update(data, microbatch=1))
    if not difference:
        return ""
    return (
        f"cut into microbatches of one row, the gradient differs by {difference:.0%} from that of all rows at once; "
        "expected the same: loss() sees only a part of the minibatch, so let it return each token's or row's own loss, "
        "and compute what takes all rows in advantages() or statistics()"
    )


def check_ranks(trial: Trial) -> str:
    """Two ranks with half of the groups each take the step of one process."""
    data = trial.experience()
    half = len(data) // 2
    shares = [data.select(torch.arange(half)), data.select(torch.arange(half, len(data)))]
    if isinstance(data, Rollout):
        shares[1] = dataclasses.replace(shares[1], group=shares[1].group - int(shares[1].group.min()))
    difference = trial.difference(trial.update(data), trial.update_over_ranks(shares))
    if not difference:
        return ""
    return (
        f"two ranks with half of the rows each take another step than one process with all, by {difference:.0%}; "
        "expected the same: what depends on all rows belongs into advantages(), which is given the rollout of all "
        "ranks, or into statistics()"
    )


def check_empty_rows(trial: Trial) -> str:
    """A row without any action counts for nothing."""
    optimizer = trial.build()
    batch = trial.batch(optimizer, trial.experience())
    kept = torch.ones(len(batch), dtype=torch.bool)
    kept[1::5] = False
    without, empty = batch.select(kept.nonzero().squeeze(1)), mask_rows(batch, kept)
    difference = trial.difference(trial.update(without, optimizer), trial.update(empty, optimizer))
    if not difference:
        return ""
    return (
        f"rows whose action mask is all false change the gradient by {difference:.0%}; expected that they count for "
        "nothing: count rows and tokens by batch.action_mask, and divide by a count that is clamped to at least 1"
    )


def _width(data: Any) -> int:
    """Return the number of columns of the narrowest (B, T) tensor."""
    widths: list[int] = []

    def see(tensor: Tensor) -> Tensor:
        widths.extend([tensor.shape[1]] if tensor.ndim == 2 else [])
        return tensor

    map_tensors(data, see)
    return min(widths)


def _with_other_groups(data: Any) -> Any:
    if not isinstance(data, Rollout):
        return data
    _, places = data.group.unique(return_inverse=True)
    numbers = 3 + 7 * torch.randperm(int(places.max()) + 1, generator=torch.Generator().manual_seed(6))
    return dataclasses.replace(data, group=numbers[places])
