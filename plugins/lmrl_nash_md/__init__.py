"""Nash-MD (Munos et al. 2024), as a plugin of lmrl: a policy that no other one is preferred to.

Each response of the policy meets one of a geometric mixture of policy and reference. Its advantage is the chance that
it is preferred, by Bradley and Terry's model of the two scores, minus 1/2; the KL is the trainer's (``[kl]``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lmrl import (
    Advantages,
    Loss,
    Needs,
    OptimizerSettings,
    OptimizerSpec,
    PolicyOptimizer,
    SettingsError,
    hookimpl,
    ops,
)
from lmrl.algorithms import Batch, LossAggregation, Mixture, Policy, Rollout
from lmrl.engines import Request


@dataclass
class NashMDSettings(OptimizerSettings):
    """Settings of Nash-MD."""

    mixture: float = 0.125
    """Share of the reference in the opponent pi^(1 - mixture) pi_ref^mixture; 0 is self-play, 1 plays the reference."""
    temperature: float = 1.0
    """Difference of scores that counts as one unit of preference: P(y > y') = sigmoid((s - s') / temperature)."""
    loss_aggregation: LossAggregation = "sequence_sum"
    """sequence_sum is the gradient of the expected preference itself; the others rescale rows or tokens."""

    def __post_init__(self) -> None:
        if not (0 <= self.mixture <= 1 and 0 < self.temperature < float("inf")):
            found = f"mixture is {self.mixture} and temperature {self.temperature}"
            raise SettingsError(f"{found}; expected a mixture from 0 to 1 and a temperature above 0")


class NashMD(PolicyOptimizer):
    """Score-function gradient of the preference over an opponent near the reference."""

    Settings = NashMDSettings
    settings: NashMDSettings

    def models(self) -> dict[str, Mixture]:
        """Return the opponent."""
        share = self.settings.mixture
        return {"opponent": Mixture({"policy": 1 - share, "reference": share})}

    def further_requests(self, group: Sequence[Request]) -> list[Request]:
        """Ask the opponent once."""
        return [replace(group[0], model="opponent")]

    def advantages(self, rollout: Rollout) -> Advantages:
        """Add the preference to the KL's share of every token's return; without two scores there is none."""
        margin = (rollout.scores - rollout.further_scores[:, 0]) / self.settings.temperature
        compared = rollout.scored & ~margin.isnan()
        preference = margin.nan_to_num().sigmoid().where(compared, 0.5)
        last = ops.last_actions(rollout.action_mask)
        penalty = ops.returns_to_go(rollout.rewards - last * rollout.scores[:, None], rollout.action_mask)
        columns = (preference[:, None] - 0.5 + penalty).masked_fill(~rollout.action_mask, 0)
        return Advantages(columns, metrics={"preference": preference})

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        """Return -advantage * log pi of every token."""
        losses = -batch.advantages * policy.evaluate(batch).logprobs
        return Loss(losses, {"policy_loss": losses})


@hookimpl
def lmrl_optimizers() -> Iterable[OptimizerSpec]:
    """Register Nash-MD."""
    summary = "A policy that no other one is preferred to"
    yield OptimizerSpec("nash_md", NashMD, NashMDSettings, Needs(reference=True), summary)
