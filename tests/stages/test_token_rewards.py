"""Rewards of tokens on their way: into the rollout, the environment, resampling, evaluation, `lmrl eval`, and parts."""

import gymnasium as gym
import pytest
import torch

import lmrl  # noqa: F401 (registers TextGen-v0)
from lmrl.config import build
from lmrl.engines import SamplingSpec
from lmrl.rewards import RewardFunction, per_row, resolve
from lmrl.rewards.function import Member
from lmrl.stages.evaluate import EvaluateConfig, evaluate
from lmrl.stages.rl.evaluation import evaluate_policy

MODULE = """
def by_token(prompts, responses, response_ids):
    return [[0.5] * len(ids) for ids in response_ids]


def total(prompts, responses, response_ids):
    return [0.5 * len(ids) for ids in response_ids]
"""
STOPS = ("cat", "home", "dog")
SPEC = SamplingSpec(max_new_tokens=8, eos_ids=(1,), context_length=48, on_length="truncate", stop_strings=STOPS)


@per_row
def by_token(prompt, response, response_ids):
    """Return 1 for each token 7, and a hundredth of the place for every other one."""
    return [1.0 if token == 7 else place / 100 for place, token in enumerate(response_ids)]


def total(prompts, responses, response_ids):
    return [sum(by_token(["p"], ["r"], response_ids=[ids])[0]) for ids in response_ids]


def last(prompts, responses, response_ids):
    scores = total(prompts, responses, response_ids)
    return [[0.0] * (len(ids) - 1) + [score] for ids, score in zip(response_ids, scores, strict=True)]


def test_each_number_is_the_reward_of_its_token_and_the_penalty_is_added(toy):
    world = toy(reward=resolve(by_token), spec=SPEC)
    scored = world.maker.sample(world.prompts(16), 3)
    samples, counts = scored.samples, scored.samples.inputs.action_counts.tolist()
    assert scored.scored.any() and not scored.scored.all()
    for row, ids in enumerate(samples.inputs.action_rows()):
        expected = by_token(["p"], ["r"], response_ids=[ids])[0] if scored.scored[row] else [0.0] * counts[row]
        assert scored.rewards[row, : counts[row]].tolist() == pytest.approx(expected)
        assert float(scored.scores[row]) == pytest.approx(sum(expected))
    assert not scored.rewards[~samples.action_mask].any()
    with torch.no_grad():
        world.policy.model.lm_head.weight.mul_(1.1)  # the engine has other weights than the reference from here on
    world.maker.publish(1)
    scored = world.maker.sample(world.prompts(16), 4)
    reference = world.maker.reference_logprobs(scored.samples)
    rollout = world.maker.complete(scored, reference, beta=0.3)
    penalty = 0.3 * (rollout.proximal_logprobs - reference)
    assert penalty.abs().max() > 1e-3
    assert torch.allclose(rollout.rewards, (scored.rewards - penalty) * scored.samples.action_mask, atol=1e-6)


def test_everything_on_the_last_token_is_the_plain_score_bit_for_bit(toy):
    rollouts = []
    for reward in (total, last):
        world = toy(reward=resolve(reward), spec=SPEC)
        rollouts.append(world.rollout(12))
    for name in ("rewards", "scores", "scored", "loss_mask"):
        assert torch.equal(getattr(rollouts[0], name), getattr(rollouts[1], name)), name


def test_the_environment_gives_the_sum_at_the_end_and_says_the_tokens(tiny_folder, toy):
    world = toy(reward=resolve(by_token), spec=SPEC)
    scored = world.maker.sample(world.prompts(12), 3)
    texts = scored.prompts
    keywords = {
        "model": str(tiny_folder),
        "prompts": texts,
        "reward": by_token,
        "max_new_tokens": 8,
        "stop_strings": STOPS,
    }
    env = gym.make("lmrl:TextGen-v0", on_length="truncate", **keywords)
    ended = 0
    for row, ids in enumerate(scored.samples.inputs.action_rows()):
        env.reset(options={"prompt_index": row})
        rewards = []
        for token in ids:
            _, reward, terminated, truncated, info = env.step(token)
            rewards.append(reward)
        assert rewards[:-1] == [0.0] * (len(ids) - 1) and (terminated or truncated)
        assert rewards[-1] == pytest.approx(float(scored.scores[row]))
        if terminated and len(ids) > 1:
            assert list(info["token_rewards"]) == pytest.approx(scored.rewards[row, : len(ids)].tolist())
            ended += 1
    assert ended > 2
    env.close()
    envs = gym.make_vec("lmrl:TextGen-v0", num_envs=12, on_length="truncate", **keywords)
    envs.reset(options={"prompt_index": list(range(12))})
    rows, found = scored.samples.inputs.action_rows(), {}
    for step in range(8):
        *_, infos = envs.step([ids[step] if step < len(ids) else 0 for ids in rows])
        for row, ids in enumerate(rows):
            if step == len(ids) - 1 and infos.get("_token_rewards", [False] * 12)[row]:
                found[row] = list(infos["token_rewards"][row])
    assert len(found) == ended
    for row, numbers in found.items():
        assert numbers == pytest.approx(scored.rewards[row, : len(rows[row])].tolist())
    envs.close()


def test_evaluation_reads_the_sum(toy):
    found = []
    for reward in (total, by_token):
        world = toy(reward=resolve(reward), spec=SPEC)
        found.append(evaluate_policy(world.maker, world.prompts(12, 3), 5, 1).reward.mean)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_lmrl_eval_reads_the_sum(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "token_rewards.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    names = ["token_rewards:by_token", "token_rewards:total"]
    mapping = {
        "models": [str(tiny_folder)],
        "rewards": names,
        "run": {"folder": str(tmp_path / "eval"), "device": "cpu"},
        "held_out": {"prompts": 4},
        "sampling": {"max_new_tokens": 6},
    }
    prompts = ["the cat", "a dog", "home", "far .", "the", "a", "the dog sat", "a cat ran"]
    [values] = evaluate(build(EvaluateConfig, mapping), prompts=prompts, progress=False).values
    first, second = (values[f"reward:{name}"].mean for name in names)
    assert first == pytest.approx(second) and first > 0


def test_a_rollout_has_the_unweighted_parts_and_nan_where_there_is_none(toy):
    def picky(prompts, responses):
        return {"score": [len(text) for text in responses], "cats": [None if " a" in t else 1.0 for t in responses]}

    members = [Member("picky", picky, 2.0), Member("total", total, -1.0)]
    world = toy(reward=RewardFunction(members, single=False), spec=SPEC)
    scored = world.maker.sample(world.prompts(16), 3)
    rollout = world.maker.complete(scored, world.maker.reference_logprobs(scored.samples), 0.1)
    assert set(rollout.parts) == {"picky", "total", "picky_cats"}
    known = rollout.scored
    assert known.any() and not known.all()
    for part in rollout.parts.values():
        assert part[~known].isnan().all()
    expected = 2 * rollout.parts["picky"] - rollout.parts["total"]
    assert torch.allclose(rollout.scores[known], expected[known], atol=1e-5)
    left_out = torch.tensor([" a" in text for text in scored.responses])
    assert left_out[known].any() and not left_out[known].all()
    assert torch.equal(rollout.parts["picky_cats"].isnan(), left_out | ~known)
    rows = torch.tensor([5, 0, 5])
    assert torch.equal(rollout.select(rows).parts["picky"].nan_to_num(), rollout.parts["picky"][rows].nan_to_num())
