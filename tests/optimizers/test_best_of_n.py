"""Best of n: what it gives is the best of what the engine under it drew; training with it is refused."""

import numpy as np
import pytest
import torch

from lmrl.config import build
from lmrl.engines import SamplingSpec, sample_batch
from lmrl.engines.local.engine import TransformersEngine
from lmrl.errors import SettingsError
from lmrl.models import load
from lmrl.plugins import PluginManager
from lmrl.rewards import resolve
from lmrl.stages.rl import RLConfig, rl
from lmrl.testing import write_tiny_model
from lmrl.text.card import response_texts
from lmrl_best_of_n import BestOfN, BestOfNSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_tiny_model(tmp_path_factory.mktemp("best") / "model"))


def engine_of(n):
    return BestOfN(BestOfNSettings(n=n, reward="pattern", settings={"pattern": "cat"}))


def generate(engine, model, prompts, seed=0):
    spec = SamplingSpec(max_new_tokens=6, eos_ids=(1,), context_length=48)
    return sample_batch(engine, model.model, prompts, spec, seed, model.card.codec)


def cats(model, prompts, samples):
    lengths = samples.inputs.action_counts.tolist()
    rows = [row[:length] for row, length in zip(samples.inputs.action_ids.tolist(), lengths, strict=True)]
    texts = response_texts(model.card.codec, prompts, rows, (1,))
    return np.array(["cat" in text for text in texts])


def test_the_best_of_what_was_drawn_is_given(model):
    prompts = [model.card.codec.encode(text) for text in ("the dog", "a", "home", "the dog sat")]
    n = 8
    drawn_for = [prompt for prompt in prompts for _ in range(n)]
    drawn = cats(model, drawn_for, generate(TransformersEngine(), model, drawn_for)).reshape(len(prompts), n)
    samples = generate(engine_of(n), model, prompts)
    assert cats(model, prompts, samples).tolist() == drawn.any(1).tolist()
    assert drawn.any() and not drawn.all()
    assert samples.inputs.context_lengths.tolist() == [len(prompt) for prompt in prompts]
    assert samples.action_mask.shape[0] == len(prompts) == len(samples.group.unique())


def test_a_draw_without_a_score_is_given_only_where_no_other_has_one(model):
    prompts = [model.card.codec.encode(text) for text in ("the dog", "a", "home", "the dog sat")]
    engine = engine_of(8)
    scored = cats(model, prompts, generate(engine, model, prompts))
    engine.reward = resolve(lambda prompts, responses: [-1.0 if "cat" in text else None for text in responses])
    assert cats(model, prompts, generate(engine, model, prompts)).tolist() == scored.tolist()


def test_one_of_one_is_the_engine_itself(model):
    prompts = [model.card.codec.encode("the dog")] * 3
    mine, plain = generate(engine_of(1), model, prompts), generate(TransformersEngine(), model, prompts)
    assert torch.equal(mine.inputs.action_ids, plain.inputs.action_ids)


def test_more_draws_are_better(model):
    prompts = [model.card.codec.encode("the dog")] * 40
    shares = [cats(model, prompts, generate(engine_of(n), model, prompts)).mean() for n in (1, 4, 16)]
    assert shares[0] < shares[1] < shares[2]


def test_it_is_found_and_refused_for_training(model, tmp_path):
    assert "best_of_n" in PluginManager().engines()
    table = {"n": 4, "reward": "happy_end"}
    config = {"run": {"folder": str(tmp_path / "run")}, "engine": {"name": "best_of_n", "best_of_n": table}}
    with pytest.raises(SettingsError, match="does not draw from the policy"):
        own = {
            "prompts": [f"the cat {n}" for n in range(80)],
            "reward": lambda prompts, responses: [0.0] * len(prompts),
        }
        rl(build(RLConfig, config | {"model": model.card.path}), progress=False, **own)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SettingsError, match="n is 0"):
        BestOfNSettings(n=0)
    with pytest.raises(SettingsError, match="itself"):
        BestOfNSettings(engine="best_of_n")


def test_the_best_by_a_reward_of_tokens_is_that_of_its_sum(model):
    prompts = [model.card.codec.encode(text) for text in ("the dog", "a")]
    engine, found = engine_of(8), []
    for reward in (
        lambda prompts, responses, response_ids: [float(sum(ids)) for ids in response_ids],
        lambda prompts, responses, response_ids: [[float(token) for token in ids] for ids in response_ids],
    ):
        engine.reward = resolve(reward)
        found.append(generate(engine, model, prompts).inputs.action_ids)
    assert torch.equal(*found)
