"""The registry of layouts: the first one that supports a model computes it, and a fallback is logged once."""

import copy
import logging

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

import lmrl.models.layouts as layouts
from lmrl.config import build
from lmrl.errors import ModelError
from lmrl.models import PolicyModel, load
from lmrl.models.layouts.padded import PaddedLayout
from lmrl.stages.rl import RLConfig, rl
from lmrl.testing import write_tiny_model

SIZES = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(folder):
    return load(folder).model


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(layouts, "LAYOUTS", copy.copy(layouts.LAYOUTS))
    layouts._note.cache_clear()


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name == layouts.__name__]


class OneByOne(PaddedLayout):
    """Computes a trajectory at a time."""

    name = "one by one"

    def __init__(self, refuses=""):
        self.refuses, self.split_rows, self.computed_rows = refuses, [], []

    def unsupported(self, model):
        return self.refuses

    def split(self, inputs, token_budget):
        self.split_rows.append(inputs.count)
        return list(torch.arange(inputs.count).split(1))

    def states(self, inputs, include_last):
        self.computed_rows.append(inputs.count)
        return super().states(inputs, include_last)


def trained(run, model):
    mapping = {
        "model": str(model),
        "run": {"folder": str(run), "device": "cpu"},
        "sampling": {"max_new_tokens": 6},
        "train": {"updates": 1, "prompts_per_update": 2, "group_size": 4, "learning_rate": 0.01},
        "optimizer": {"name": "grpo"},
        "evaluation": {"prompts": 0},
        "trackers": [],
    }
    rl(build(RLConfig, mapping), reward=lambda prompts, responses: [len(r) for r in responses], prompts=["the", "a"])
    return load(run).model.state_dict()


def test_a_registered_layout_trains_to_the_same_weights(folder, tmp_path):
    expected = trained(tmp_path / "packed", folder)
    layout = OneByOne()
    layouts.register(layout)
    found = trained(tmp_path / "one", folder)
    assert layout.split_rows == [8, 8], "the reference's pass and the update"
    assert layout.computed_rows.count(1) == 16
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name


def test_a_layout_that_does_not_support_the_model_is_passed_over(model):
    layouts.register(OneByOne("it has too many layers"))
    assert PolicyModel(model).layout.name == "packed"


def test_registering_a_name_again_replaces_the_layout():
    first, second = OneByOne(), OneByOne()
    layouts.register(first)
    layouts.register(second)
    assert [layout.name for layout in layouts.LAYOUTS] == ["one by one", "packed", "padded", "general"]
    assert layouts.LAYOUTS[0] is second


def test_a_fallback_is_logged_in_one_line_with_the_reason(caplog):
    model = MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=8, max_position_embeddings=32))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert PolicyModel(model).layout.name == "padded"
    assert messages(caplog) == [
        "MistralForCausalLM is computed in the layout padded: packed does not support it (a layer does not attend to "
        "the whole context)"
    ]


def test_both_reasons_of_the_general_layout_are_logged(caplog):
    model = Gemma2ForCausalLM(Gemma2Config(**SIZES, **HEADS, head_dim=8, final_logit_softcapping=30.0))
    with caplog.at_level(logging.WARNING):
        assert PolicyModel(model).layout.name == "general"
    [line] = messages(caplog)
    assert "packed does not support it" in line and "padded does not support it (its logits are more than" in line


def test_the_fastest_layout_is_not_logged(model, caplog):
    with caplog.at_level(logging.INFO):
        assert PolicyModel(model).layout.name == "packed"
    assert not messages(caplog)


def test_a_model_that_no_layout_supports(model):
    layouts.LAYOUTS[:] = [OneByOne("it has too many layers")]
    with pytest.raises(ModelError, match=r"no layout supports .*: one by one does not support it \(it has too many"):
        _ = PolicyModel(model).layout
