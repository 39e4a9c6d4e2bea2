"""The frozen reference: cached equals re-encoded, and it stays what it was."""

import copy
import pickle

import numpy as np
import pytest
import torch

from lmrl.envs.reference import FrozenModel, Reference, reference_of
from lmrl.envs.reference_scorers import CachedScorer, ReencodingScorer, make_scorer
from lmrl.errors import NonFiniteError
from lmrl.models import LanguageModel, load
from lmrl.testing import write_tiny_model


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def path(request, tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("reference") / request.param, architecture=request.param))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_cached_equals_reencoded(path, temperature):
    """Rows at different positions, rows that sit out, rows that start again, and a step that is asked twice."""
    rows, length, vocabulary = 5, 20, 15
    frozen = FrozenModel(path)
    cached, plain = make_scorer(frozen, temperature, rows, length), ReencodingScorer(frozen, temperature)
    assert isinstance(cached, CachedScorer)
    generator = np.random.default_rng(0)
    tokens, lengths = np.zeros((rows, length), dtype=np.int64), np.zeros(rows, dtype=np.int64)

    def begin(row):
        lengths[row] = generator.integers(1, 8)
        tokens[row] = 0
        tokens[row, : lengths[row]] = generator.integers(0, vocabulary, lengths[row])
        cached.begin(row)

    for row in range(rows):
        begin(row)
    for _ in range(80):
        active = generator.random(rows) < 0.8
        active[generator.integers(rows)] = True
        actions = generator.integers(0, vocabulary, rows)
        expected = plain.logprobs(tokens, lengths, actions, active)[active]
        np.testing.assert_allclose(cached.logprobs(tokens, lengths, actions, active)[active], expected, atol=1e-5)
        if generator.random() < 0.2:
            np.testing.assert_allclose(cached.logprobs(tokens, lengths, actions, active)[active], expected, atol=1e-5)
        tokens[active, lengths[active]] = actions[active]
        lengths[active] += 1
        for row in range(rows):
            if lengths[row] >= length or not active[row] or generator.random() < 0.1:
                begin(row)


def test_logprobs_are_those_of_the_model(path, model_path, make):
    env = make(model=path, temperature=0.7)
    observation, _ = env.reset(options={"prompt_index": 1})
    model = load(path).model
    for action in (5, 0, 7):
        ids = torch.tensor([observation["input_ids"][observation["attention_mask"] == 1].tolist()])
        with torch.no_grad():
            expected = (model(ids).logits[0, -1] / 0.7).log_softmax(-1)[action]
        observation, *_, info = env.step(action)
        assert info["ref_logprob"] == pytest.approx(float(expected), abs=1e-5)


def test_forbidden_tokens_do_not_change_it(make):
    logprobs = []
    for forbidden in ([], [4, 6]):
        env = make(forbidden_tokens=forbidden)
        env.reset(options={"prompt_index": 0})
        logprobs.append(env.step(5)[4]["ref_logprob"])
    assert logprobs[0] == logprobs[1]


def test_a_sliding_window_is_reencoded(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    folder = write_tiny_model(tmp_path / "model")
    config = MistralConfig(
        vocab_size=15, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=48, sliding_window=4, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)
    assert isinstance(make_scorer(FrozenModel(str(folder)), 1.0, 2, 20), ReencodingScorer)


def test_a_model_whose_cache_is_of_another_kind_is_reencoded(path, monkeypatch):
    monkeypatch.setattr(CachedScorer, "logprobs", lambda self, *arguments: np.zeros(2))
    assert isinstance(make_scorer(FrozenModel(path), 1.0, 2, 20), ReencodingScorer)


def test_environments_share_the_weights_of_a_folder(make):
    first, second = make(), make()
    for env in (first, second):
        env.reset()
        env.step(5)
    models = [env.task.reference.load() for env in (first, second)]
    assert models[0] is models[1] and not any(parameter.requires_grad for parameter in models[0].model.parameters())


def test_new_weights_in_a_folder_are_seen(tmp_path):
    folder = str(write_tiny_model(tmp_path / "model"))
    first = FrozenModel(folder).load()
    write_tiny_model(tmp_path / "model", seed=1)
    second = FrozenModel(folder).load()
    assert first is not second


def test_a_live_model_is_shared_by_copies(path, make):
    live = load(path)
    env = make(model=live, reference=live)
    assert copy.deepcopy(live) is live and copy.deepcopy(env).task.reference.load() is live


def test_the_reference_of_a_live_model_does_not_follow_its_training(path, make):
    live = load(path)
    env = make(model=live)
    with torch.no_grad():
        live.model.get_output_embeddings().weight.mul_(3.0)
    twin = make(model=path)
    for one in (env, twin):
        one.reset(options={"prompt_index": 0})
    assert env.step(5)[4]["ref_logprob"] == pytest.approx(twin.step(5)[4]["ref_logprob"], abs=1e-6)


def test_a_live_model_without_gradients_is_not_copied(path):
    live = load(path)
    live.model.requires_grad_(False)
    assert reference_of(True, live, live.card).load() is live


def test_a_live_model_pickles(path):
    live = load(path)
    frozen = pickle.loads(pickle.dumps(FrozenModel(None, live)))
    ids = torch.tensor([[3, 4]])
    assert torch.equal(frozen.load().model(ids).logits, live.model(ids).logits)
    assert pickle.loads(pickle.dumps(FrozenModel(path))).name == path


def test_broken_weights_are_named(path):
    live = load(path)
    broken = copy.deepcopy(live.model)
    with torch.no_grad():
        broken.get_output_embeddings().weight[:] = float("nan")
    reference = Reference(FrozenModel(None, LanguageModel(broken, live.card)), 1.0, 1, 8)
    with pytest.raises(NonFiniteError, match="row 0 is nan"):
        reference.logprobs(np.array([[3, 0]]), np.array([1]), np.array([4]), np.array([True]))


def test_dropout_is_off(tmp_path, make):
    live = load(write_tiny_model(tmp_path / "gpt2", architecture="gpt2"))
    assert live.model.config.resid_pdrop > 0
    live.model.train()
    env = make(reference=live)
    found = set()
    for _ in range(3):
        env.reset(options={"prompt_index": 0})
        found.add(env.step(5)[4]["ref_logprob"])
    assert len(found) == 1


def test_a_model_that_cannot_leave_out_logits(path, monkeypatch):
    tokens, lengths, actions = np.array([[3, 4, 5]]), np.array([3]), np.array([6])
    expected = make_scorer(FrozenModel(path), 1.0, 1, 3).logprobs(tokens, lengths, actions, np.array([True]))
    live = load(path)
    forward = live.model.forward

    def plain(input_ids, position_ids=None, attention_mask=None, past_key_values=None, use_cache=False):
        return forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, use_cache=use_cache,
        )  # fmt: skip

    monkeypatch.setattr(live.model, "forward", plain)
    found = make_scorer(FrozenModel(None, live), 1.0, 1, 3).logprobs(tokens, lengths, actions, np.array([True]))
    np.testing.assert_allclose(found, expected, atol=1e-6)
