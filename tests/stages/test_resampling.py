"""Dynamic sampling: what stays the same whatever is sampled anew, how often, over ranks and after a resume."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lmrl.algorithms import ops
from lmrl.algorithms.optimizer import OptimizerSettings, PolicyOptimizer
from lmrl.algorithms.sequences import join_records
from lmrl.config import build
from lmrl.engines import SamplingSpec
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl
from lmrl.stages.rl.resampling import resample
from lmrl.stages.rl.rollouts import PromptBatch
from lmrl.training.checkpoint import list_checkpoints

TEXTS = ["the cat", "a", "the dog sat home", "a cat ran", "home", "far ."]


class Differing(PolicyOptimizer):
    """Learns only from groups with two different scores."""

    def informative(self, scores, group):
        return ops.group_spread(scores, group) > 0


def rarely(prompts, responses, columns):
    """1 for few answers, so that most groups say nothing."""
    scores = np.array([float("cat cat" in response) for response in responses])
    return SimpleNamespace(scores=scores, parts={"doubled": 2 * scores})


def never(prompts, responses, columns):
    return SimpleNamespace(scores=np.zeros(len(responses)), parts={})


class World:
    """A toy policy, and prompts to sample anew, of which it counts the rounds."""

    def __init__(self, world, group_size=4):
        self.world, self.group_size, self.rounds = world, group_size, []

    def batch(self, choices):
        texts = [TEXTS[choice] for choice in choices for _ in range(self.group_size)]
        ids = [self.world.language_model.card.codec.encode(text) for text in texts]
        groups = [place for place, _ in enumerate(choices) for _ in range(self.group_size)]
        return PromptBatch(ids, texts, {"choice": [c for c in choices for _ in range(self.group_size)]}, groups)

    def more(self, number, groups):
        self.rounds.append((number, len(groups)))
        batch = self.batch([(7 * number + place) % len(TEXTS) for place, _ in enumerate(groups)])
        return replace(batch, groups=[group for group in groups for _ in range(self.group_size)])

    def resample(self, rounds=3, choices=(0, 1, 2, 3, 4, 5), seed=0, optimizer=None):
        prompts = self.batch(choices)
        self.before = self.world.maker.sample(prompts, seed)
        return resample(
            self.world.maker,
            optimizer or Differing(OptimizerSettings()),
            self.before,
            prompts,
            self.more,
            lambda number: 1000 * seed + number + 1,
            rounds,
            self.world.accelerator,
        )


def spread_groups(scored):
    return (ops.group_spread(scored.scores, scored.samples.group) > 0).reshape(6, 4).all(1)


@pytest.mark.parametrize("seed", range(3))
def test_rows_stay_as_many_and_their_columns_belong_together(toy, seed):
    world = World(toy(reward=rarely))
    scored, prompts, lacking = world.resample(seed=seed)
    samples, before = scored.samples, world.before
    assert not spread_groups(before).all(), "there was something to replace"
    assert len(scored.scores) == len(prompts.ids) == len(prompts.texts) == len(prompts.columns["choice"]) == 24
    assert samples.group.tolist() == prompts.groups == [group for group in range(6) for _ in range(4)], "dense, whole"
    assert lacking == int((~spread_groups(scored)).sum())
    assert spread_groups(scored).sum() > spread_groups(before).sum()
    codec = world.world.language_model.card.codec
    for row, (text, choice) in enumerate(zip(prompts.texts, prompts.columns["choice"], strict=True)):
        assert scored.prompts[row] == text == TEXTS[choice]
        assert codec.encode(text) == prompts.ids[row]
        assert samples.inputs.ids[row, : samples.inputs.context_lengths[row]].tolist() == prompts.ids[row]
    again = rarely(prompts.texts, scored.responses, {}).scores
    assert scored.scores.tolist() == again.tolist() and scored.score_parts["doubled"].tolist() == (2 * again).tolist()
    assert torch.equal(scored.rewards.sum(1), scored.scores) and scored.rewards.shape == samples.action_mask.shape
    reference = world.world.maker.reference_logprobs(samples)
    assert torch.allclose(reference, samples.sampler_logprobs, atol=1e-4), "ids and log-probabilities of one row"
    assert torch.equal(samples.action_mask.sum(1), samples.inputs.action_counts)
    assert not samples.inputs.action_ids[~samples.action_mask].any()


def test_informative_groups_stay_where_they_are(toy):
    world = World(toy(reward=rarely))
    scored, _, _ = world.resample()
    kept = spread_groups(world.before)
    width = world.before.samples.inputs.action_ids.shape[1]
    for group in kept.nonzero().flatten().tolist():
        rows = slice(4 * group, 4 * group + 4)
        found, expected = (s.samples.inputs.action_ids[rows] for s in (scored, world.before))
        assert torch.equal(found[:, :width], expected[:, : found.shape[1]])


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_rounds_are_bounded_and_what_is_left_is_kept(toy, rounds):
    world = World(toy(reward=never))
    scored, _, lacking = world.resample(rounds)
    assert world.rounds == [(number, 6) for number in range(rounds)] and lacking == 6
    assert scored.responses == world.before.responses


def test_nothing_is_sampled_where_nothing_lacks(toy):
    class Content(PolicyOptimizer):
        def informative(self, scores, group):
            return torch.ones_like(group, dtype=torch.bool)

    world = World(toy(reward=rarely))
    scored, _, lacking = world.resample(optimizer=Content(OptimizerSettings()))
    assert world.rounds == [] and lacking == 0 and scored is world.before


def test_it_stops_as_soon_as_enough_are_found(toy):
    world = World(toy(reward=rarely))
    world.resample(rounds=50)
    counts = [count for _, count in world.rounds]
    assert len(counts) < 50 and counts == sorted(counts, reverse=True), "each round asks for what is still lacking"


def test_withheld_scores_have_no_say(toy):
    """A truncated row's score stands as 0: it must not make a group of equal scores look different."""
    spec = SamplingSpec(max_new_tokens=3, eos_ids=(1,), context_length=48, on_length="truncate")

    def ones(prompts, responses, columns):
        return SimpleNamespace(scores=np.ones(len(responses)), parts={"all": np.ones(len(responses))})

    world = World(toy(reward=ones, spec=spec))
    seen = []

    class Watching(Differing):
        def informative(self, scores, group):
            seen.append(scores)
            return super().informative(scores, group)

    scored, _, lacking = world.resample(seed=4, optimizer=Watching(OptimizerSettings()))
    assert world.before.samples.truncated.any() and not world.before.samples.truncated.all()
    assert lacking == 6 and all(bool((scores == 1).all()) for scores in seen)
    assert scored.responses == world.before.responses


def words(prompts, responses, columns):
    scores = np.array([float(len(response.split())) for response in responses])
    return SimpleNamespace(scores=scores, parts={"doubled": 2 * scores})


def test_where_everything_was_truncated_no_terms_of_the_reward_are_known(toy):
    ends = SamplingSpec(max_new_tokens=12, eos_ids=(1,), context_length=48, on_length="truncate")
    world = World(toy(reward=words, spec=SamplingSpec(max_new_tokens=2, forbidden_ids=(1,), on_length="truncate")))
    maker, prompts = world.world.maker, world.batch([0, 1, 2])
    before = maker.sample(prompts, 0)
    assert before.score_parts == {} and before.samples.truncated.all()
    maker.spec = ends
    optimizer, accelerator = Differing(OptimizerSettings()), world.world.accelerator
    scored, _, lacking = resample(maker, optimizer, before, prompts, world.more, lambda number: number, 9, accelerator)
    assert lacking < 3, "some were found"
    doubled = (2 * scored.scores).masked_fill(scored.samples.truncated, torch.nan)
    assert torch.allclose(scored.score_parts["doubled"], doubled, equal_nan=True)


def test_joined_records_are_padded_on_the_right(toy):
    world = World(toy(reward=rarely))
    narrow = world.world.maker.sample(world.batch([1]), 0)
    wide = world.world.maker.sample(world.batch([2]), 5)
    joined = join_records([narrow, wide])
    assert narrow.samples.inputs.ids.shape[1] < wide.samples.inputs.ids.shape[1]
    for part, rows in ((narrow, slice(0, 4)), (wide, slice(4, 8))):
        for of, name in (("inputs", "ids"), ("inputs", "sampled"), (None, "sampler_logprobs")):
            whole, own = (getattr(s.inputs if of else s, name) for s in (joined.samples, part.samples))
            assert torch.equal(whole[rows, : own.shape[1]], own) and not whole[rows, own.shape[1] :].any()
    assert joined.samples.action_mask.dtype == torch.bool
    assert joined.responses == narrow.responses + wide.responses
    assert torch.equal(joined.samples.action_mask.sum(1), joined.samples.inputs.action_counts)


def likes_pairs(prompts, responses):
    return [float("cat" in response) for response in responses]


def config_of(model, folder, optimizer=None, train=None):
    return build(
        RLConfig,
        {
            "model": str(model),
            "run": {"folder": str(folder), "device": "cpu"},
            "sampling": {"max_new_tokens": 3},
            "train": {"updates": 4, "prompts_per_update": 4, "group_size": 2, "learning_rate": 0.01, **(train or {})},
            "optimizer": {"name": "grpo", "grpo": {"dynamic_sampling": True, **(optimizer or {})}},
            "evaluation": {"prompts": 0},
            "checkpoint": {"every": 1, "keep": 10},
        },
    )


def run(config, reward=likes_pairs, **kwargs):
    return rl(config, reward=reward, prompts=TEXTS, progress=False, **kwargs)


def metrics_of(folder):
    return [{k: v for k, v in record.items() if not k.startswith("time/")} for record in read_metrics(folder)]


def test_a_run_says_how_many_groups_stayed_uninformative_and_resumes_bit_for_bit(tiny_folder, tmp_path):
    config = config_of(tiny_folder, tmp_path / "run")
    run(config)
    whole = metrics_of(tmp_path / "run")
    lacking = [record["rollout/uninformative_groups"] for record in whole[1:]]
    assert all(0 <= count <= 4 for count in lacking) and min(lacking) < 4
    for checkpoint in list_checkpoints(tmp_path / "run")[2:]:
        shutil.rmtree(checkpoint)
    run(config, resume=True)
    assert metrics_of(tmp_path / "run") == whole


def test_more_rounds_leave_fewer_uninformative_groups_and_batches_stay_as_large(tiny_folder, tmp_path):
    means, asked = [], []
    for resamples in (0, 6):
        calls = []

        def reward(prompts, responses, calls=calls):
            calls.append(len(prompts))
            return likes_pairs(prompts, responses)

        folder = tmp_path / str(resamples)
        run(config_of(tiny_folder, folder, train={"resamples": resamples, "learning_rate": 0.0}), reward)
        records = read_metrics(folder)[1:]
        means.append(sum(record["rollout/uninformative_groups"] for record in records))
        asked.append(len(calls))
    assert asked[0] == 4 and 4 < asked[1] <= 4 * 7
    assert means[1] < means[0]


def test_without_the_setting_nothing_is_asked(tiny_folder, tmp_path):
    run(config_of(tiny_folder, tmp_path / "run", {"dynamic_sampling": False}))
    assert all("rollout/uninformative_groups" not in record for record in read_metrics(tmp_path / "run"))


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from accelerate import Accelerator
from conftest import Toy
from test_resampling import *
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index

def reward(prompts, responses, columns):
    # On one rank every group differs at once; on the other none does before its third round.
    calls.append(len(responses))
    late = rank == 1 and len(calls) < 4
    scores = np.zeros(len(responses)) if late else np.arange(len(responses)) % 4.0
    return SimpleNamespace(scores=scores, parts={})

calls = []
world = World(Toy(Path(sys.argv[2]), reward=reward))
scored, prompts, lacking = world.resample(rounds=5)
differing = int(spread_groups(scored).sum())
found = accelerator.gather(torch.tensor([[len(scored.scores), len(world.rounds), lacking, differing, sum(calls)]]))
same = torch.equal(scored.scores, world.before.scores)
kept = accelerator.gather(torch.tensor([same]))
if accelerator.is_main_process:
    print("RESULT" + json.dumps({"found": found.tolist(), "kept": kept.tolist()}))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_a_rank_that_lacks_nothing_waits_for_the_one_that_does(tiny_folder, tmp_path):
    path = Path(__file__).with_name("test_ranks.py")
    spec = importlib.util.spec_from_file_location("stages_test_ranks", path)
    ranks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ranks)
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT)
    result = ranks.run_ranks(2, script, [str(Path(__file__).parent), str(tiny_folder)])
    assert result["found"] == [[24, 0, 0, 6, 24], [24, 3, 0, 6, 24 * 4]], "each draws for its own groups alone"
    assert result["kept"] == [True, False]
