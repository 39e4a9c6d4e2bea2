"""The mask policy: the sets that sampling keeps to are those of the evaluation, cached or not, alone or in a batch."""

from dataclasses import replace

import pytest
import torch

from lmrl.algorithms.rollout import Advantages, Batch, Rollout
from lmrl.engines import SamplingSpec, sample_batch
from lmrl.engines.local.engine import TransformersEngine, TransformersEngineSettings
from lmrl.errors import ResumeError
from lmrl.models import PolicyModel, load
from lmrl.models.processors import load_processor, save_processor
from lmrl.models.text_policy import TextPolicy, score_logprobs
from lmrl.testing import write_tiny_model
from lmrl_nlpo.mask import MaskPolicy, RestrictedModel

PROMPTS = [[3, 5], [3], [4, 6, 7, 8], [3, 5], [9], [3, 5], [6, 6], [4]]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp(request.param), architecture=request.param)


def world(folder, top_p=0.7, **options):
    """A policy that has moved away from its mask policy, and how it samples."""
    model = load(folder)
    spec = SamplingSpec(**({"max_new_tokens": 10, "eos_ids": model.card.eos_ids, "context_length": 40} | options))
    mask = MaskPolicy(model.model, spec, top_p, update_every=2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.model, spec, mask


def sampled(model, spec, mask, prompts=PROMPTS, seed=3, rows=256):
    return sample_batch(
        TransformersEngine(TransformersEngineSettings(rows=rows)), mask.restrict(model), prompts, spec, seed
    )


def batch_of(samples):
    flat = 0 * samples.sampler_logprobs
    rollout = Rollout(
        samples.inputs,
        samples.action_mask,
        samples.sampler_logprobs,
        flat,
        flat.sum(1),
        samples.terminated,
        samples.truncated,
        samples.group,
    )
    return Batch.from_rollout(rollout, Advantages(flat))


def evaluated(model, spec, mask, samples):
    return TextPolicy(PolicyModel(model), spec, False, support=mask.support).evaluate(batch_of(samples))


def test_sets_by_hand(folder):
    _, _, mask = world(folder, top_p=0.7, forbidden_ids=(4,))
    probabilities = torch.full((15,), 1e-6)
    probabilities[[3, 4, 5, 6]] = torch.tensor([0.5, 0.9, 0.3, 0.2])  # 4 is forbidden; 1 ends a response
    kept = mask.sets(probabilities.log()[None])
    assert kept.nonzero()[:, 1].tolist() == [1, 3, 5], "0.5 falls short of 0.7, with 0.3 more it is reached"


def test_a_forbidden_end_stays_forbidden(folder):
    _, _, mask = world(folder, forbidden_ids=(1,))
    assert not mask.sets(torch.zeros(2, 15))[:, 1].any()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"temperature": 1.4, "forbidden_ids": (5,)}], ids=str)
def test_every_sampled_token_lies_in_its_set_and_is_as_likely_as_within_it(folder, options):
    model, spec, mask = world(folder, **options)
    samples = sampled(model, spec, mask, PROMPTS * 4)
    inputs = samples.inputs
    for row in range(len(inputs.context_lengths)):
        ids = inputs.ids[row, : inputs.context_lengths[row]].tolist()
        for step, token in enumerate(inputs.action_ids[row, : inputs.action_counts[row]].tolist()):
            with torch.no_grad():
                kept = mask.sets(mask.policy.model(torch.tensor([ids])).logits[0, -1])
                logits = model(torch.tensor([ids])).logits[0, -1].masked_fill(~kept, -torch.inf)
            assert kept[token], "never forced in: it was drawn from the set"
            expected = spec.log_distribution(logits)[token]
            assert float(samples.sampler_logprobs[row, step]) == pytest.approx(float(expected), abs=1e-4)
            ids.append(token)


def test_evaluation_is_restricted_to_the_same_sets(folder):
    model, spec, mask = world(folder)
    samples = sampled(model, spec, mask, PROMPTS * 4)
    now = evaluated(model, spec, mask, samples)
    assert torch.allclose(now.logprobs, samples.sampler_logprobs, atol=1e-4), "the first ratio is 1"
    kept = now.log_distributions > -torch.inf
    assert torch.equal(kept, mask.support(samples.inputs))
    assert 1 < kept.sum(1).float().mean() < kept.shape[1] - 1
    assert torch.allclose(now.log_distributions.exp().sum(1), torch.ones(len(kept)))
    full = TextPolicy(PolicyModel(model), spec, False).evaluate(batch_of(samples))
    assert float((now.logprobs - full.logprobs).detach().max()) > 0.05, "more likely than in the whole vocabulary"
    assert torch.isfinite(now.entropy).all()
    (now.logprobs.sum() + now.entropy.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_cached_sets_are_the_teacher_forced_ones(folder, monkeypatch):
    model, spec, mask = world(folder)
    steps, decode = [], RestrictedModel.__call__

    def watched(self, **inputs):
        output = decode(self, **inputs)
        steps.append(output.logits[:, -1] > -torch.inf)
        return output

    monkeypatch.setattr(RestrictedModel, "__call__", watched)
    samples = sampled(model, spec, mask, PROMPTS[:1])
    kept = mask.support(samples.inputs)
    assert torch.equal(torch.cat(steps)[: len(kept)], kept)


def test_a_row_alone_is_the_row_of_a_batch(folder):
    model, spec, mask = world(folder)
    alone, together = sampled(model, spec, mask, PROMPTS[:1]), sampled(model, spec, mask)
    length = int(alone.inputs.action_counts[0])
    assert int(together.inputs.action_counts[0]) == length
    assert torch.equal(alone.inputs.action_ids[0], together.inputs.action_ids[0, :length])
    assert torch.allclose(alone.sampler_logprobs[0], together.sampler_logprobs[0, :length], atol=1e-4)
    pieces = sampled(model, spec, mask, rows=2)
    assert torch.equal(pieces.inputs.action_ids, together.inputs.action_ids)
    for row in range(len(PROMPTS)):
        part = mask.support(together.inputs.select(torch.tensor([row])))
        before = int(together.inputs.action_counts[:row].sum())
        assert torch.equal(part, mask.support(together.inputs)[before : before + len(part)])


def test_greedy_is_the_likeliest_token_of_the_set_not_of_the_mask_policy(folder):
    """The sets keep the temperature of training: greedy decoding does not shrink them to the mask's own choice."""
    model, spec, mask = world(folder)
    samples = sampled(model, replace(spec, temperature=0.0), mask)
    now = evaluated(model, spec, mask, samples)
    assert torch.allclose(now.logprobs[samples.action_mask], now.log_distributions.max(1).values)
    own = TextPolicy(mask.policy, spec, False).evaluate(batch_of(samples))
    assert (own.log_distributions.argmax(1) != now.log_distributions.argmax(1)).any()


def test_the_whole_vocabulary_is_no_restriction(folder):
    model, spec, mask = world(folder, top_p=1.0)
    free = sample_batch(TransformersEngine(), model, PROMPTS, spec, 3)
    restricted = sampled(model, spec, mask)
    assert torch.equal(free.inputs.action_ids, restricted.inputs.action_ids)
    assert torch.allclose(free.sampler_logprobs, restricted.sampler_logprobs, atol=1e-5)


def test_the_reference_keeps_its_support(folder):
    model, spec, mask = world(folder)
    samples = sampled(model, spec, mask)
    scored = score_logprobs(PolicyModel(model), samples.inputs, spec, 100)
    full = TextPolicy(PolicyModel(model), spec, False).evaluate(batch_of(samples)).logprobs
    assert torch.allclose(scored, full, atol=1e-5)


def test_a_refreshed_mask_is_the_policy_and_is_written_and_read(folder, tmp_path):
    model, spec, mask = world(folder)
    samples = sampled(model, spec, mask)
    before = mask.support(samples.inputs)
    save_processor(mask, tmp_path)
    mask.after_update(3, model)
    assert torch.equal(mask.support(samples.inputs), before), "its time has not come"
    mask.after_update(4, model)
    after = mask.support(samples.inputs)
    assert not torch.equal(before, after)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert torch.equal(mask.support(samples.inputs), after), "a copy, not the policy itself"
    load_processor(mask, tmp_path)
    assert torch.equal(mask.support(samples.inputs), before)
    with pytest.raises(ResumeError, match="mask_policy"):
        load_processor(mask, tmp_path / "elsewhere")
