"""The kit names planted defects: each class here is a small optimizer with one thing wrong."""

import dataclasses
import re

import pytest
import torch

from lmrl import Advantages, Loss, Needs, OptimizerSettings, OptimizerSpec, PolicyOptimizer
from lmrl.algorithms import ops
from lmrl.errors import ConformanceError, LmrlError, SettingsError
from lmrl.testing import CHECKS, check_optimizer, failures_of


class Sound(PolicyOptimizer):
    """REINFORCE with the batch's mean score as the baseline, and a logged ratio."""

    def advantages(self, rollout):
        returns = ops.returns_to_go(rollout.rewards, rollout.action_mask)
        baseline = ops.masked_mean(rollout.scores, rollout.scored)
        return Advantages((returns - baseline).masked_fill(~rollout.action_mask, 0))

    def loss(self, policy, batch):
        now = policy.evaluate(batch)
        return Loss(-batch.advantages * now.logprobs, {"ratio": (now.logprobs - batch.proximal_logprobs).exp()})


def spec_of(cls, needs=None, settings=OptimizerSettings):
    return OptimizerSpec("mine", cls, settings, needs or Needs())


def test_a_sound_one_passes():
    check_optimizer(spec_of(Sound))


class Averages(Sound):
    def loss(self, policy, batch):
        return Loss(super().loss(policy, batch).losses.mean())


class AveragesMetrics(Sound):
    def loss(self, policy, batch):
        loss = super().loss(policy, batch)
        return Loss(loss.losses, {"mean": loss.losses.mean()})


class OneAdvantagePerRow(Sound):
    def advantages(self, rollout):
        return Advantages(rollout.scores)


class ReturnsATensor(Sound):
    def loss(self, policy, batch):
        return super().loss(policy, batch).losses


class Detached(Sound):
    def loss(self, policy, batch):
        return Loss(-batch.advantages * policy.evaluate(batch).logprobs.detach())


class ReachesTheCriticAlone(Sound):
    def loss(self, policy, batch):
        now = policy.evaluate(batch)
        return Loss((now.values - batch.advantages) ** 2 - batch.advantages * now.logprobs.detach())


class Raises(Sound):
    def loss(self, policy, batch):
        return Loss(-batch["returns"] * policy.evaluate(batch).logprobs)


class WithoutLoss(PolicyOptimizer):
    advantages = Sound.advantages


class ReadsValues(Sound):
    def advantages(self, rollout):
        return Advantages(super().advantages(rollout).advantages - rollout.values)


class ReadsThePolicysValues(Sound):
    def loss(self, policy, batch):
        loss = super().loss(policy, batch)
        return Loss(loss.losses + policy.evaluate(batch).values ** 2)


class ReadsTheReference(Sound):
    def loss(self, policy, batch):
        loss = super().loss(policy, batch)
        return Loss(loss.losses + (policy.evaluate(batch).logprobs - batch.rollout.reference_logprobs) ** 2)


class GroupMean(Sound):
    def advantages(self, rollout):
        returns, group = rollout.rewards.sum(1), ops.split_off(rollout.group, ~rollout.scored)
        centred = returns - ops.group_means(returns, group)
        return Advantages(centred[:, None] * rollout.action_mask)


class ReadsScores(Sound):
    def advantages(self, rollout):
        return Advantages((rollout.scores - rollout.scores.mean())[:, None] * rollout.action_mask)


class Imitates(Sound):
    def loss(self, policy, batch):
        return Loss(-(batch.advantages > 0).float() * policy.evaluate(batch).logprobs)


class ReadsItsOwnColumn(Sound):
    def advantages(self, rollout):
        found = super().advantages(rollout).advantages
        return Advantages(found, {"own": found})

    def loss(self, policy, batch):
        return Loss(-batch["own"] * policy.evaluate(batch).logprobs)


class Squashes(Sound):
    def loss(self, policy, batch):
        return Loss(-torch.tanh(batch.advantages) * policy.evaluate(batch).logprobs)


class ReadsTheLastReward(Sound):
    def advantages(self, rollout):
        last = rollout.action_mask.sum(1, keepdim=True).clamp_min(1) - 1
        return Advantages(rollout.rewards.gather(1, last) * rollout.action_mask)


class AveragesAllRows(Sound):
    def advantages(self, rollout):
        returns = ops.returns_to_go(rollout.rewards, rollout.action_mask)
        return Advantages((returns - rollout.rewards.sum(1).mean()).masked_fill(~rollout.action_mask, 0))


class WhitensAllRows(Sound):
    def advantages(self, rollout):
        returns = ops.returns_to_go(rollout.rewards, rollout.action_mask)
        return Advantages(ops.masked_whiten(returns, rollout.action_mask))


class AveragesTheWholeGroup(Sound):
    def advantages(self, rollout):
        returns = rollout.rewards.sum(1)
        return Advantages((returns - ops.group_means(returns, rollout.group))[:, None] * rollout.action_mask)


class BestOfTheGroup(Sound):
    def advantages(self, rollout):
        same = rollout.group[:, None] == rollout.group[None, :]
        best = rollout.scores >= torch.where(same, rollout.scores, -torch.inf).amax(1)
        return Advantages((best[:, None] & rollout.action_mask).float())


class AdjacentGroups(Sound):
    def advantages(self, rollout):
        pairs = rollout.scores.view(-1, 2)
        centred = (pairs - pairs.mean(1, keepdim=True)).flatten()
        return Advantages(centred[:, None] * rollout.action_mask)


class MutatesTheRollout(Sound):
    def advantages(self, rollout):
        rollout.rewards.sub_(rollout.rewards.mean())
        return super().advantages(rollout)


class MutatesTheBatch(Sound):
    def loss(self, policy, batch):
        batch.advantages.mul_(0.5)
        return super().loss(policy, batch)


class RunningMean(Sound):
    mean = 0.0

    def advantages(self, rollout):
        self.mean += 0.5 * (float(rollout.scores.mean()) - self.mean)
        returns = ops.returns_to_go(rollout.rewards, rollout.action_mask)
        return Advantages((returns - self.mean).masked_fill(~rollout.action_mask, 0))


class SavesAnObject(RunningMean):
    def state_dict(self):
        return {"running": [{"mean": self}]}

    def load_state_dict(self, state):
        self.mean = state["running"][0]["mean"].mean


class WrongRatio(Sound):
    def loss(self, policy, batch):
        loss = super().loss(policy, batch)
        return Loss(loss.losses, {"clip_fraction": torch.ones_like(loss.losses)})


class MeanOverPadding(Sound):
    def advantages(self, rollout):
        returns = ops.returns_to_go(rollout.rewards, rollout.action_mask)
        return Advantages((returns - returns.mean()).masked_fill(~rollout.action_mask, 0))


class RowMeanOverPadding(Sound):
    def loss(self, policy, batch):
        return Loss(super().loss(policy, batch).losses.mean(1))


class LastColumn(Sound):
    def advantages(self, rollout):
        return Advantages(rollout.rewards[:, -1:] * rollout.action_mask)


class FirstColumn(Sound):
    def advantages(self, rollout):
        returns = ops.returns_to_go(rollout.rewards, rollout.action_mask)
        return Advantages(returns[:, :1] * rollout.action_mask)


class BootstrapsTheTerminated(Sound):
    def advantages(self, rollout):
        advantages = super().advantages(rollout).advantages - rollout.values
        return Advantages((advantages + rollout.bootstrap_values[:, None]) * rollout.action_mask)


class NormalisesAMicrobatch(Sound):
    def loss(self, policy, batch):
        advantages = ops.masked_whiten(batch.advantages, batch.action_mask)
        return Loss(-advantages * policy.evaluate(batch).logprobs)


class DividesByItsTokens(Sound):
    def loss(self, policy, batch):
        return Loss(super().loss(policy, batch).losses / batch.action_mask.sum())


class CountsEveryRow(Sound):
    def loss(self, policy, batch):
        return Loss(super().loss(policy, batch).losses / len(batch))


class ReadsInputs(Sound):
    def advantages(self, rollout):
        return Advantages(super().advantages(rollout).advantages * rollout.inputs.row_lengths[:, None])


class DividesBySpread(Sound):
    def advantages(self, rollout):
        scores = rollout.scores
        return Advantages(((scores - scores.mean()) / scores.std())[:, None] * rollout.action_mask)


class WrongSign(Sound):
    def loss(self, policy, batch):
        return Loss(-super().loss(policy, batch).losses)


class Indifferent(Sound):
    def advantages(self, rollout):
        return Advantages(rollout.action_mask.float())


class Guess(torch.nn.Linear):
    """A head that guesses one number of each state."""

    def forward(self, hidden, ids):
        return super().forward(hidden).squeeze(-1)


class WithAHead(Sound):
    def heads(self, width, actions):
        return {"guess": Guess(width, 1)}

    def loss(self, policy, batch):
        return Loss(super().loss(policy, batch).losses + (policy.evaluate(batch).head("guess") - 1) ** 2)


class ReadsAnotherHead(WithAHead):
    def loss(self, policy, batch):
        return Loss(policy.evaluate(batch).head("gues"))


DEFECTS = [
    (Averages, {"contract"}, r"losses of a tensor of shape \(\).*do not average, the trainer does"),
    (AveragesMetrics, {"contract"}, r"metrics of loss\(\) hold 'mean', a tensor of shape \(\).*not averaged"),
    (OneAdvantagePerRow, {"contract"}, r"advantages of a tensor of shape \(24,\).*column\[:, None\] \* mask"),
    (ReturnsATensor, {"contract"}, r"loss\(policy, batch\) returned a tensor.*return Loss\(losses\)"),
    (ReadsScores, {"rewards"}, r"a KL penalty of beta 10 .* changes nothing in the update.*reads_rewards=False"),
    (Imitates, {"importance"}, r"doubled or tripled the loss does not grow by as much.*Needs\(importance=False\)"),
    (ReadsItsOwnColumn, {"importance"}, r"the loss is the same without batch.advantages.*Needs\(importance=False\)"),
    (Squashes, {"importance"}, r"multiply by batch.advantages"),
    (ReadsTheLastReward, {"rewards"}, r"compute credit from rollout.rewards \(rewards.sum\(1\), ops.returns_to_go\)"),
    (BestOfTheGroup, {"rewards"}, r"if the method by design compares scores alone"),
    (Detached, {"contract"}, r"the losses carry no gradient.*without detach\(\)"),
    (ReachesTheCriticAlone, {"needs", "gradient", "learning"}, r"gradient: no gradient reaches the policy"),
    (Raises, {"contract"}, r"UnknownColumn was raised \(.*\): unknown column 'returns'"),
    (WithoutLoss, {"contract"}, r"WithoutLoss does not define loss\(policy, batch\)"),
    (ReadsValues, {"needs"}, r"rollout.values was read, but the spec.*Needs\(values=True\)"),
    (ReadsThePolicysValues, {"needs"}, r"evaluation.values was read.*Needs\(values=True\)"),
    (ReadsTheReference, {"needs"}, r"reference_logprobs was read.*Needs\(reference=True\)"),
    (GroupMean, {"needs"}, r"with 1 answer\(s\) to each prompt there is no gradient.*minimum_group_size"),
    (AveragesAllRows, {"unscored"}, r"rows without a score change the gradient by \d+%.*rollout.scored.*loss_mask"),
    (WhitensAllRows, {"unscored"}, r"whiten within rollout.loss_mask"),
    (AveragesTheWholeGroup, {"unscored"}, r"ops.split_off\(rollout.group, ~rollout.scored\)"),
    (AdjacentGroups, {"order"}, r"order: the same rows in another order.*rollout.group, never by their"),
    (MutatesTheRollout, {"mutation"}, r"advantages\(\) or pairs\(\) changed rewards of what it was given"),
    (MutatesTheBatch, {"mutation"}, r"loss\(\) or statistics\(\) changed advantages of what it was given"),
    (RunningMean, {"state"}, r"after state_dict\(\) and load_state_dict\(\) the next gradient differs by \d+%"),
    (SavesAnObject, {"state"}, r"state_dict\(\)\['running'\]\[0\]\['mean'\] is SavesAnObject; expected numbers"),
    (WrongRatio, {"first_step"}, r"before the first step the metric clip_fraction is 1; expected 0"),
    (MeanOverPadding, {"padding"}, r"three more columns of padding change the gradient by \d+%.*ops.masked_mean"),
    (RowMeanOverPadding, {"padding"}, r"three more columns of padding change the gradient by \d+%"),
    (LastColumn, {"padding"}, r"three more columns of padding change the gradient"),
    (FirstColumn, {"mask"}, r"a step outside the action mask before the first action changes.*never their place"),
    (BootstrapsTheTerminated, {"needs", "bootstrap"}, None),
    (NormalisesAMicrobatch, {"microbatches"}, r"cut into microbatches of one row, the gradient differs"),
    (DividesByItsTokens, {"microbatches", "ranks"}, r"two ranks with half of the rows each take another step"),
    (CountsEveryRow, {"microbatches", "ranks", "empty_rows"}, r"whose action mask is all false change the gradient"),
    (ReadsInputs, {"ranks"}, r"AttributeError was raised.*'NoneType' object has no attribute 'row_lengths'"),
    (ReadsAnotherHead, {"contract"}, r"ModelError was raised.*unknown head 'gues'; did you mean 'guess'"),
    (DividesBySpread, {"constant_rewards"}, r"with the score 0 for every answer, .*the loss is nan; expected finite"),
    (WrongSign, {"learning"}, r"the mean score falls from 0\.\d+ to 0\.\d+ in \d+ updates.*the loss's sign"),
    (Indifferent, {"learning"}, r"on a toy problem the mean score (rises|falls)"),
]


@pytest.mark.parametrize(("cls", "checks", "message"), DEFECTS, ids=[cls.__name__ for cls, _, _ in DEFECTS])
def test_a_defect_is_named(cls, checks, message):
    with pytest.raises(ConformanceError) as caught:
        check_optimizer(spec_of(cls))
    named = set(re.findall(r"^  (\w+): ", str(caught.value), re.MULTILINE))
    assert checks <= named, str(caught.value)
    assert message is None or re.search(message, str(caught.value)), str(caught.value)
    for line in str(caught.value).splitlines()[1:]:
        assert line.endswith(".") and "expected" in line and ". " not in line.split(": ", 1)[1], line


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (Needs(values=True), r"declares Needs\(values=True\), but neither rollout.values.* was read"),
        (Needs(reference=True), r"declares Needs\(reference=True\), but no reference_logprobs was read"),
    ],
)
def test_a_need_that_is_not_read_is_named(needs, message):
    assert re.search(message, failures_of(spec_of(Sound, needs))["needs"])


@pytest.mark.parametrize("cls", [ReadsScores, BestOfTheGroup])
def test_a_method_that_compares_scores_by_design_declares_it(cls):
    declared = dataclasses.replace(spec_of(cls, Needs(minimum_group_size=2)), reads_rewards=False)
    check_optimizer(declared, checks=["rewards"])
    found = failures_of(dataclasses.replace(spec_of(Sound), reads_rewards=False))
    assert set(found) == {"rewards"} and "take reads_rewards=False out of the spec" in found["rewards"]


def test_heads_are_served():
    check_optimizer(spec_of(WithAHead))


def test_a_declared_need_is_none(capsys):
    check_optimizer(spec_of(ReadsTheReference, Needs(reference=True)), checks=["needs"])
    check_optimizer(spec_of(GroupMean, Needs(minimum_group_size=2)))


def test_terminated_rows_are_not_bootstrapped():
    found = failures_of(spec_of(BootstrapsTheTerminated, Needs(values=True)))
    assert "only where rollout.truncated is true" in found["bootstrap"]


def test_what_build_and_settings_should_be():
    assert "expected a lmrl.PolicyOptimizer" in failures_of(spec_of(lambda settings: object()))["contract"]
    assert "inherit from lmrl.OptimizerSettings" in failures_of(spec_of(Sound), settings=dict())["contract"]


def test_checks_are_selected_by_name():
    check_optimizer(spec_of(WrongSign), checks=["contract", "padding"])
    with pytest.raises(SettingsError, match="unknown check 'paddin'; did you mean 'padding'"):
        check_optimizer(spec_of(Sound), checks=["paddin"])


def test_settings_are_given():
    spec = spec_of(Sound)
    check_optimizer(spec, OptimizerSettings(loss_aggregation="sequence_sum", epochs=2, minibatches=3))


def test_another_object_or_kind_of_experience_is_refused():
    with pytest.raises(SettingsError, match=r"given type; expected a lmrl.OptimizerSpec.*lmrl_optimizers\(\)"):
        check_optimizer(Sound)
    with pytest.raises(SettingsError, match="learns from dreams, of which the kit makes no toy examples"):
        check_optimizer(spec_of(Sound, Needs(experience="dreams")))


def test_the_error_is_an_assertion_and_lmrls_own():
    with pytest.raises(AssertionError) as caught:
        check_optimizer(spec_of(WrongSign))
    assert isinstance(caught.value, LmrlError) and str(caught.value).startswith("optimizer 'mine' fails 1 check")


def test_every_check_says_what_holds():
    for name, check in CHECKS.items():
        assert check.__name__ == f"check_{name}" and check.__doc__.splitlines()[0].endswith(".")


class Pairwise(PolicyOptimizer):
    """A preference loss that forgets the reference of the rejected answer, and averages over its pairs."""

    def loss(self, policy, batch):
        chosen, rejected = (policy.evaluate(side).logprobs.sum(1) for side in (batch.chosen, batch.rejected))
        gap = chosen - rejected
        return Loss(-torch.nn.functional.logsigmoid(gap - gap.mean()))


class LabelMean(PolicyOptimizer):
    """A loss of labelled answers that takes its reference point from the microbatch."""

    def loss(self, policy, batch):
        logprobs = policy.evaluate(batch.responses).logprobs.sum(1)
        point = policy.evaluate(batch.mismatched).logprobs.sum(1).mean().detach()
        return Loss(torch.where(batch.desirable, -1.0, 1.0) * torch.sigmoid(logprobs - point))


@pytest.mark.parametrize(("cls", "kind"), [(Pairwise, "preferences"), (LabelMean, "labelled")])
def test_other_kinds_of_experience_are_cut_too(cls, kind):
    found = failures_of(spec_of(cls, Needs(experience=kind)))
    assert {"microbatches", "ranks"} <= set(found)
    assert not set(found) & {"contract", "needs", "padding", "mutation", "order"}
