"""DPO and SimPO: their first step, what their population losses are minimal at, and whole runs."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from lmrl.algorithms.experience import PairBatch, Responses
from lmrl.config import build
from lmrl.errors import DataError, SettingsError
from lmrl.plugins import PluginManager
from lmrl_dpo import DPO, DPOSettings, SimPO, SimPOSettings

REWARDS = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.3, 0.25, 0.2, 0.05, 0.2], dtype=torch.float64)
ORDERED = list(itertools.product(range(len(REWARDS)), repeat=2))
BETA = 0.7


class Table:
    """A policy over a handful of whole answers to one prompt: a softmax, one action per answer."""

    def __init__(self):
        self.logits = REFERENCE.log().clone().requires_grad_()

    def evaluate(self, side):
        return SimpleNamespace(logprobs=self.logits.log_softmax(0)[side.inputs][:, None])


def side(ids):
    ids = torch.tensor(ids)
    mask = torch.ones(len(ids), 1, dtype=torch.bool)
    return Responses(ids, mask, {"reference_logprobs": REFERENCE.log()[ids][:, None]})


def preferred(flips=0.0):
    """How likely each ordered pair is: both answers drawn evenly, and ranked by Bradley and Terry's model."""
    better = torch.stack([torch.sigmoid(REWARDS[i] - REWARDS[j]) for i, j in ORDERED])
    return (better * (1 - flips) + (1 - better) * flips) / len(REWARDS) ** 2


def minimiser(optimizer, weights):
    """The policy at which the expected loss over all pairs is least, by exact expectations and L-BFGS."""
    table = Table()
    batch = PairBatch(side([i for i, _ in ORDERED]), side([j for _, j in ORDERED]))
    search = torch.optim.LBFGS(
        [table.logits], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        search.zero_grad()
        loss = (weights * optimizer.loss(table, batch).losses).sum()
        loss.backward()
        return loss

    search.step(closure)
    return table.logits.detach().softmax(0)


def tilted(exponents):
    return (REFERENCE * exponents.exp()) / (REFERENCE * exponents.exp()).sum()


def test_dpo_is_minimal_at_the_optimum_of_the_kl_regularised_reward():
    """Rafailov et al. 2023, sec. 4: pi* = pi_ref exp(r / beta) / Z, without a reward model and without sampling."""
    found = minimiser(DPO(DPOSettings(beta=BETA)), preferred())
    assert torch.allclose(found, tilted(REWARDS / BETA), atol=1e-6)


def test_robust_dpo_finds_the_same_in_spite_of_flipped_pairs():
    settings = {"beta": BETA, "label_smoothing": 0.2}
    robust = minimiser(DPO(DPOSettings(loss="robust", **settings)), preferred(flips=0.2))
    assert torch.allclose(robust, tilted(REWARDS / BETA), atol=1e-6)
    plain = minimiser(DPO(DPOSettings(beta=BETA)), preferred(flips=0.2))
    assert (plain - REFERENCE).abs().sum() < (robust - REFERENCE).abs().sum(), "flips make DPO timid"
    cautious = minimiser(DPO(DPOSettings(**settings)), preferred())
    assert torch.allclose(cautious, plain, atol=1e-6), "conservative DPO is DPO on data that were flipped"


def test_ipo_is_minimal_where_the_chance_to_win_takes_the_place_of_the_reward():
    """Azar et al. 2024, eq. 7 with Psi the identity: pi* = pi_ref exp(p(y beats an answer of the data) / tau) / Z."""
    found = minimiser(DPO(DPOSettings(beta=BETA, loss="ipo")), preferred())
    chance = torch.sigmoid(REWARDS[:, None] - REWARDS[None, :]).mean(1)
    assert torch.allclose(found, tilted(chance / BETA), atol=1e-6)
    assert not torch.allclose(found, tilted(REWARDS / BETA), atol=1e-2), "not the optimum of the reward"


@pytest.mark.parametrize("loss", ["hinge"])
def test_the_hinge_has_another_minimiser(loss):
    found = minimiser(DPO(DPOSettings(beta=BETA, loss=loss)), preferred())
    assert not torch.allclose(found, tilted(REWARDS / BETA), atol=1e-2)


def test_simpo_looks_at_lengths_and_at_no_reference():
    logprobs = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, 0.0, 0.0]], requires_grad=True)
    masks = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    sides = [Responses(row, masks[row : row + 1]) for row in range(2)]
    policy = SimpleNamespace(evaluate=lambda one: SimpleNamespace(logprobs=logprobs[one.inputs : one.inputs + 1]))
    loss = SimPO(SimPOSettings(beta=2.0, gamma=0.5)).loss(policy, PairBatch(*sides))
    # Per token -1 against -2, though as answers -3 is less likely than -2: 2 (-1 + 2) - 0.5 = 1.5.
    assert loss.losses.item() == pytest.approx(math.log1p(math.exp(-1.5)))
    assert loss.metrics["margin"].item() == 2 and loss.metrics["accuracy"].item() == 1
    loss.losses.sum().backward()
    pull = 2 / (1 + math.exp(1.5))  # beta sigmoid(-1.5)
    assert logprobs.grad.flatten().tolist() == pytest.approx([-pull / 3] * 3 + [pull, 0, 0])


def test_log_ratios_are_per_answer_or_per_token():
    logprobs = torch.tensor([[-1.0, -1.0], [-3.0, 0.0]])
    reference = torch.tensor([[-2.0, -2.0], [-2.5, 0.0]])
    masks = torch.tensor([[1, 1], [1, 0]]).bool()
    sides = [Responses(row, masks[[row]], {"reference_logprobs": reference[[row]]}) for row in range(2)]
    policy = SimpleNamespace(evaluate=lambda one: SimpleNamespace(logprobs=logprobs[[one.inputs]]))
    for average, gap in ((False, 2 + 0.5), (True, 1 + 0.5)):
        settings = DPOSettings(beta=0.1, loss="ipo", average_logprobs=average)
        loss = DPO(settings).loss(policy, PairBatch(*sides))
        assert loss.losses.item() == pytest.approx((gap - 5) ** 2)
        assert loss.metrics["margin"].item() == pytest.approx(0.1 * gap)


START = {"sigmoid": math.log(2), "ipo": 25.0, "hinge": 1.0, "robust": math.log(2)}


@pytest.mark.parametrize("loss", sorted(START))
def test_a_run_starts_at_the_reference_and_widens_the_margin(train, pairs, loss):
    settings = {"loss": loss, "label_smoothing": 0.1 if loss == "robust" else 0.0}
    records = train("dpo", pairs, settings=settings)
    assert records[1]["optimizer/loss"] == pytest.approx(START[loss], abs=1e-3)
    assert records[1]["optimizer/margin"] == pytest.approx(0, abs=1e-4)
    assert records[-1]["optimizer/margin"] > 0.3 and records[-1]["optimizer/accuracy"] == 1
    assert records[-1]["optimizer/chosen_reward"] > records[-1]["optimizer/rejected_reward"]


def test_a_run_of_simpo_widens_the_margin(train, pairs):
    records = train("simpo", pairs)
    assert records[-1]["optimizer/margin"] > records[1]["optimizer/margin"] + 0.5
    assert records[-1]["optimizer/loss"] < records[1]["optimizer/loss"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dpo", {}),
        ("dpo", {"loss": "ipo", "average_logprobs": True}),
        ("dpo", {"loss": "robust", "label_smoothing": 0.1}),
        ("simpo", {}),
    ],
)
def test_microbatches_change_no_gradient(one_update, pairs, name, settings):
    whole, metrics = one_update(name, pairs, 100_000, **settings)
    split, again = one_update(name, pairs, 1, **settings)
    assert whole.abs().max() > 1e-4
    assert torch.allclose(whole, split, atol=1e-5 * float(whole.abs().max()))
    assert metrics == pytest.approx(again, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("dpo", {"beta": -1.0}, r"optimizer\.dpo\D*beta is -1"),
        ("dpo", {"loss": "simpo"}, "sigmoid"),
        ("dpo", {"loss": "robust"}, "label_smoothing"),
        ("simpo", {"beta": 0.0}, "beta is 0"),
        ("simpo", {"gamma": -0.1}, "gamma is"),
        ("simpo", {"loss": "ipo"}, "loss"),
    ],
)
def test_bad_settings_are_refused(train, pairs, name, settings, words):
    with pytest.raises(SettingsError, match=words):
        train(name, pairs, settings=settings)


@pytest.mark.parametrize("name", ["dpo", "simpo", "orpo"])
def test_what_it_cannot_learn_from_is_refused(train, labelled, name):
    with pytest.raises(SettingsError, match=r"learns from pairs or rankings of answers, not from prompts.*lmrl prefer"):
        train(name)
    with pytest.raises(DataError, match="only where a prompt has a good and a bad one"):
        train(name, [row for row in labelled if row["label"]])
    with pytest.raises(DataError, match="prompts alone"):
        train(name, [{"prompt": "the cat"}])


def test_labels_of_both_kinds_for_one_prompt_are_a_pair(train, labelled, pairs):
    by_label = train("dpo", labelled, folder="labels")
    by_pair = train("dpo", pairs, folder="pairs")
    assert by_label[-1]["optimizer/loss"] == by_pair[-1]["optimizer/loss"]


def test_only_dpo_computes_a_reference():
    plugins = PluginManager()
    assert plugins.get("optimizer", "dpo").needs.reference and not plugins.get("optimizer", "simpo").needs.reference
    assert build(SimPOSettings, {}).beta == 2
