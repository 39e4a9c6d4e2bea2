"""Adapters in RL: one frozen backbone gives the policy, the reference, the critic and the weights that are sampled."""

import pytest
import torch
from safetensors.torch import load_file

from lmrl.algorithms.sequences import Sequences
from lmrl.engines import SamplingSpec
from lmrl.engines.batch import generate_all, requests_of
from lmrl.engines.local.engine import TransformersEngine
from lmrl.engines.local.llama_decoder import supports
from lmrl.engines.local.workers import ParallelEngine
from lmrl.engines.settings import TransformersEngineSettings
from lmrl.errors import ModelError
from lmrl.models import PolicyModel, load
from lmrl.models.adapted import CRITIC_ADAPTER, Adapter
from lmrl.models.adapters import AdapterSettings, add_adapter
from lmrl.models.layouts import LAYOUTS
from lmrl.models.policy import PolicyWeights
from lmrl.models.text_policy import make_reference, score_logprobs, score_values
from lmrl.testing import write_tiny_model

peft = pytest.importorskip("peft")
METHODS = ("lora", "rslora", "dora")
SPEC = SamplingSpec(max_new_tokens=6)
PROMPTS = [[3, 4, 5], [6], [3, 4, 5], [7, 8, 9, 2]]
INPUTS = Sequences.of_pairs(zip(PROMPTS, [[10, 11], [12, 3, 4], [5], [9, 9]], strict=True))


@pytest.fixture(params=["llama", "gpt2"])
def folder(request, tmp_path):
    return write_tiny_model(tmp_path / "model", architecture=request.param)


def policy_of(folder, method="lora", **wanted):
    torch.manual_seed(0)
    model = load(folder).model
    return PolicyModel(model, adapter=Adapter(model, AdapterSettings(method=method, rank=4)), **wanted)


def disturb(policy, seed=1):
    """Change everything that is trained, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def flags(policy):
    return {name: parameter.requires_grad for name, parameter in policy.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_adapter_off_is_the_base_and_on_is_the_merged_model(folder, method):
    base = load(folder).model
    expected = score_logprobs(PolicyModel(base), INPUTS, SPEC, 100)
    policy = policy_of(folder, method)
    reference, before = make_reference(policy), flags(policy)
    torch.testing.assert_close(score_logprobs(policy, INPUTS, SPEC, 100), expected, rtol=0, atol=1e-6)
    disturb(policy)
    on = score_logprobs(policy, INPUTS, SPEC, 100)
    assert (on - expected).abs().max() > 0.01
    with reference.module() as module:
        assert torch.equal(score_logprobs(module, INPUTS, SPEC, 100), expected)
    assert torch.equal(score_logprobs(policy, INPUTS, SPEC, 100), on)
    with policy.extracted() as merged:
        assert not any("lora" in name for name, _ in merged.named_modules())
        torch.testing.assert_close(score_logprobs(PolicyModel(merged), INPUTS, SPEC, 100), on, rtol=0, atol=5e-5)
    assert flags(policy) == before
    backbone = dict(policy.adapter.backbone())
    assert backbone.keys() == base.state_dict().keys()
    assert all(torch.equal(backbone[name], tensor) for name, tensor in base.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_packed_is_padded(folder, method):
    results = []
    for layout in LAYOUTS[:2]:
        policy = disturb(policy_of(folder, method, with_values=True, separate_critic=True))
        policy.layout = layout
        outputs = policy(INPUTS, need_values=True, temperature=1.0)
        (outputs.logprobs.square().sum() + outputs.values.square().sum()).backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        results.append((outputs.logprobs.detach(), outputs.values.detach(), gradient))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_critic_and_policy_train_their_own_adapter_through_one_forward(folder):
    policy = disturb(policy_of(folder, with_values=True, separate_critic=True))
    head, trunk = (group.parameters for group in policy.trainable()[1:])
    own = policy.policy_parameters()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    assert {id(one) for one in trained} == {id(one) for one in (*head, *trunk, *own)}
    assert len(trained) == len(head) + len(trunk) + len(own)
    for wanted, touched, silent in (("values", trunk, own), ("logprobs", own, trunk)):
        policy.zero_grad()
        outputs = policy(INPUTS, need_values=True, temperature=1.0)
        before = flags(policy)
        with make_reference(policy).module() as module:  # switched between a forward and its backward
            score_logprobs(module, INPUTS, SPEC, 100)
        with policy.extracted():
            assert flags(policy) == before
        getattr(outputs, wanted).square().sum().backward()
        assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in touched)
        assert all(one.grad is None or not one.grad.any() for one in silent)


def test_switching_between_forward_and_backward_changes_no_gradient(folder):
    gradients = []
    for switches in (False, True):
        policy = disturb(policy_of(folder, with_values=True, separate_critic=True))
        outputs = policy(INPUTS, need_values=True, temperature=1.0)
        if switches:
            with policy.adapter.off():
                policy(INPUTS, need_values=True)
            score_values(policy, INPUTS, 100)
        (outputs.logprobs.sum() + outputs.values.square().sum()).backward()
        gradients.append([one.grad.clone() for one in policy.parameters() if one.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def sampled(engine, weights, version):
    engine.publish(weights, version)
    return generate_all(engine, requests_of(PROMPTS * 2, SPEC, seed=5))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_engines_sample_from_the_merged_model_and_the_first_ratio_is_one(folder, fast, method):
    language_model = load(folder)
    policy = policy_of(folder, method)
    engine = TransformersEngine(TransformersEngineSettings(fast_path=fast))
    weights = PolicyWeights(policy, language_model.card)
    with weights.module() as module:
        assert supports(module) == (type(module).__name__ == "LlamaForCausalLM")
    first = sampled(engine, weights, 0)
    disturb(policy)
    second = sampled(engine, weights, 1)
    assert [one.ids for one in first] != [one.ids for one in second], "the new weights are used"
    inputs = Sequences.of_pairs([(one.request.ids, one.ids) for one in second])
    ratio = (
        score_logprobs(policy, inputs, SPEC, 100)[inputs.action_mask()]
        - torch.tensor([logprob for one in second for logprob in one.logprobs])
    ).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-4)


def test_processes_sample_what_one_process_does_after_every_update(tmp_path):
    folder = write_tiny_model(tmp_path / "model")
    policy, card = policy_of(folder), load(folder).card
    weights = PolicyWeights(policy, card)
    alone, several = TransformersEngine(), ParallelEngine(TransformersEngineSettings(workers=2, rows=6))
    before = {name: tensor.clone() for name, tensor in policy.adapter.backbone()}
    try:
        for version in range(3):
            expected, found = (sampled(engine, weights, version) for engine in (alone, several))
            assert [one.ids for one in found] == [one.ids for one in expected]
            disturb(policy, version)
    finally:
        several.close()
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.adapter.backbone())


def test_tensors_and_a_folder_are_the_merged_model(folder, tmp_path):
    language_model, policy = load(folder), disturb(policy_of(folder))
    weights = PolicyWeights(policy, language_model.card)
    tensors = {name: tensor.clone() for name, tensor in weights.tensors()}
    weights.write(tmp_path / "merged")
    found = load(tmp_path / "merged").model
    expected = score_logprobs(policy, INPUTS, SPEC, 100)
    torch.testing.assert_close(score_logprobs(PolicyModel(found), INPUTS, SPEC, 100), expected, rtol=0, atol=5e-5)
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(tensors[name], parameter, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_holds_adapter_and_heads_and_not_the_backbone(folder, tmp_path, method):
    policy = disturb(policy_of(folder, method, with_values=True, separate_critic=True))
    policy.save(tmp_path / "saved", folder)
    saved = sum(len(load_file(file)) for file in (tmp_path / "saved").rglob("*.safetensors"))
    assert saved == len([one for one in policy.parameters() if one.requires_grad])
    again = policy_of(folder, method, with_values=True, separate_critic=True)
    again.adapter.load(tmp_path / "saved")
    assert again.load_value_head(tmp_path / "saved")
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in policy.state_dict().items())

    expected = score_logprobs(policy, INPUTS, SPEC, 100)
    read = peft.PeftModel.from_pretrained(load(folder).model, tmp_path / "saved").get_base_model().eval()
    torch.testing.assert_close(score_logprobs(PolicyModel(read), INPUTS, SPEC, 100), expected, rtol=0, atol=1e-6)
    merged = load(tmp_path / "saved").model  # what chat, eval and a reward read
    torch.testing.assert_close(score_logprobs(PolicyModel(merged), INPUTS, SPEC, 100), expected, rtol=0, atol=5e-5)


def test_a_checkpoint_names_the_tokens_that_end_a_response(folder, tmp_path):
    policy = policy_of(folder)
    policy.model.generation_config.eos_token_id = [1, 7]
    policy.save(tmp_path / "saved", folder)
    assert load(tmp_path / "saved").card.eos_ids == (1, 7)


def test_what_does_not_fit(folder, tmp_path):
    policy = policy_of(folder, with_values=True, separate_critic=True)
    policy.save(tmp_path / "saved", folder)
    with pytest.raises(ModelError, match=r"adapter of .* does not fit: .* expected .*adapter\.\* settings"):
        Adapter(load(folder).model, AdapterSettings(method="lora", rank=3)).load(tmp_path / "saved")
    shared = policy_of(folder, with_values=True)
    shared.save(tmp_path / "shared", folder)
    assert not policy.load_value_head(tmp_path / "shared"), f"there is no {CRITIC_ADAPTER}"
    with pytest.raises(ModelError, match="is frozen, and a critic cannot share a frozen trunk"):
        PolicyModel(load(folder).model.requires_grad_(False), with_values=True)


def test_a_tied_output_layer_gets_no_adapter(tmp_path):
    model = load(write_tiny_model(tmp_path / "model", architecture="gpt2")).model
    assert model.config.tie_word_embeddings
    with pytest.raises(ModelError, match="names lm_head, whose table is both the input and the output embedding"):
        Adapter(model, AdapterSettings(method="lora", target_modules=["c_attn", "lm_head"]))


def test_an_adapter_for_another_base_of_the_same_shape_is_refused(folder, tmp_path):
    policy = policy_of(folder)
    policy.save(tmp_path / "saved", folder)
    other = load(folder).model
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.1)
    other.save_pretrained(folder)
    with pytest.raises(ModelError, match="belongs to another base model than the one that is loaded"):
        load(tmp_path / "saved")
    with pytest.raises(ModelError, match="belongs to another base model than the one that is loaded"):
        policy_of(folder).adapter.load(tmp_path / "saved")
    (tmp_path / "saved" / "backbone.json").unlink()  # an adapter of another trainer
    load(tmp_path / "saved")


def test_the_digest_of_a_half_precision_base_is_that_of_its_float32_copy(tmp_path):
    folder = write_tiny_model(tmp_path / "model")
    model = load(folder).model
    model.to(torch.bfloat16).save_pretrained(folder)
    policy = policy_of(folder)  # in float32, as training loads it
    policy.save(tmp_path / "saved", folder)
    assert load(tmp_path / "saved", dtype=torch.bfloat16).model.dtype == torch.bfloat16
    assert load(tmp_path / "saved").model.dtype == torch.float32


@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_the_layer_in_one_operation_is_that_of_peft(folder, method):
    """Outputs and gradients, in the precision of the backbone and in bfloat16 autocast."""
    settings = AdapterSettings(method=method, rank=4)
    for precision, tolerance in ((None, 1e-5), (torch.bfloat16, 0.2)):
        results = []
        for fused in (True, False):
            torch.manual_seed(0)
            model = load(folder).model
            adapter = Adapter(model, settings) if fused else None
            if adapter is None:
                add_adapter(model, settings)
            disturb(model)
            with torch.autocast("cpu", precision, enabled=precision is not None):
                outputs = PolicyModel(model, adapter=adapter)(INPUTS, temperature=1.0)
            outputs.logprobs.square().sum().backward()
            gradients = [one.grad.flatten() for one in model.parameters() if one.grad is not None]
            results.append((outputs.logprobs.detach(), torch.cat(gradients)))
        for one, other in zip(*results, strict=True):
            assert (one - other).norm() <= tolerance * other.norm()
