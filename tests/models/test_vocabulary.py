"""Models that are compared token id by token id share their vocabulary."""

import json
from dataclasses import replace

import gymnasium as gym
import pytest
import transformers

from lmrl.config import build
from lmrl.engines.batch import require_sampled_ids
from lmrl.engines.local.engine import TransformersEngine
from lmrl.engines.settings import SamplingSettings
from lmrl.engines.texts import sample_texts, sampling_spec
from lmrl.errors import LmrlError, ModelError, SettingsError, VocabularyError
from lmrl.models import load
from lmrl.stages.evaluate import compare
from lmrl.stages.evaluate.scores import why_no_kl
from lmrl.stages.rl import RLConfig, rl
from lmrl.testing import write_tiny_model
from lmrl.testing.toys import WORDS
from lmrl.text.card import load_card
from lmrl.text.vocabulary import require_same_vocabulary


def other_ids(folder):
    """The same words, each with another id."""
    return write_tiny_model(folder, words=tuple(reversed(WORDS)))


def smaller(folder):
    return write_tiny_model(folder, words=WORDS[:8])


def one_renamed(folder):
    return write_tiny_model(folder, words=(*WORDS[:5], "flew", *WORDS[6:]))


def padded(folder):
    """A larger table with the same tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(write_tiny_model(folder))
    model.resize_token_embeddings(24)
    model.save_pretrained(folder)
    return folder


OTHERS = {
    other_ids: r"12 of the model's 15 tokens have another id or none, such as 'the', which has id 3 .* id 14 in",
    smaller: "a vocabulary of 11 rows, and the model one of 15",
    one_renamed: "1 of the model's 15 tokens .* 'sat'.* no id",
}


def train(model, reference, folder):
    table = {"model": str(model), "reference": str(reference), "run": {"folder": str(folder), "device": "cpu"}}
    table |= {"train": {"updates": 1, "prompts_per_update": 4}, "evaluation": {"prompts": 0}, "trackers": []}
    table |= {"sampling": {"max_new_tokens": 4}, "kl": {"beta": 0.1}}
    named = {"reward": lambda prompts, responses: [1.0] * len(prompts), "prompts": ["the cat", "a dog"]}
    return rl(build(RLConfig, table), **named, progress=False)


@pytest.mark.parametrize("other", OTHERS)
def test_another_vocabulary_is_refused(tmp_path, other):
    model, reference = write_tiny_model(tmp_path / "model"), other(tmp_path / "reference")
    with pytest.raises(VocabularyError, match=OTHERS[other]):
        require_same_vocabulary(load_card(reference), load_card(model))
    with pytest.raises(VocabularyError, match=f"the reference {reference} has another vocabulary"):
        train(model, reference, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(VocabularyError, match="has another vocabulary"):
        gym.make(
            "lmrl:TextGen-v0", model=str(model), reference=str(reference), prompts=["the"], reward=lambda p, r: [0.0]
        )
    table = compare([model], ["the cat ran"], reference=reference, progress=False, device="cpu")
    used_by_both = other is not other_ids and table.answers[0][0].kl is not None
    assert used_by_both or "another tokenizer than the reference" in " ".join(table.notes)


def test_one_vocabulary_is_fine_and_so_are_further_rows(tmp_path):
    model, reference = write_tiny_model(tmp_path / "model"), padded(tmp_path / "reference")
    require_same_vocabulary(load_card(reference), load_card(model))
    train(model, reference, tmp_path / "run")
    with pytest.raises(VocabularyError, match="a vocabulary of 15 rows, and the model one of 24"):
        require_same_vocabulary(load_card(model), load_card(reference))


def test_special_tokens_of_other_names_have_no_kl(tmp_path):
    """Their text is left out when ids are decoded, so only the ids tell them apart."""
    model, reference = write_tiny_model(tmp_path / "model"), write_tiny_model(tmp_path / "reference")
    file = reference / "tokenizer.json"
    file.write_text(file.read_text().replace("<eos>", "<end>"))
    (reference / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    cards = load_card(model), load_card(reference)
    assert "another tokenizer" in why_no_kl(*cards, [([3, 4], [5, 1])])
    assert why_no_kl(*cards, [([3, 4], [5])]) == ""


class OtherEngine(TransformersEngine):
    """An engine that serves a model with more tokens."""

    def generate(self, requests):
        for response in super().generate(requests):
            yield replace(response, ids=[token + 20 for token in response.ids])


def test_an_engine_with_another_vocabulary(tmp_path):
    model = load(write_tiny_model(tmp_path / "model"))
    spec = sampling_spec(SamplingSettings(max_new_tokens=3), model.card)
    with pytest.raises(VocabularyError, match=r"returned the token id \d+, and .* has 15 ids"):
        sample_texts(model, [[3, 4]], spec, 0, OtherEngine())
    require_sampled_ids([[], []], model.card)


def test_the_error_is_one_of_models_and_of_settings():
    assert issubclass(VocabularyError, ModelError) and issubclass(VocabularyError, SettingsError)
    assert issubclass(VocabularyError, LmrlError)
