"""Checks that an optimizer learns, and that nothing breaks where there is nothing to learn."""

from __future__ import annotations

import torch

from lmrl.algorithms.rollout import Rollout
from lmrl.errors import NonFiniteError
from lmrl.testing.toy_policy import ToyModel, expected_score
from lmrl.testing.trial import Trial, learn, parameter_groups
from lmrl.training.update_settings import TrainSettings

UPDATES = 60
LEARNING_RATE = 0.03
ENOUGH = 0.15
"""By how much the share of wanted tokens must rise."""


def check_constant_rewards(trial: Trial) -> str:
    """Scores that are all alike give finite numbers."""
    for value in (0.0, 1.0):
        for model in (trial.policy, trial.sampling_policy):
            data = trial.experience(score=value)
            try:
                outcome = trial.update(data, model=model)
            except NonFiniteError as error:
                return _constant(value, str(error).partition(". ")[0])
            odd = next((name for name, x in outcome.metrics.items() if x != x), "")
            if odd or not outcome.is_finite:
                return _constant(value, f"the metric {odd} is not a number" if odd else "the gradient is not finite")
    return ""


def check_learning(trial: Trial) -> str:
    """With default epochs and minibatches, a toy policy comes to score clearly more."""
    model = trial.sampling_policy.moved(0.0, seed=0)
    start = expected_score(model)
    settings = TrainSettings(updates=UPDATES, max_gradient_norm=1.0, microbatch_tokens=1_000_000)
    optimizer = trial.build(full=True)
    policy = trial.toy_policy(optimizer, model)
    stepper = torch.optim.Adam(parameter_groups(model, LEARNING_RATE))
    updater = trial.updater(optimizer, policy, settings, stepper)
    reached = start
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for update in range(1, UPDATES + 1):
            learn(updater, _fresh(trial, model, update), update, seed=update)
            if update % 5 == 0:
                reached = expected_score(model)
                if reached >= start + ENOUGH:
                    return ""
    what = "falls" if reached < start else "rises"
    return (
        f"on a toy problem the mean score {what} from {start:.2f} to {reached:.2f} in {UPDATES} updates; expected a "
        f"rise of {ENOUGH} or more (1 is the best): look at the loss's sign, since it is minimised, and at what the "
        "advantages weight"
    )


def _fresh(trial: Trial, model: ToyModel, update: int) -> object:
    """Return answers of the current policy, or of the starting one for an optimizer that does not sample."""
    data = trial.experience(update, model=model, groups=16, plain=True)
    if isinstance(data, Rollout):
        return data
    return trial.experience(update, groups=16, plain=True)


def _constant(value: float, found: str) -> str:
    return (
        f"with the score {value:g} for every answer, {found}; expected finite numbers and no preference: "
        "add a small constant to a standard deviation before dividing by it, or use ops.masked_whiten"
    )
