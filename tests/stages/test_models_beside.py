"""Models beside the policy in a real run: teachers, moving averages, the reference and mixtures that are sampled."""

import shutil
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from lmrl import Advantages, Loss, Needs, OptimizerSettings, OptimizerSpec, PolicyOptimizer, RLTrainer
from lmrl.algorithms import Mixture, NamedModel, PairBatch
from lmrl.algorithms.ops import kl_divergence, scatter_rows
from lmrl.engines.batch import generate_all, requests_of
from lmrl.engines.protocol import Capabilities
from lmrl.errors import PluginError, ResumeError, SettingsError, VocabularyError
from lmrl.models import load, text_policy
from lmrl.models.text_policy import score_logprobs
from lmrl.testing import write_tiny_model
from lmrl_gkd import GKD, GKDSettings

ADAPTER = {"method": "lora", "rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]}
PROMPTS = ["the cat", "a", "the dog sat home", "a dog"]


class Asks(PolicyOptimizer):
    """Asks models once per group, and keeps the rollout that it is given."""

    named: ClassVar[dict] = {}
    asked = ("reference",)
    seen = None

    def models(self):
        return self.named

    def further_requests(self, group):
        return [replace(group[0], model=name) for name in self.asked]

    def advantages(self, rollout):
        type(self).seen = rollout
        return Advantages(rollout.rewards.sum(1, keepdim=True) * rollout.action_mask)

    def loss(self, policy, batch):
        return Loss(-batch.advantages * policy.evaluate(batch).logprobs)


def asking(named=None, asked=("reference",), needs=None):
    kind = type("Asking", (Asks,), {"named": named or {}, "asked": asked})
    return kind, OptimizerSpec("asking", kind, OptimizerSettings, needs or Needs(reference=True), "asks")


def trainer_of(folder, optimizer, **settings):
    settings = {"prompts_per_update": 4, "group_size": 2, "max_new_tokens": 6, "learning_rate": 0.05} | settings
    return RLTrainer(folder, optimizer=optimizer, prompts=PROMPTS, reward=cats, **settings)


def cats(prompts, responses):
    return [float(response.split().count("cat")) for response in responses]


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("teacher") / "model", seed=7)


def gkd(teacher, **settings):
    return {"name": "gkd", "teacher": str(teacher), **settings}


def plain_steps(groups):
    """Return SGD: AdamW makes a step of a gradient that is rounding alone."""
    return torch.optim.SGD([one for group in groups for one in group.parameters], lr=1.0)


def parameters(trainer):
    return torch.cat([one.detach().flatten() for one in trainer.policy.model.parameters()])


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_is_that_of_both_models_own_logits(tiny_folder, teacher_folder, beta):
    with trainer_of(tiny_folder, gkd(teacher_folder, beta=beta)) as trainer:
        rollout = trainer.source.next(0).experience
        found = trainer.updater.policy.compare(rollout, "teacher", trainer.updater.optimizer.divergence)
        student, teacher = (load(folder).model for folder in (tiny_folder, teacher_folder))
        inputs, mask = rollout.inputs, rollout.action_mask
        rows = []
        for row in range(len(rollout)):
            ids = inputs.ids[row, : inputs.lengths[row]]
            before = inputs.sampled[row, : inputs.lengths[row]].nonzero().squeeze(1) - 1
            own, other = (model(ids[None]).logits[0, before].log_softmax(-1) for model in (student, teacher))
            mixture = (beta * other.exp() + (1 - beta) * own.exp()).log()
            if beta in (0, 1):
                rows.append(kl_divergence(other, own) if beta == 0 else kl_divergence(own, other))
            else:
                rows.append(beta * kl_divergence(other, mixture) + (1 - beta) * kl_divergence(own, mixture))
        torch.testing.assert_close(found, scatter_rows(torch.cat(rows), mask), rtol=1e-4, atol=1e-5)


def test_chunks_change_neither_loss_nor_gradient(tiny_folder, teacher_folder, monkeypatch):
    found = []
    for kept, chunk in ((2**26, 2**24), (0, 40)):
        monkeypatch.setattr(text_policy, "KEPT_ENTRIES", kept)
        monkeypatch.setattr(text_policy, "CHUNK_ENTRIES", chunk)
        with trainer_of(tiny_folder, gkd(teacher_folder), torch_optimizer=plain_steps) as trainer:
            metrics = trainer.step()
            found.append((metrics["optimizer/loss"], parameters(trainer)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_a_student_comes_to_its_teacher_and_needs_no_reward(tiny_folder, teacher_folder):
    with RLTrainer(
        tiny_folder,
        optimizer=gkd(teacher_folder, beta=0.0),
        prompts=PROMPTS,
        prompts_per_update=4,
        group_size=4,
        max_new_tokens=6,
        learning_rate=0.02,
        on_length="truncate",
    ) as trainer:
        losses = [metrics["optimizer/loss"] for metrics in trainer.steps(40)]
        weights = trainer.maker.beside.models["teacher"].sampled().state_dict()
    assert losses[-1] < 0.3 * losses[0]
    for name, tensor in load(teacher_folder).model.state_dict().items():
        assert torch.equal(weights[name], tensor), f"the teacher's {name} has changed"


def test_top_tokens_and_the_rest_are_a_distribution():
    student, teacher = (torch.randn(3, 9).log_softmax(-1) for _ in range(2))
    whole = GKD(GKDSettings(beta=0.0)).divergence(student, teacher)
    torch.testing.assert_close(GKD(GKDSettings(beta=0.0, top_k=8)).divergence(student, teacher), whole)
    part = GKD(GKDSettings(beta=0.0, top_k=2)).divergence(student, teacher)
    assert bool((part <= whole + 1e-6).all()) and bool((part >= -1e-6).all()), "joining tokens loses information"
    torch.testing.assert_close(GKD(GKDSettings(top_k=3)).divergence(teacher, teacher), torch.zeros(3))


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_reference_answers_as_it_does_alone(tiny_folder, adapter, workers):
    """After the policy has moved, further responses are those of the untouched base model, token by token."""
    kind, spec = asking()
    settings = {"adapter": ADAPTER} if adapter else {}
    if workers > 1:
        settings["engine"] = {"name": "transformers", "transformers": {"workers": workers}}
    with trainer_of(tiny_folder, spec, beta=0.0, **settings) as trainer:
        start = parameters(trainer)
        for _ in trainer.steps(3):
            pass
        assert not torch.equal(parameters(trainer), start)
        [further] = kind.seen.further_responses
        base = load(tiny_folder).model
        from lmrl.models import PolicyModel

        alone = score_logprobs(PolicyModel(base), further.inputs, trainer.texts.spec, 1000)
        torch.testing.assert_close(further.reference_logprobs, alone)
        policy = score_logprobs(trainer.policy, further.inputs, trainer.texts.spec, 1000)
        assert not torch.allclose(policy, alone, atol=1e-3)
        assert torch.equal(further.inputs.ids[::2], further.inputs.ids[1::2]), "one response to each group"
        scored = kind.seen.further_scores
    assert scored.shape == (8, 1)


def drawn_with(trainer, name, requests):
    trainer.maker.publish(trainer.updates)
    named = [replace(request, model=name) for request in requests]
    named = trainer.maker._published_beside(named)
    return generate_all(trainer.maker.engine, named)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_mixture_draws_each_token_from_the_product_of_powers(tiny_folder, adapter):
    weights = {"policy": 0.7, "reference": 0.3}
    named = {"mixed": Mixture(weights), "own": Mixture({"policy": 1.0}), "base": NamedModel()}
    _, spec = asking(named, ("mixed",))
    settings = {"adapter": ADAPTER} if adapter else {}
    with trainer_of(tiny_folder, spec, temperature=0.8, **settings) as trainer:
        for _ in trainer.steps(2):
            pass
        requests = requests_of(trainer.texts.training_ids * 2, trainer.texts.spec, 5)
        for response in drawn_with(trainer, "mixed", requests):
            ids = torch.tensor([[*response.request.ids, *response.ids]])
            first = len(response.request.ids) - 1
            logits = torch.zeros(())
            with trainer.policy.extracted() as model:
                logits = weights["policy"] * model(ids).logits[0, first:-1].log_softmax(-1)
            logits = logits + weights["reference"] * load(tiny_folder).model(ids).logits[0, first:-1].log_softmax(-1)
            expected = (logits / 0.8).log_softmax(-1).gather(1, torch.tensor(response.ids)[:, None]).squeeze(1)
            torch.testing.assert_close(torch.tensor(response.logprobs), expected.detach(), rtol=1e-4, atol=1e-4)
        policy = [one.ids for one in drawn_with(trainer, "policy", requests)]
        assert [one.ids for one in drawn_with(trainer, "own", requests)] == policy
        assert [one.ids for one in drawn_with(trainer, "base", requests)] == [
            one.ids for one in drawn_with(trainer, "reference", requests)
        ]


@pytest.mark.parametrize("adapter", [False, True])
def test_a_moving_average_follows_and_resumes(tiny_folder, tmp_path, adapter):
    _, spec = asking({"slow": NamedModel(decay=0.75)}, ("slow",))
    settings = {"adapter": ADAPTER} if adapter else {}

    def weights(trainer):
        return {name: one.clone() for name, one in trainer.maker.beside.models["slow"].sampled().named_parameters()}

    def own(trainer):
        with trainer.policy.extracted() as model:
            return {name: one.detach().clone() for name, one in model.named_parameters()}

    with trainer_of(tiny_folder, spec, **settings) as trainer:
        before = weights(trainer)
        trainer.step()
        for name, found in weights(trainer).items():
            torch.testing.assert_close(found, 0.75 * before[name] + 0.25 * own(trainer)[name])
        trainer.save(tmp_path / "one")
        undisturbed = [trainer.step() for _ in range(2)]
        end = weights(trainer)
    with trainer_of(tiny_folder, spec, **settings) as trainer:
        trainer.restore(tmp_path / "one")
        resumed = [trainer.step() for _ in range(2)]
        assert all(torch.equal(one, end[name]) for name, one in weights(trainer).items())
    for one, other in zip(undisturbed, resumed, strict=True):
        assert {k: v for k, v in one.items() if "time/" not in k} == {
            k: v for k, v in other.items() if "time/" not in k
        }
    (tmp_path / "one" / "slow.average.safetensors").unlink()
    with trainer_of(tiny_folder, spec, **settings) as trainer, pytest.raises(ResumeError, match=r"slow\.average"):
        trainer.restore(tmp_path / "one")


def test_bad_models_are_refused_before_anything_is_sampled(tiny_folder, tmp_path):
    with pytest.raises(SettingsError, match=r"needs the model 'teacher', and optimizer\.gkd\.teacher is empty"):
        trainer_of(tiny_folder, "gkd")
    other = write_tiny_model(tmp_path / "other", words=("other", "words", "all", "new"))
    with pytest.raises(VocabularyError, match=r"the model 'teacher', .* has another vocabulary"):
        trainer_of(tiny_folder, gkd(other))
    for weights in ({}, {"policy": float("nan")}):
        with pytest.raises(SettingsError, match="the weights of a mixture are"):
            Mixture(weights)
    for named, asked, needs, message in (
        ({}, ("refrence",), None, r"unknown model 'refrence'; did you mean 'reference'"),
        ({}, ("reference",), Needs(), r"unknown model 'reference'.*Needs\(reference=True\)"),
        ({"policy": NamedModel()}, (), None, "expected another name"),
        ({"mix": Mixture({"policy": 1.0, "other": 1.0})}, ("mix",), None, "mixture 'mix': unknown model 'other'"),
        ({"../up": NamedModel(decay=0.9)}, (), None, r"models\(\) returned the name '../up'; expected another name"),
        ({"teacher": str(tiny_folder)}, (), None, "expected a NamedModel or a Mixture"),
    ):
        with pytest.raises((PluginError, SettingsError), match=message):
            trainer_of(tiny_folder, asking(named, asked, needs)[1])
    with pytest.raises(SettingsError, match="only a copy can follow"):
        NamedModel("folder", decay=0.9)
    with pytest.raises(SettingsError, match="a number from 0 to 1"):
        NamedModel(decay=1.5)


def test_an_engine_of_one_model_is_refused(tiny_folder, monkeypatch):
    from lmrl.engines.local.engine import TransformersEngine

    monkeypatch.setattr(TransformersEngine, "capabilities", Capabilities(exact=True))
    with pytest.raises(SettingsError, match="holds one model"):
        trainer_of(tiny_folder, asking()[1])


def test_a_name_that_no_model_has_is_an_error_in_the_loss(tiny_folder):
    class Wrong(Asks):
        asked = ()

        def loss(self, policy, batch):
            return Loss(policy.other("techer").evaluate(batch).logprobs)

    spec = OptimizerSpec("wrong", Wrong, OptimizerSettings, Needs(), "")
    with trainer_of(tiny_folder, spec, beta=0.0) as trainer, pytest.raises(PluginError, match="unknown model 'techer'"):
        trainer.step()


@pytest.mark.parametrize("answer", [lambda p, q: p, lambda p, q: p.sum(-1, keepdim=True), lambda p, q: None])
def test_a_comparison_that_is_no_number_per_state_is_an_error(tiny_folder, teacher_folder, answer):
    with trainer_of(tiny_folder, gkd(teacher_folder)) as trainer:
        trainer.updater.optimizer.loss = lambda policy, batch: Loss(policy.compare(batch, "teacher", answer))
        with pytest.raises(PluginError, match=r"the function of policy\.compare returned .*; expected a tensor"):
            trainer.step()


def test_pairs_with_further_responses_hold_each_groups_own(tiny_folder):
    _, spec = asking()
    with trainer_of(tiny_folder, spec) as trainer:
        rollout = trainer.source.next(0).experience
        kept = torch.arange(len(rollout)) % 3 > 0
        pairs = PairBatch.with_further(rollout, kept, {"gain": rollout.scores - rollout.further_scores[:, 0]})
        assert torch.equal(pairs.chosen.inputs.ids, rollout.inputs.ids)
        for row in range(len(rollout)):
            width = int((~rollout.inputs.sampled[row]).nonzero()[0].item()) + 1  # the first token of the prompt
            assert torch.equal(pairs.rejected.inputs.ids[row, :width], rollout.inputs.ids[row, :width])
        assert torch.equal(pairs.action_mask.any(1), kept)
        part = pairs.select(torch.tensor([5, 1]))
        assert torch.equal(part.chosen["gain"], pairs.chosen["gain"][[5, 1]])


@pytest.mark.parametrize("named", ["padded", "mixture"])
def test_padding_of_another_model_is_never_drawn(tiny_folder, tmp_path, named):
    model = load(tiny_folder).model
    model.resize_token_embeddings(64, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[15:] = 50 * model.get_output_embeddings().weight[3:4]  # likely tokens
    shutil.copytree(tiny_folder, tmp_path / "padded")
    model.save_pretrained(tmp_path / "padded")
    models = {"padded": NamedModel(str(tmp_path / "padded")), "mixture": Mixture({"padded": 1.0})}
    kind, spec = asking(models, (named,), Needs())
    with trainer_of(tiny_folder, spec) as trainer:
        assert trainer.source.maker.beside.padding(named) == tuple(range(15, 64))
        trainer.step()
    [further] = kind.seen.further_responses
    assert int(further.inputs.ids.max()) < 15


@pytest.mark.parametrize("name", ["xpo", "nash_md"])
def test_opponents_make_a_run_better(tiny_folder, name):
    own, settings = ({"beta": 0.1}, {}) if name == "xpo" else ({"temperature": 0.3}, {"beta": 0.02})
    optimizer, settings = {"name": name, **own}, settings | {"group_size": 8, "learning_rate": 0.02}
    with trainer_of(tiny_folder, optimizer, **settings) as trainer:
        rewards = [metrics["rollout/reward"] for metrics in trainer.steps(25)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3


def test_a_teacher_is_evaluated_in_the_precision_of_the_policy(tiny_folder):
    """The same model in the same precision: no divergence, not even that of rounding."""
    with trainer_of(tiny_folder, gkd(tiny_folder, beta=1.0), precision="bf16") as trainer:
        assert trainer.step()["optimizer/loss"] == 0.0
