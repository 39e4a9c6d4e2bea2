"""Optimizers that do not sample: what they learn from is read, encoded, cut and averaged as the others' data are."""

from dataclasses import replace

import pytest
import torch

from lmrl import Loss, OptimizerSettings, OptimizerSpec, PolicyOptimizer, hookimpl
from lmrl.config import PluginChoice, build, refuse_unread, unread_note
from lmrl.errors import DataError, ResumeError, SettingsError, UnknownColumn
from lmrl.plugins import PluginManager
from lmrl.plugins.specs import Needs
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl
from lmrl.stages.rl.checks import refuse_defaults

PROMPTS = ["the cat", "a dog", "the dog sat", "a cat ran"]
PAIRS = [
    {"prompt": prompt, "chosen": " happy home .", "rejected": " sad far ."}
    for prompt in ("the cat", "a dog", "the dog", "a cat")
]
LABELLED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in PAIRS
    for side in ("chosen", "rejected")
]


def margin(policy, batch):
    chosen, rejected = policy.evaluate(batch.chosen), policy.evaluate(batch.rejected)
    now = (chosen.logprobs - batch.chosen.reference_logprobs).sum(1)
    return now - (rejected.logprobs - batch.rejected.reference_logprobs).sum(1)


class Pairwise(PolicyOptimizer):
    def loss(self, policy, batch):
        gap = margin(policy, batch)
        return Loss(-torch.nn.functional.logsigmoid(gap), {"margin": gap})


class Labels(PolicyOptimizer):
    def statistics(self, policy, batch):
        return {"reference_point": policy.evaluate(batch.mismatched).logprobs.sum(1)}

    def loss(self, policy, batch):
        assert set(batch.means) == {"reference_point"}
        sign = torch.where(batch.desirable, -1.0, 0.1)
        column = torch.full_like(sign, batch.means["reference_point"])
        return Loss(sign * policy.evaluate(batch.responses).logprobs.sum(1), {"reference_point": column})


@hookimpl
def lmrl_optimizers():
    needs = Needs(experience="preferences", reference=True)
    yield OptimizerSpec("pairwise", Pairwise, OptimizerSettings, needs)
    yield OptimizerSpec("labels", Labels, OptimizerSettings, Needs(experience="labelled"))


@pytest.fixture
def plugins():
    return PluginManager(files=[__file__])


def config_of(model, folder, name, **train):
    return build(
        RLConfig,
        {
            "model": str(model),
            "run": {"folder": str(folder), "device": "cpu"},
            "sampling": {"max_new_tokens": 4},
            "train": {"updates": 4, "prompts_per_update": 4, "learning_rate": 0.01, **train},
            "optimizer": {"name": name},
            "evaluation": {"every": 2, "prompts": 2},
        },
    )


def run(config, plugins, data, **kwargs):
    reward = lambda prompts, responses: [0.0] * len(prompts)  # noqa: E731
    return rl(config, reward=reward, prompts=PROMPTS, data=data, plugins=plugins, progress=False, **kwargs)


@pytest.mark.parametrize(("name", "data"), [("pairwise", PAIRS), ("labels", LABELLED)])
def test_it_learns_and_leaves_a_run(tiny_folder, tmp_path, plugins, name, data):
    result = run(config_of(tiny_folder, tmp_path / "run", name), plugins, data)
    records = read_metrics(tmp_path / "run")
    assert result.updates == 4 and result.after is not None
    losses = [record["optimizer/loss"] for record in records[1:]]
    assert losses[-1] < losses[0]
    if name == "pairwise":
        assert records[1]["optimizer/margin"] == pytest.approx(0, abs=1e-4), "the policy starts as its reference"
        assert records[-1]["optimizer/margin"] > 0.5


def test_what_it_does_not_read_is_said(plugins):
    config = build(RLConfig, {"model": "some/model", "kl": {"beta": 0.5}, "train": {"group_size": 4}})
    chosen = replace(config, optimizer=PluginChoice("optimizer", "pairwise"))
    assert unread_note(chosen, plugins).startswith("2 settings are set that this run does not read: kl.beta")


def test_it_is_not_evaluated_on_prompts_that_nobody_chose(plugins, tiny_folder, caplog):
    spec = plugins.get("optimizer", "pairwise")
    config = build(RLConfig, {"model": str(tiny_folder)})
    with pytest.raises(SettingsError, match=r"prompts\.name and reward\.name are missing.*evaluation\.prompts=0"):
        refuse_defaults(config, spec, prompts_given=False, reward_given=False)
    refuse_defaults(RLConfig(), spec, prompts_given=False, reward_given=False)
    refuse_defaults(build(RLConfig, {"model": str(tiny_folder), "evaluation": {"prompts": 0}}), spec, False, False)
    assert not caplog.messages
    refuse_defaults(config, spec, prompts_given=True, reward_given=False)
    assert "reward.name is missing" in caplog.text


@pytest.mark.parametrize(("name", "data"), [("pairwise", PAIRS), ("labels", LABELLED)])
def test_microbatches_change_nothing(tiny_folder, tmp_path, plugins, name, data):
    logged = []
    for number, tokens in enumerate((8, 4096)):
        run(config_of(tiny_folder, tmp_path / str(number), name, microbatch_tokens=tokens), plugins, data)
        logged.append([record["optimizer/loss"] for record in read_metrics(tmp_path / str(number))[1:]])
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)


def test_rankings_give_all_their_pairs_or_the_extreme_one(tiny_folder, tmp_path, plugins):
    from lmrl.models import load
    from lmrl.stages.rl.config import LearningData
    from lmrl.stages.rl.offline import load_offline

    card = load(str(tiny_folder)).card
    rows = [{"prompt": "the", "completions": [" cat", " dog", " home"], "ranks": [0, 1, 2]}]
    for pairs, count in (("all", 3), ("best_worst", 1)):
        needs = Needs(experience="preferences")
        data = load_offline(LearningData(pairs=pairs), rows, card, needs, torch.device("cpu"))
        assert len(data) == count
    batch = data.batch([0])
    assert batch.chosen.inputs.action_ids[0].tolist() == [*card.codec.encode("cat"), 1], "EOS is an action"


def test_the_reference_is_scored_once_per_row():
    from lmrl.stages.rl.offline import Item, OfflineData

    calls = []

    def scorer(inputs):
        calls.append(inputs.action_ids.shape[0])
        return -inputs.action_ids.float()

    items = [Item((((3,), (4, 1)), ((3,), (5, 6, 1)))), Item((((3,), (4, 1)), ((7,), (8, 1))))]
    data = OfflineData(items, Needs(experience="preferences", reference=True), torch.device("cpu"))
    data.scorer = scorer
    first, again = data.batch([0, 1]), data.batch([1, 0])
    assert sum(calls) <= 4, "kept from the first time on"
    assert first.chosen.reference_logprobs.tolist() == [[-4, -1], [-4, -1]]
    assert again.rejected.reference_logprobs.tolist() == [[-8, -1, 0], [-5, -6, -1]]


def test_bad_input_is_refused_before_a_folder_exists(tiny_folder, tmp_path, plugins):
    folder = tmp_path / "run"
    with pytest.raises(SettingsError, match=r"data\.path"):
        run(config_of(tiny_folder, folder, "pairwise"), plugins, None)
    with pytest.raises(SettingsError, match="learns from what it samples"):
        run(config_of(tiny_folder, folder, "reinforce"), plugins, PAIRS)
    with pytest.raises(DataError, match="label"):
        run(config_of(tiny_folder, folder, "labels"), plugins, [{"prompt": "the", "completion": " cat"}])
    with pytest.raises(DataError, match=r"one label|rankings"):
        run(config_of(tiny_folder, folder, "pairwise"), plugins, LABELLED[:1])
    assert not folder.exists()


def test_a_resume_with_other_data_is_refused(tiny_folder, tmp_path, plugins):
    config = config_of(tiny_folder, tmp_path / "run", "pairwise")
    run(config, plugins, PAIRS)
    with pytest.raises(ResumeError, match="changed"):
        run(config, plugins, PAIRS[:3], resume=True)


@pytest.mark.parametrize(("name", "switch"), [("raft", "kl.placement=loss"), ("online_dpo", "reads shaped rewards")])
def test_a_kl_penalty_that_a_method_does_not_read_is_refused(plugins, name, switch):
    table = {"optimizer": {"name": name}, "train": {"group_size": 4}}
    config = build(RLConfig, {**table, "kl": {"beta": 10}})
    with pytest.raises(SettingsError, match=switch):
        refuse_unread(config, plugins, ["kl.beta"])
    assert unread_note(config, plugins).startswith("1 setting is set that this run does not read: kl.beta")
    in_the_loss = build(RLConfig, {**table, "kl": {"beta": 10, "placement": "loss"}})
    assert (unread_note(in_the_loss, plugins) == "") == (name == "raft")
    assert not unread_note(build(RLConfig, {**table, "optimizer": {"name": "grpo"}, "kl": {"beta": 10}}), plugins)


def test_pairs_have_the_scores_of_their_ranking(tiny_folder):
    from lmrl.models import load
    from lmrl.stages.rl.config import LearningData
    from lmrl.stages.rl.offline import load_offline

    card, needs = load(str(tiny_folder)).card, Needs(experience="preferences")
    rows = [{"prompt": "the", "completions": [" cat", " dog", " home"], "scores": [2.0, 0.5, 1.0]}]
    data = load_offline(LearningData(), rows, card, needs, torch.device("cpu"))
    batch = data.batch([1, 2, 0])
    pairs = list(zip(batch.chosen["scores"].tolist(), batch.rejected["scores"].tolist(), strict=True))
    assert sorted(pairs) == [(1.0, 0.5), (2.0, 0.5), (2.0, 1.0)]
    token = {score: card.codec.encode(text)[0] for score, text in ((2.0, "cat"), (0.5, "dog"), (1.0, "home"))}
    for side in (batch.chosen, batch.rejected):
        assert side.inputs.action_ids[:, 0].tolist() == [token[score] for score in side["scores"].tolist()]
    mixed = [*rows, {"prompt": "a", "chosen": " cat", "rejected": " dog"}]
    for lacking in (PAIRS, mixed):
        batch = load_offline(LearningData(), lacking, card, needs, torch.device("cpu")).batch([0])
        with pytest.raises(UnknownColumn, match=r"'scores'\. None is known.*scores where every ranking has them"):
            batch.chosen["scores"]
