"""ReMax: the greedy baseline, how it is decoded and scored, and that nothing else notices."""

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lmrl.algorithms.rollout import Rollout, UndeclaredNeed
from lmrl.errors import PluginError
from lmrl.stages.rl.rollouts import PromptBatch
from lmrl.testing.toys import WORDS
from lmrl.training.over_ranks import advantages_over_ranks
from lmrl_remax import ReMax, ReMaxSettings

spec = importlib.util.spec_from_file_location("stages_conftest", Path(__file__).parents[1] / "stages" / "conftest.py")
stages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stages)

GREEDY = ReMax(ReMaxSettings()).further_requests


def rollout(rewards, greedy, mask=None):
    rewards = torch.tensor(rewards)
    mask = torch.ones_like(rewards, dtype=torch.bool) if mask is None else torch.tensor(mask)
    done = torch.ones(len(rewards), dtype=torch.bool)
    declared = {} if greedy is None else {"further_scores": torch.tensor(greedy)[:, None]}
    return Rollout(None, mask, 0 * rewards, rewards, rewards.sum(1), done, ~done, torch.arange(len(rewards)), declared)


def test_advantages_by_hand():
    """Rewards hold the KL shaping (-0.1, -0.2) and the score (1); the greedy answer scored 0.25."""
    made = ReMax(ReMaxSettings()).advantages(
        rollout([[-0.1, 0.8], [2.0, 0.0]], [0.25, 3.0], [[True, True], [True, False]])
    )
    assert torch.allclose(made.advantages, torch.tensor([[0.45, 0.55], [-1.0, 0.0]]))
    assert made.metrics["greedy_score"].tolist() == [0.25, 3.0]


def test_without_further_requests_there_is_no_greedy_score():
    with pytest.raises(UndeclaredNeed, match="further_requests"):
        ReMax(ReMaxSettings()).advantages(rollout([[1.0]], None))


class Watched:
    """A reward that remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, responses, columns):
        self.asked.append((list(prompts), list(responses), {name: list(column) for name, column in columns.items()}))
        return SimpleNamespace(
            scores=np.array([len(r.split()) + len(p) / 100 for p, r in zip(prompts, responses, strict=True)]), parts={}
        )


def prompts_of(world, texts, group_size):
    rows = [text for text in texts for _ in range(group_size)]
    ids = [world.language_model.card.codec.encode(text) for text in rows]
    groups = [place for place, _ in enumerate(texts) for _ in range(group_size)]
    return PromptBatch(ids, rows, {"row": list(range(len(rows)))}, groups)


def test_one_greedy_answer_is_scored_per_group_and_every_row_has_its_own(tiny_folder):
    reward = Watched()
    world = stages.Toy(tiny_folder, reward=reward)
    prompts = prompts_of(world, ["the cat", "a", "the cat", "a dog ran"], group_size=3)
    scores = world.maker.sample(prompts, 0, GREEDY).further_scores[:, 0]
    [_, (asked, answers, columns)] = reward.asked
    assert asked == ["the cat", "a", "the cat", "a dog ran"], "one per group, not one per row"
    assert columns["row"] == [0, 3, 6, 9], "a prompt's columns come along"
    assert answers[0] == answers[2]
    expected = [len(answer.split()) + len(prompt) / 100 for prompt, answer in zip(asked, answers, strict=True)]
    assert scores.tolist() == pytest.approx([expected[group] for group in prompts.groups])
    shuffled = prompts.select([7, 0, 10, 4, 1])
    again = world.maker.sample(shuffled, 0, GREEDY).further_scores[:, 0]
    assert again.tolist() == pytest.approx([expected[g] for g in shuffled.groups])


def test_the_greedy_answer_takes_the_likeliest_tokens(tiny_folder):
    reward = Watched()
    world = stages.Toy(tiny_folder, reward=reward)
    prompts = prompts_of(world, ["the cat"], 1)
    world.maker.sample(prompts, 0, GREEDY)
    ids = list(prompts.ids[0])
    for _ in range(world.spec.max_new_tokens):
        with torch.no_grad():
            ids.append(int(world.language_model.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in world.spec.eos_ids:
            break
    specials = 3
    expected = [WORDS[token - specials] for token in ids[len(prompts.ids[0]) :] if token >= specials]
    assert reward.asked[1][1][0].split() == expected


def test_sampling_is_not_disturbed(tiny_folder):
    world = stages.Toy(tiny_folder)
    prompts, state = world.prompts(6), torch.get_rng_state()
    alone = world.maker.sample(prompts, 3)
    beside = world.maker.sample(prompts, 3, GREEDY)
    assert torch.equal(alone.samples.inputs.action_ids, beside.samples.inputs.action_ids)
    assert alone.samples.sampler_logprobs.shape == beside.samples.sampler_logprobs.shape
    assert torch.equal(torch.get_rng_state(), state), "neither is torch's own generator"


def test_over_ranks_every_rank_has_its_own_rows_baselines():
    """The rollout of all ranks is gathered, greedy scores too, and each rank takes its rows of the answer."""
    from concurrent.futures import ThreadPoolExecutor

    from lmrl.testing.thread_ranks import Meeting, ThreadAccelerator

    parts = [rollout([[1.0], [2.0]], [0.5, 0.25]), rollout([[3.0, 0.0], [0.0, 4.0]], [1.0, 2.0])]
    meeting = Meeting(2)

    def of(rank):
        return advantages_over_ranks(ReMax(ReMaxSettings()), parts[rank], ThreadAccelerator(meeting, rank)).advantages

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(of, range(2))
    assert torch.equal(one, torch.tensor([[0.5], [1.75]]))
    assert torch.equal(two, torch.tensor([[2.0, -1.0], [2.0, 2.0]]))


def cats(prompts, responses):
    return [float(response.split().count("cat")) for response in responses]


def test_a_run_raises_the_reward_and_trains_on_sampled_rows_alone(train):
    seen = []

    def reward(prompts, responses):
        seen.append(len(prompts))
        return cats(prompts, responses)

    records = train("remax", reward=reward, updates=15, prompts_per_update=16, group_size=2, learning_rate=0.02)
    assert records[-1]["rollout/reward"] > records[1]["rollout/reward"] + 0.3
    assert seen[1:3] == [32, 16], "32 samples and 16 greedy answers in each update"
    assert records[1]["rollout/tokens"] <= 32 * 4
    assert records[-1]["optimizer/greedy_score"] > records[1]["optimizer/greedy_score"]


def test_microbatches_change_nothing(train):
    logged = []
    for tokens in (1, 100_000):
        records = train("remax", reward=cats, updates=3, microbatch_tokens=tokens, folder=str(tokens))
        logged.append([record["optimizer/loss"] for record in records[1:]])
    assert logged[0] == pytest.approx(logged[1], rel=1e-4, abs=1e-6)


def test_further_requests_are_several_or_none_and_the_same_number_for_every_group(tiny_folder):
    world = stages.Toy(tiny_folder)
    prompts = prompts_of(world, ["the cat", "a"], group_size=2)
    assert world.maker.sample(prompts, 0, lambda group: []).further_scores is None
    scored = world.maker.sample(prompts, 0, lambda group: [*GREEDY(group), group[1]])
    assert scored.further_scores.shape == (4, 2)
    greedy, sampled = scored.further
    for one in (greedy, sampled):
        assert torch.equal(one.inputs.ids[::2], one.inputs.ids[1::2]), "one response to each group"
    assert (
        sampled.inputs.select(torch.tensor([0])).action_ids.tolist()
        != scored.samples.inputs.select(torch.tensor([1])).action_ids.tolist()
    ), "a further request has a seed of its own"
    with pytest.raises(PluginError, match="returned 0 and 1 requests; expected as many for every group"):
        world.maker.sample(prompts, 0, lambda group: GREEDY(group) if group[0].group else [])
    with pytest.raises(PluginError, match="other ids"):
        world.maker.sample(prompts, 0, lambda group: [dataclasses.replace(group[0], ids=[3])])
