"""The replay property: a sampled rollout, played through the environment action by action, is the same episode.

The fast path never steps the environment; this test is what ties the two together.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch

import lmrl  # noqa: F401 (registers TextGen-v0)
from lmrl.algorithms.kl import KLSettings
from lmrl.engines import FinishReason, SamplingSpec
from lmrl.engines.local.engine import TransformersEngine
from lmrl.models import PolicyModel, load
from lmrl.models.text_policy import FrozenReference
from lmrl.plugins.specs import Needs
from lmrl.rewards import resolve
from lmrl.stages.rl.rollouts import PromptBatch, RolloutMaker

PROMPTS = [
    {"prompt": "the cat", "wanted": "home"},
    {"prompt": "a", "wanted": "cat"},
    {"prompt": "the dog sat home", "wanted": "dog"},
]
ROWS, BETA = 18, 0.2


def counts_wanted(prompts, responses, wanted):
    return [
        r.count(w) - 0.1 * len(r.split()) + 0.01 * len(p) for p, r, w in zip(prompts, responses, wanted, strict=True)
    ]


OPTIONS = [
    {},
    {"temperature": 0.7},
    {"forbidden_ids": (4, 2)},
    {"on_length": "truncate"},
    {"stop_strings": ("cat", "sat home")},
    {"max_new_tokens": 40},
]


def sample(folder, options):
    """Return a policy's rollout on the toy model, whose reference is another model than itself."""
    language_model = load(folder)
    card = language_model.card
    spec = SamplingSpec(
        **({"max_new_tokens": 7, "eos_ids": card.eos_ids, "context_length": card.context_length} | options)
    )
    reference = FrozenReference(language_model.model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in language_model.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    kl = KLSettings(beta=BETA)
    maker = RolloutMaker(
        TransformersEngine(),
        PolicyModel(language_model.model),
        reference,
        resolve(counts_wanted),
        card,
        spec,
        kl,
        Needs(),
        40,
    )
    rows = [PROMPTS[i % len(PROMPTS)] for i in range(ROWS)]
    prompts = PromptBatch(
        [card.codec.encode(row["prompt"]) for row in rows],
        [row["prompt"] for row in rows],
        {"wanted": [row["wanted"] for row in rows]},
        list(range(ROWS)),
    )
    maker.publish(0)
    scored = maker.sample(prompts, seed=3)
    reference_logprobs = maker.reference_logprobs(scored.samples)
    return scored, reference_logprobs, maker.complete(scored, reference_logprobs, BETA), spec


def environment_keywords(folder, spec, beta):
    return {
        "model": str(folder),
        "prompts": PROMPTS,
        "reward": counts_wanted,
        "beta": beta,
        "temperature": spec.temperature,
        "max_new_tokens": spec.max_new_tokens,
        "on_length": spec.on_length,
        "stop_strings": spec.stop_strings,
        "forbidden_tokens": spec.forbidden_ids,
    }


def check_end(info, scored, row):
    samples = scored.samples
    assert info["finish_reason"] == FinishReason(int(samples.finish_reasons[row])).label
    assert info["text"] == scored.responses[row]
    assert info["new_tokens"] == samples.inputs.action_counts[row]
    if samples.terminated[row]:
        assert info["score"] == pytest.approx(float(scored.scores[row]), abs=1e-6)
    else:
        assert "score" not in info


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("beta", [BETA, 0.0])
def test_single(tiny_folder, options, beta):
    scored, reference_logprobs, rollout, spec = sample(tiny_folder, options)
    env = gym.make("lmrl:TextGen-v0", **environment_keywords(tiny_folder, spec, beta))
    reasons = set()
    for row in range(ROWS):
        env.reset(seed=row, options={"prompt_index": row % len(PROMPTS)})
        length = int(scored.samples.inputs.action_counts[row])
        for t in range(length):
            logprob = float(rollout.sampler_logprobs[row, t])
            env.unwrapped.set_action_logprob(logprob)
            _, reward, terminated, truncated, info = env.step(int(scored.samples.inputs.action_ids[row, t]))
            reference = float(reference_logprobs[row, t])
            assert info["ref_logprob"] == pytest.approx(reference, abs=2e-5)
            last = t == length - 1
            expected = float(rollout.rewards[row, t])
            if beta == 0:
                expected += BETA * (logprob - reference)
            assert reward == pytest.approx(expected, abs=2e-5)
            assert terminated == (last and bool(scored.samples.terminated[row]))
            assert truncated == (last and bool(scored.samples.truncated[row]))
        check_end(info, scored, row)
        reasons.add(info["finish_reason"])
    assert len(reasons) > 1 or options == {"max_new_tokens": 40}, "the case should end in more than one way"
    env.close()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_vector(tiny_folder, options):
    """All rows at once; rows that ended are reset and play on with pad tokens, which nobody looks at."""
    scored, reference_logprobs, rollout, spec = sample(tiny_folder, options)
    envs = gym.make_vec("lmrl:TextGen-v0", num_envs=ROWS, **environment_keywords(tiny_folder, spec, BETA))
    envs.reset(seed=0, options={"prompt_index": [row % len(PROMPTS) for row in range(ROWS)]})
    ids = scored.samples.inputs.action_ids.numpy()
    lengths = scored.samples.inputs.action_counts.numpy()
    open_rows = np.ones(ROWS, dtype=bool)
    for t in range(ids.shape[1]):
        envs.set_action_logprob(rollout.sampler_logprobs[:, t].double().numpy())
        _, rewards, terminated, truncated, infos = envs.step(ids[:, t])
        ending = open_rows & (lengths == t + 1)
        np.testing.assert_allclose(rewards[open_rows], rollout.rewards[:, t].numpy()[open_rows], atol=2e-5)
        np.testing.assert_allclose(
            infos["ref_logprob"][open_rows], reference_logprobs[:, t].numpy()[open_rows], atol=2e-5
        )
        np.testing.assert_array_equal(terminated[ending], scored.samples.terminated.numpy()[ending])
        np.testing.assert_array_equal(truncated[ending], scored.samples.truncated.numpy()[ending])
        assert not (terminated | truncated)[open_rows & ~ending].any()
        for row in np.flatnonzero(ending):
            info = {name: infos[name][row] for name in infos if infos.get(f"_{name}", ending)[row]}
            check_end(info, scored, row)
        open_rows &= ~ending
        if not open_rows.any():
            break
    envs.close()
