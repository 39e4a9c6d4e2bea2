"""Reward models: where the score is read, what it may not depend on, and what plain transformers makes of them."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrl.algorithms.sequences import pad_rows
from lmrl.errors import DataError, ModelError, NonFiniteError
from lmrl.models.reward_model import load_reward_model, start_reward_model
from lmrl.models.reward_rows import fitted_row, reward_row, with_template
from lmrl.testing import write_tiny_model
from lmrl.text.reward_card import Normalisation, load_reward_card, read_normalisation, write_normalisation

KINDS = [("llama", False), ("llama", True), ("gpt2", False), ("gpt2", True)]
ROWS = [[3, 4, 1], [1, 0, 5, 1, 6, 1, 0, 7, 1], [0, 0, 1], [8], list(range(3, 15)) * 3]
"""Prompts that hold EOS (1) and padding (0), rows that end in EOS, and one that does not."""


def plain_scores(folder, rows):
    """What transformers alone gives for each row, unpadded."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.tensor([model(torch.tensor([row])).logits.item() for row in rows])


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}{'-pad-is-eos' if kind[1] else ''}")
def base(request, tmp_path):
    architecture, pad_is_eos = request.param
    return write_tiny_model(tmp_path / "base", architecture=architecture, pad_is_eos=pad_is_eos)


@pytest.fixture
def model(base):
    return start_reward_model(base, seed=0)


@pytest.fixture
def saved(model, tmp_path):
    model.normalisation = Normalisation(0.25, 2.0, 100, "test")
    model.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_plain_transformers_gives_the_same_raw_scores(model, saved):
    expected = plain_scores(saved, ROWS)
    for scores in (model.score_rows(ROWS, normalised=False), load_reward_model(saved).score_rows(ROWS, 8, False)):
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


def test_plain_transformers_scores_padded_batches_alike_or_refuses_them(model, saved):
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    pad = plain.config.pad_token_id
    ids, lengths = pad_rows(ROWS)
    real = torch.arange(ids.shape[1])[None, :] < lengths[:, None]
    if pad is None:
        with pytest.raises(ValueError, match="padding token"):
            plain(ids, attention_mask=real.long())
        return
    with torch.no_grad():
        scores = plain(ids.masked_fill(~real, pad), attention_mask=real.long()).logits[:, 0]
    torch.testing.assert_close(scores, model.score_rows(ROWS, normalised=False), rtol=1e-4, atol=1e-5)


def test_the_normalisation_is_stored_and_applied(model, saved):
    loaded = load_reward_model(saved)
    assert loaded.normalisation == Normalisation(0.25, 2.0, 100, "test")
    torch.testing.assert_close(loaded.score_rows(ROWS), (model.score_rows(ROWS, normalised=False) - 0.25) / 2)
    write_normalisation(saved, Normalisation(1.0, 4.0, 7, "other"))
    assert load_reward_card(saved).normalisation == Normalisation(1.0, 4.0, 7, "other")
    plain_scores(saved, ROWS[:1])  # transformers still reads the folder
    assert not [path for path in saved.iterdir() if path.suffix in {".bin", ".pt", ".partial"}]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def fixed_model(request, tmp_path_factory):
    return start_reward_model(write_tiny_model(tmp_path_factory.mktemp("fixed"), architecture=request.param), seed=0)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_trap_05_a_score_is_a_function_of_its_row(data, fixed_model):
    model = fixed_model
    rows = data.draw(st.lists(st.lists(st.integers(0, 14), min_size=1, max_size=20), min_size=1, max_size=6))
    alone = torch.cat([model.score_rows([row]) for row in rows])
    torch.testing.assert_close(model.score_rows(rows), alone, rtol=1e-5, atol=1e-5)
    order = data.draw(st.permutations(range(len(rows))))
    budget = data.draw(st.integers(1, 60))
    shuffled = model.score_rows([rows[i] for i in order], budget)
    torch.testing.assert_close(shuffled, alone[torch.tensor(order)], rtol=1e-5, atol=1e-5)
    ids, lengths = pad_rows(rows)
    padding = data.draw(st.integers(0, 14))
    wide = torch.full((len(rows), ids.shape[1] + 7), padding)
    for place, row in enumerate(rows):
        wide[place, : len(row)] = torch.tensor(row)
    with torch.no_grad():
        torch.testing.assert_close(model(wide, lengths), alone, rtol=1e-5, atol=1e-5)
        pieces = [torch.tensor([i]) for i in order]
        torch.testing.assert_close(model(ids, lengths, pieces), alone, rtol=1e-5, atol=1e-5)


def test_trap_06_the_last_real_token_counts_whatever_the_prompt_holds(model):
    expected = []
    for row in ROWS:
        with torch.no_grad():
            hidden = model.model.base_model(input_ids=torch.tensor([row])).last_hidden_state[0, len(row) - 1]
            expected.append(float(hidden @ model.model.score.weight[0]))
    torch.testing.assert_close(model.score_rows(ROWS), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_trap_12_dropout_is_off_in_training_too(base):
    model = start_reward_model(base, seed=0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.train()
    ids, lengths = pad_rows(ROWS)
    assert torch.equal(model(ids, lengths), model(ids, lengths)) and not model.training


def test_trap_33_scores_begin_near_zero_and_members_apart(base):
    first, again, other = (start_reward_model(base, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.model.score.weight, again.model.score.weight)
    assert not torch.equal(first.model.score.weight, other.model.score.weight)
    width = first.model.score.weight.shape[1]
    assert first.model.score.weight.abs().max() < 5 / (width + 1)
    assert first.score_rows(ROWS).abs().max() < 1.5


def test_the_padding_id_never_ends_a_row(model, saved):
    config = json.loads((saved / "config.json").read_text())
    assert config.get("pad_token_id") in (0, None) and config.get("pad_token_id") not in model.card.eos_ids


def test_tokenizer_and_template_go_along(tmp_path):
    from transformers import AutoTokenizer

    base = write_tiny_model(tmp_path / "base")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    start_reward_model(base, seed=0).save(tmp_path / "saved")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (base / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "cat"}], tokenize=False) == "cat "


def test_a_plain_template_is_saved_with_a_model_that_had_none(tmp_path):
    from transformers import AutoTokenizer

    model = start_reward_model(write_tiny_model(tmp_path / "base"), seed=0)
    question = ({"role": "user", "content": "the cat"},)
    with pytest.raises(DataError, match="chat template"):
        reward_row(model.card, question, "ran")
    model.card = with_template(model.card)
    asked, answer = reward_row(model.card, question, "ran home")
    model.save(tmp_path / "saved")
    assert reward_row(load_reward_card(tmp_path / "saved").card, question, "ran home") == (asked, answer)
    assert answer[-1] == 1 and AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template


def test_a_classifier_made_by_plain_transformers_loads(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

    base = write_tiny_model(tmp_path / "base")
    sizes = {"vocab_size": 15, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 40, "num_labels": 1, "initializer_range": 0.5}
    kinds = {
        "llama": LlamaForSequenceClassification(LlamaConfig(**sizes, eos_token_id=1, pad_token_id=0)),
        "bert": BertForSequenceClassification(BertConfig(**sizes)),
    }
    for name, made in kinds.items():
        made.save_pretrained(tmp_path / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name / file).write_bytes((base / file).read_bytes())
        rows = [row for row in ROWS if len(row) <= 40 and row[-1] != 0]
        found = load_reward_model(tmp_path / name)
        torch.testing.assert_close(
            found.score_rows(rows, 20), plain_scores(tmp_path / name, rows), rtol=1e-4, atol=1e-5
        )
        asked, answer = reward_row(found.card, "the cat", "ran home")
        assert (asked, answer) == ([3, 5], [7, 9, 1] if name == "llama" else [7, 9])
        again = start_reward_model(tmp_path / name, seed=3)  # trained further, head and all
        torch.testing.assert_close(again.score_rows(rows), found.score_rows(rows))


def test_real_model(shared, tmp_path):
    folder = shared / "data" / "models" / "stories260K-llama"
    model = start_reward_model(folder, seed=0)
    model.save(tmp_path)
    pairs = [reward_row(model.card, "Once upon a time", text) for text in (" there was a cat.", " x" * 40)]
    rows = [[*asked, *answer] for asked, answer in pairs]
    torch.testing.assert_close(model.score_rows(rows), plain_scores(tmp_path, rows), rtol=1e-5, atol=1e-6)
    assert load_reward_card(tmp_path).card.eos_ids == (1, 2)


def test_rows_are_fitted_at_their_beginning(tmp_path):
    card = start_reward_model(write_tiny_model(tmp_path, context=6), seed=0).card
    assert fitted_row(card, [3, 4], [5, 1]) == ([3, 4, 5, 1], 0)
    assert fitted_row(card, [3, 4, 5, 6, 7], [8, 9, 1]) == ([5, 6, 7, 8, 9, 1], 2)
    from dataclasses import replace

    assert fitted_row(replace(card, bos_id=3), [3, 4, 5, 6, 7], [8, 9, 1])[0] == [3, 6, 7, 8, 9, 1]


def change(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("base", KINDS[:1], indirect=True)
class TestRefusals:
    def test_a_language_model_is_no_reward(self, base):
        with pytest.raises(ModelError, match=r"names LlamaForCausalLM; expected .*lmrl reward model="):
            load_reward_model(base)

    def test_several_labels(self, saved):
        change(saved, id2label={"0": "bad", "1": "good"})
        with pytest.raises(ModelError, match="a classifier with 2 labels: bad, good; expected the label"):
            load_reward_model(saved)

    def test_a_folder_that_is_not_there(self, saved):
        with pytest.raises(ModelError, match=r"Did you mean .*saved"):
            load_reward_model(saved.parent / "savd")

    def test_an_untrained_head(self, base):
        change(base, architectures=["LlamaForSequenceClassification"], id2label={"0": "LABEL_0"})
        with pytest.raises(ModelError, match=r"no weights for score.weight"):
            load_reward_model(base)

    def test_a_bad_normalisation(self, saved):
        with pytest.raises(ModelError, match="std 0"):
            read_normalisation({"lmrl": {"normalisation": {"mean": 0.0, "std": 0.0}}})

    def test_rows_that_cannot_be_scored(self, model):
        with pytest.raises(ModelError, match="a row of 0 tokens"):
            model.score_rows([[3], []])
        with pytest.raises(ModelError, match=r"a row of 49 tokens.*1 to 48"):
            model.score_rows([[3] * 49])
        assert model.score_rows([]).shape == (0,)

    def test_a_score_that_is_no_number(self, model):
        torch.nn.init.constant_(model.model.score.weight, float("nan"))
        with pytest.raises(NonFiniteError, match="scores row 0 nan"):
            model.score_rows([[3]])

    def test_a_pickled_checkpoint(self, saved):
        torch.save({}, saved / "pytorch_model.bin")
        (saved / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="could not be loaded"):
            load_reward_model(saved)
