"""KTO: the loss by hand, a reference point over the whole minibatch, refusals, and whole runs."""

from types import SimpleNamespace

import pytest
import torch

from lmrl.algorithms.experience import LabelledBatch, Responses
from lmrl.errors import DataError, SettingsError
from lmrl_kto import KTO, KTOSettings


def answers(logprobs, reference):
    mask = torch.ones(len(logprobs), 1, dtype=torch.bool)
    return Responses(logprobs, mask, {"reference_logprobs": torch.tensor(reference)[:, None]})


POLICY = SimpleNamespace(evaluate=lambda one: SimpleNamespace(logprobs=one.inputs[:, None]))


def batch(mean, logprobs=(-1.0, -2.0)):
    logprobs = torch.tensor(logprobs, requires_grad=True)
    desirable = torch.tensor([True, False])
    means = {"mismatched": mean, "desirable": 0.5}
    return LabelledBatch(answers(logprobs, [-3.0, -1.0]), desirable, answers(logprobs, [-1.0, -1.0]), means)


def test_the_loss_by_hand():
    optimizer = KTO(KTOSettings(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0))
    part = batch(mean=0.4)  # z0 = 0.2; rewards 0.5 * 2 = 1 and 0.5 * -1 = -0.5
    loss = optimizer.loss(POLICY, part)
    sigmoid = lambda x: float(torch.tensor(x).sigmoid())  # noqa: E731
    assert loss.losses.tolist() == pytest.approx([2 * (1 - sigmoid(1 - 0.2)), 3 * (1 - sigmoid(0.2 + 0.5))])
    assert loss.metrics["desirable_reward"].mean().item() == pytest.approx(1)
    assert loss.metrics["undesirable_reward"].mean().item() == pytest.approx(-0.5)
    assert loss.metrics["accuracy"].tolist() == [1, 1]
    loss.losses.sum().backward()
    assert part.responses.inputs.grad[0] < 0 < part.responses.inputs.grad[1]


def test_the_reference_point_is_never_negative():
    optimizer = KTO(KTOSettings(beta=0.5))
    assert torch.equal(optimizer.loss(POLICY, batch(-7.0)).losses, optimizer.loss(POLICY, batch(0.0)).losses)


def test_statistics_are_the_mismatched_log_ratios():
    found = KTO(KTOSettings()).statistics(POLICY, batch(0.0))
    assert found["mismatched"].tolist() == [0, -1] and found["desirable"].tolist() == [1, 0]


def test_microbatches_change_no_gradient(one_update, labelled):
    """Each microbatch alone has another mean log-ratio: only one over the whole minibatch gives one gradient."""
    whole, metrics = one_update("kto", labelled, 100_000)
    split, again = one_update("kto", labelled, 1)
    assert metrics["optimizer/reference_point"] > 0
    assert whole.abs().max() > 1e-4
    assert torch.allclose(whole, split, atol=1e-5 * float(whole.abs().max()))
    assert metrics == pytest.approx(again, rel=1e-4, abs=1e-6)


def test_a_run_starts_at_one_half_and_sets_good_apart_from_bad(train, labelled):
    records = train("kto", labelled, prompts_per_update=8, updates=8)
    assert records[1]["optimizer/loss"] == pytest.approx(0.5, abs=1e-4), "sigmoid(0) of every answer"
    assert records[-1]["optimizer/loss"] < 0.49
    assert records[-1]["optimizer/desirable_reward"] > records[-1]["optimizer/undesirable_reward"] + 0.3
    assert records[1]["optimizer/desirable"] == 0.5


def test_rankings_are_labelled_answers_too(train, pairs):
    records = train("kto", pairs, prompts_per_update=8)
    assert records[1]["optimizer/desirable"] == 0.5


@pytest.mark.parametrize("label", [True, False])
def test_labels_of_one_kind_are_refused(train, labelled, label, tmp_path):
    rows = [row for row in labelled if row["label"] is label]
    with pytest.raises(
        DataError, match=rf"all 4 answers are labelled {'good' if label else 'bad'}; expected both kinds"
    ):
        train("kto", rows)
    assert not (tmp_path / "run").exists()


def test_what_it_cannot_learn_from_is_refused(train, labelled):
    with pytest.raises(SettingsError, match="labelled good or bad, not from prompts"):
        train("kto")
    with pytest.raises(SettingsError, match=r"prompts_per_update is 1; expected at least 2"):
        train("kto", labelled, prompts_per_update=1)
    for name in ("beta", "desirable_weight", "undesirable_weight"):
        with pytest.raises(SettingsError, match=f"{name} is 0"):
            train("kto", labelled, settings={name: 0.0})


def test_a_mismatched_answer_is_cut_to_the_context(tiny_folder):
    """Each row fits, but a long prompt with another row's long answer would not."""
    from lmrl.models import load
    from lmrl.plugins.specs import Needs
    from lmrl.stages.rl.config import LearningData
    from lmrl.stages.rl.offline import load_offline

    card = load(tiny_folder).card
    assert card.context_length == 48
    rows = [
        {"prompt": "the cat " * 20, "completion": " ran .", "label": True},
        {"prompt": "a", "completion": " sat" * 40, "label": False},
    ]
    needs = Needs(experience="labelled")
    data = load_offline(LearningData(), rows, card, needs, torch.device("cpu")).batch([0, 1])
    assert data.mismatched.inputs.action_counts.tolist() == [8, 3]
    assert data.mismatched.inputs.row_lengths.max() == 48
