"""Responses without a score: truncated ones, and those to which the reward does not apply. Nothing takes them for 0."""

import dataclasses
import json
import logging
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from lmrl.algorithms.kl import KLSettings
from lmrl.algorithms.rollout import Rollout
from lmrl.config import build
from lmrl.engines import SamplingSpec
from lmrl.envs import TextGenVectorEnv
from lmrl.models.beside import ModelsBeside
from lmrl.plugins import PluginManager
from lmrl.plugins.specs import Needs
from lmrl.reporting.metrics import read_metrics
from lmrl.rewards import resolve
from lmrl.stages.evaluate import EvaluateConfig, evaluate
from lmrl.stages.rl import RLConfig, rl
from lmrl.stages.rl.evaluation import evaluate_policy

PROMPTS = ["the cat", "a dog", "the dog sat", "a cat ran", "the", "a", "home", "far ."]
SAMPLERS = sorted(
    name
    for name, spec in PluginManager().records("optimizer").items()
    if spec.needs.experience == "rollouts" and spec.needs.scores
)
VALUED = [name for name in SAMPLERS if PluginManager().get("optimizer", name).needs.values]


def odd_only(prompts, responses):
    """A reward of 1 plus the number of words, for responses with an odd number of words."""
    counts = [len(response.split()) for response in responses]
    return {"score": [1 + count if count % 2 else None for count in counts], "words": counts}


def config_of(model, folder, name="reinforce", **sections):
    mapping = {
        "model": str(model),
        "run": {"folder": str(folder), "device": "cpu"},
        "sampling": {"max_new_tokens": 6},
        "train": {"updates": 1, "prompts_per_update": 4, "group_size": 4, "learning_rate": 0.01},
        "optimizer": {"name": name},
        "evaluation": {"prompts": 2, "samples_per_prompt": 4},
        "trackers": [],
    }
    for key, section in sections.items():
        mapping[key] = {**mapping[key], **section} if isinstance(mapping.get(key), dict) else section
    return build(RLConfig, mapping)


# What an optimizer learns


def sampled(toy, name, reward=odd_only, on_length="terminate"):
    """Return a rollout with unscored rows, and an updater of this optimizer over the same policy."""
    spec = PluginManager().get("optimizer", name)
    sampling = SamplingSpec(max_new_tokens=4, eos_ids=(1,), context_length=48, on_length=on_length)
    here = toy(reward=resolve(reward), spec=sampling, kl=KLSettings(beta=0.1), values=spec.needs.values)
    here.needs = dataclasses.replace(Needs(), values=spec.needs.values, reference=True)
    here.maker.needs = here.needs
    prompts = here.prompts(24, group_size=6)
    settings = dataclasses.replace(spec.settings(), epochs=1, minibatches=1)
    optimizer = spec.build(settings)
    frozen = here.maker.reference
    here.maker.beside = ModelsBeside(optimizer.models(), here.policy, here.language_model.card, frozen)
    asks = optimizer.further_requests if optimizer.defines("further_requests") else None
    scored = here.maker.sample(prompts, 5, asks)
    rollout = here.maker.complete(scored, here.maker.reference_logprobs(scored.samples), 0.1)
    return here, rollout, optimizer


def step(here, optimizer, rollout):
    """Return the change of the parameters in one step, which is taken back."""
    before = here.parameters().clone()
    here.updater(optimizer, learning_rate=0.1).learn(rollout, beta=0.0, update=1, seed=0)
    change = here.parameters() - before
    torch.nn.utils.vector_to_parameters(before, here.policy.parameters())
    return change


def with_other_scores(rollout, rows, number):
    """Return a rollout with another number where rows have no score, in scores and in the last action's reward."""
    last = rollout.action_mask & (rollout.action_mask.flip(1).cumsum(1).flip(1) == 1)
    return dataclasses.replace(
        rollout,
        scores=rollout.scores.masked_fill(rows, number),
        rewards=torch.where(last & rows[:, None], rollout.rewards + number, rollout.rewards),
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_optimizer_learns_from_a_response_without_a_score(toy, name):
    here, rollout, optimizer = sampled(toy, name)
    unscored = ~rollout.scored
    assert unscored.any() and not unscored.all() and not rollout.truncated.any()
    assert torch.equal(rollout.loss_mask, rollout.action_mask & rollout.scored[:, None])
    change = step(here, optimizer, rollout)
    other = step(here, sampled(toy, name)[2], with_other_scores(rollout, unscored, 50.0))
    assert change.abs().max() > 0
    assert torch.allclose(change, other, atol=1e-6), "whatever stands in the place of a score that is not there"


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - set(VALUED)))
def test_no_optimizer_learns_from_a_truncated_response(toy, name):
    here, rollout, optimizer = sampled(toy, name, lambda prompts, responses: [3.0] * len(responses), "truncate")
    assert torch.equal(rollout.scored, ~rollout.truncated) and rollout.truncated.any() and rollout.scored.any()
    change = step(here, optimizer, rollout)
    other = step(here, sampled(toy, name)[2], with_other_scores(rollout, rollout.truncated, 50.0))
    assert torch.allclose(change, other, atol=1e-6)


@pytest.mark.parametrize("name", VALUED)
def test_a_value_function_takes_the_place_of_a_truncated_response_s_score(toy, name):
    """Its return is bootstrapped: as if the score were the value of its last state, and not 0."""
    _, rollout, _ = sampled(toy, name, lambda prompts, responses: [3.0] * len(responses), "truncate")
    assert rollout.loss_mask[rollout.truncated].any(1).all()
    spec = PluginManager().get("optimizer", name)
    raw = spec.build(dataclasses.replace(spec.settings(), whiten_advantages=False, gae_lambda=1.0))
    rollout = dataclasses.replace(
        rollout, declared={**rollout.declared, "bootstrap_values": torch.full_like(rollout.scores, 3.0)}
    )
    paid = with_other_scores(rollout, rollout.truncated, 3.0)
    paid = dataclasses.replace(paid, truncated=torch.zeros_like(rollout.truncated))
    assert torch.allclose(raw.advantages(rollout).advantages, raw.advantages(paid).advantages, atol=1e-5)


def test_a_baseline_is_the_mean_of_scored_rows(toy):
    _, rollout, reinforce = sampled(toy, "reinforce")
    reinforce.advantages(rollout)
    assert reinforce.baseline == pytest.approx(float(rollout.rewards.sum(1)[rollout.scored].mean()), rel=1e-5)
    before = reinforce.baseline
    reinforce.advantages(dataclasses.replace(rollout, scored=torch.zeros_like(rollout.scored), loss_mask=None))
    assert reinforce.baseline == before, "a batch without scores says nothing"


def test_a_greedy_answer_without_a_score_is_no_baseline_of_0(toy):
    _, rollout, remax = sampled(toy, "remax", lambda prompts, responses: [1.0] * len(responses))
    greedy = torch.tensor([2.0, math.nan, 4.0]).repeat_interleave(8)
    found = remax.advantages(dataclasses.replace(rollout, declared={"further_scores": greedy[:, None]}))
    assert found.metrics["greedy_score"][::8].tolist() == [2.0, 3.0, 4.0]
    assert torch.isfinite(found.advantages).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_without_any_score_moves_nothing(toy, name):
    here, rollout, optimizer = sampled(toy, name, lambda prompts, responses: [None] * len(responses))
    assert not rollout.scored.any() and not rollout.loss_mask.any()
    assert step(here, optimizer, rollout).abs().max() == 0


def rollout_of(**changes):
    mask, gone = torch.ones(3, 2).bool(), torch.tensor([False, True, False])
    zeros = torch.zeros(3, 2)
    return Rollout(None, mask, zeros, zeros, zeros[:, 0], ~gone, gone, torch.arange(3), **changes)


def test_what_a_rollout_assumes_of_scores():
    assert rollout_of().scored.tolist() == [True, False, True]
    assert rollout_of().loss_mask.any(1).tolist() == [True, False, True]
    assert rollout_of(declared={"values": torch.zeros(3, 2)}).loss_mask.all(), "truncated rows are bootstrapped"
    control = rollout_of(scored=torch.ones(3).bool())
    assert control.loss_mask.all(), "steps of a task have their rewards also where it was cut"
    masked = rollout_of(loss_mask=torch.tensor([[True, False]] * 3))
    assert masked.loss_mask.tolist() == [[True, False]] * 3
    fewer = dataclasses.replace(masked, action_mask=torch.tensor([[False, True]] * 3))
    assert not fewer.loss_mask.any(), "a subset of the actions"
    assert rollout_of().select(torch.tensor([1, 0])).scored.tolist() == [False, True]


# What a run logs


@pytest.mark.parametrize("concurrency", ["none", "thread"])
def test_metrics_are_of_scored_rows(tiny_folder, tmp_path, concurrency):
    seen = []

    def reward(prompts, responses):
        seen.extend(responses)
        return odd_only(prompts, responses)

    config = config_of(tiny_folder, tmp_path / "run", evaluation={"prompts": 0}, scoring={"concurrency": concurrency})
    rl(config, reward=reward, prompts=PROMPTS, progress=False)
    metrics = read_metrics(tmp_path / "run")[-1]
    counts = [len(response.split()) for response in seen]
    odd = [count for count in counts if count % 2]
    assert 0 < len(odd) < len(counts) == 16
    assert metrics["rollout/scored"] == len(odd)
    assert metrics["rollout/reward"] == pytest.approx(np.mean(odd) + 1, rel=1e-5)
    assert metrics["rollout/reward_words"] == pytest.approx(np.mean(counts), rel=1e-5), "it applies to all rows"


def test_truncated_rows_are_in_no_mean(tiny_folder, tmp_path):
    reward = lambda prompts, responses: {"score": [2.0] * len(responses), "part": [4.0] * len(responses)}  # noqa: E731
    config = config_of(tiny_folder, tmp_path / "run", sampling={"max_new_tokens": 6, "on_length": "truncate"})
    rl(config, reward=reward, prompts=PROMPTS, progress=False)
    first, metrics = read_metrics(tmp_path / "run")
    assert metrics["rollout/reward"] == 2.0 and metrics["rollout/reward_part"] == 4.0
    assert 0 < metrics["rollout/scored"] == round(16 * metrics["rollout/terminated"]) < 16
    assert first["evaluation/reward"] == 2.0 and first["evaluation/reward_part"] == 4.0
    assert 0 < first["evaluation/scored"] == round(8 * first["evaluation/ended_share"]) < 8


def test_a_run_without_any_score_has_no_reward_and_says_so(tiny_folder, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "lmrl")
    config = config_of(tiny_folder, tmp_path / "run", "ppo")
    result = rl(config, reward=lambda prompts, responses: [None] * len(responses), prompts=PROMPTS, progress=False)
    metrics = read_metrics(tmp_path / "run")[-1]
    assert metrics["rollout/scored"] == metrics["evaluation/scored"] == 0
    assert not {"rollout/reward", "rollout/objective", "evaluation/reward"} & metrics.keys()
    assert any("no response has a score" in message for message in caplog.messages)
    from lmrl.cli.report import print_result
    from lmrl.cli.tables import make_console

    console = make_console()
    with console.capture() as shown:
        print_result(result, console)
    assert "no scores" in shown.get()


def test_an_evaluation_leaves_out_prompts_without_a_score(toy):
    def one_prompt(prompts, responses):
        lengths = [float(len(response.split())) for response in responses]
        return [None if prompt == "a" else length for prompt, length in zip(prompts, lengths, strict=True)]

    here = toy(reward=resolve(one_prompt))
    found = evaluate_policy(here.maker, here.prompts(12, group_size=4), seed=0, show=3)
    assert found.reward.count == 2 and found.length.count == 3 and found.scored == 8
    assert [score is None for score in found.rewards] == [False] * 4 + [True] * 4 + [False] * 4
    assert found.reward.mean == pytest.approx(np.mean([score for score in found.rewards if score is not None]))
    assert [score is None for score in found.shown_rewards] == [False, True, False]


def test_eval_and_compare_leave_out_answers_without_a_score(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "partly.py").write_text(
        "def score(prompts, responses):\n"
        "    return [None if prompt.startswith('a') else 2.0 for prompt in prompts]\n"
        "def never(prompts, responses):\n"
        "    return [None] * len(responses)\n"
    )
    from lmrl.testing import write_tiny_model

    models = [str(write_tiny_model(tmp_path / name, seed=seed)) for name, seed in (("one", 1), ("two", 2))]
    mapping = {
        "models": models,
        "rewards": ["partly:score", "partly:never"],
        "run": {"folder": str(tmp_path / "eval"), "device": "cpu"},
        "held_out": {"prompts": 4},
        "sampling": {"max_new_tokens": 4},
    }
    found = evaluate(build(EvaluateConfig, mapping), prompts=PROMPTS, progress=False)
    asked = sum(not prompt.startswith("a") for prompt in found.samples.prompts)
    assert 0 < asked < 4
    for place, values in enumerate(found.values):
        assert values["reward:partly:score"].mean == 2.0 and values["reward:partly:score"].count == asked
        assert "reward:partly:never" not in values
        assert place == 0 or values["difference:partly:score"].count == asked
    assert any(
        note.startswith(f"{4 - asked} of 4 answers of one have no score by partly:score") for note in found.notes
    )
    [wins] = found.wins.values()
    assert wins.unanswered == 4 - asked - wins.by_empty or wins.by_empty
    json.dumps([dataclasses.asdict(answer) for row in found.samples.answers for answer in row], allow_nan=False)
    assert {answer.reward for row in found.samples.answers for answer in row} == {2.0, None}
    assert found.samples.mean(0, "reward") == 2.0


# The environment


def test_an_episode_without_a_score(tmp_path):
    reward = resolve(lambda prompts, responses: {"score": [None] * len(responses), "part": [1.0] * len(responses)})
    env = gym.make("lmrl:TextGen-v0", max_new_tokens=2, reward=reward)
    env.reset(seed=0)
    done, info = False, {}
    while not done:
        _, number, terminated, truncated, info = env.step(5)
        done = terminated or truncated
        assert number == 0
    assert terminated and info["scored"] == 0 and "score" not in info and info["reward_part"] == 1.0


def test_rows_of_the_vector_environment_without_a_score():
    def first_only(prompts, responses):
        return [7.0 if place == 0 else None for place, _ in enumerate(responses)]

    envs = TextGenVectorEnv(num_envs=3, max_new_tokens=1, reward=first_only)
    envs.reset(seed=0)
    _, rewards, terminated, _, infos = envs.step(np.array([5, 6, 7]))
    assert terminated.all() and rewards.tolist() == [7.0, 0.0, 0.0]
    final = infos.get("final_info", infos)
    assert final["scored"].tolist() == [1, 0, 0]
    assert final["_score"].tolist() == [True, False, False] and final["score"][0] == 7.0


def test_a_truncated_episode_is_not_scored():
    env = gym.make("lmrl:TextGen-v0", max_new_tokens=1, on_length="truncate")
    env.reset(seed=0)
    _, number, terminated, truncated, info = env.step(5)
    assert truncated and not terminated and number == 0 and info["scored"] == 0


# Others who ask a reward


def test_an_annotator_has_no_judgement_without_all_scores():
    from lmrl.annotators.annotators import Comparison
    from lmrl.annotators.reward import RewardAnnotator

    annotator = RewardAnnotator(resolve(odd_only))
    comparisons = [Comparison("p", "p", texts) for texts in (("one", "now three words"), ("one", "two words"))]
    complete, missing = annotator.judge(comparisons)
    assert complete.scores == (2.0, 4.0) and complete.ranks == (1, 0) and missing is None
