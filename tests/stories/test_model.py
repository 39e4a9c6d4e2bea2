import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from lmrl.stories import MODEL_PATH
from lmrl.stories.grammar import story
from lmrl_suites.story_model.report import grammar_entropy, held_out_loss, report
from lmrl_suites.story_model.tokenizer import build
from lmrl_suites.story_model.train import batch, main, row_text, schedule


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL_PATH).eval()


def test_it_is_small_and_safe():
    weights = MODEL_PATH / "model.safetensors"
    assert weights.stat().st_size < 2_000_000
    assert not list(MODEL_PATH.glob("*.bin")) + list(MODEL_PATH.glob("*.pt"))


def test_it_has_learned_the_grammar(model):
    tokenizer = build()
    assert 200_000 < sum(parameter.numel() for parameter in model.parameters()) < 300_000
    entropy, loss = grammar_entropy(tokenizer, 5000), held_out_loss(model, tokenizer, 300)
    assert entropy * 0.97 < loss < entropy * 1.06


def test_its_samples_leave_room(model, capsys):
    figures = report(model, build(), samples=384)
    assert figures["objects consistent"] > 0.9
    assert figures["ended within 64 tokens"] > 0.95
    assert -0.3 < figures["happy end"] - figures["sad end"] < 0.15
    assert figures["answers right"] > 0.4
    printed = capsys.readouterr().out
    assert "held-out nats per token" in printed and printed.count("\n- ") == 5


def test_rows_end_with_eos_and_padding_has_no_label():
    tokenizer = build()
    ids, labels = batch(tokenizer, ["Mia smiled.", "Mia"])
    assert ids.tolist()[1][1:] == [1, 0, 0]
    assert labels.tolist()[1][1:] == [1, -100, -100]
    assert ids.tolist()[0] == labels.tolist()[0] == [*tokenizer.encode("Mia smiled.").ids, 1]


def test_training_rows_are_stories_and_questions():
    generator = random.Random(0)
    told = story(0)
    assert row_text(told, generator, 0.0) == told.text
    asked = row_text(told, generator, 1.0)
    assert asked.startswith(f"Story: {told.text} Question: ") and asked.endswith(".")


def test_the_learning_rate_rises_and_falls():
    assert schedule(0, 100) == pytest.approx(0.2)
    assert schedule(5, 100) == pytest.approx(1.0)
    assert 0.1 <= schedule(99, 100) < 0.11
    assert schedule(0, 1) == 1.0


def test_the_command_trains_and_repeats(tmp_path, capsys):
    weights = []
    for name in ("one", "two"):
        assert main(["--output", str(tmp_path / name), "--steps", "2", "--samples", "2"]) == 0
        weights.append(AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert "grammar's nats per token" in capsys.readouterr().out


def test_the_command_refuses_zero_steps(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--steps", "0"])
    assert "at least 1" in capsys.readouterr().err
