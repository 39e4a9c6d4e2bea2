"""Imitation: the loss of transformers, raw texts and conversations, and a run by itself."""

import pytest
import torch

from lmrl import PluginManager
from lmrl.errors import DataError
from lmrl.models import load
from lmrl.plugins.specs import Needs
from lmrl.stages.rl.config import LearningData
from lmrl.stages.rl.offline import load_offline

SHOWN = [{"prompt": "the cat", "completion": " ran home happy ."}, {"prompt": "a", "completion": " dog sat"}]
NEEDS = Needs(experience="demonstrations")


def read(folder, data, **settings):
    model = load(folder)
    return load_offline(LearningData(**settings), data, model.card, NEEDS, torch.device("cpu")), model


def test_a_run_comes_to_say_what_was_shown(train):
    records = train("imitation", data=SHOWN, updates=20, prompts_per_update=2)
    losses = [record["optimizer/loss"] for record in records[1:]]
    assert losses[-1] < 0.5 * losses[0]
    assert losses[0] == pytest.approx(-records[1]["optimizer/logprob"], abs=1e-5)


def test_the_loss_is_that_of_transformers(train, tiny_folder):
    record = train("imitation", data=SHOWN[:1], updates=1, prompts_per_update=1)[1]
    data, model = read(tiny_folder, SHOWN[:1])
    asked, said = data.items[0].rows[0]
    ids = torch.tensor([[*asked, *said]])
    labels = torch.tensor([[-100] * len(asked) + list(said)])
    expected = model.model(ids, labels=labels).loss
    assert record["optimizer/loss"] == pytest.approx(float(expected.detach()), abs=1e-4)


@pytest.mark.parametrize("kind", ["rows", "text", "jsonl"])
def test_raw_texts_are_imitated_from_their_second_token_on(tiny_folder, tmp_path, kind):
    source = [{"text": "the cat sat home", "source": "a"}, {"text": "a dog"}, {"text": " "}]
    if kind == "text":
        source = tmp_path / "texts.txt"
        source.write_text("the cat sat home\na dog\n", encoding="utf-8")
    if kind == "jsonl":
        source = tmp_path / "texts.jsonl"
        source.write_text('{"text": "the cat sat home"}\n{"text": "a dog"}\n', encoding="utf-8")
    data, model = read(tiny_folder, source)
    ids = model.card.codec.encode("the cat sat home")
    assert data.items[0].rows == ((tuple(ids[:1]), tuple(ids[1:])),) and len(data) == 2
    assert len(read(tiny_folder, source, limit=1)[0]) == 1


def test_a_text_that_is_too_long_is_cut_and_one_of_a_single_token_left_out(tiny_folder, caplog):
    long = "the cat " * 100
    data, model = read(tiny_folder, [{"text": long}, {"text": "a"}])
    assert sum(map(len, data.items[0].rows[0])) == model.card.context_length and len(data) == 1
    assert "1 of 2 rows were left out: 1 cannot be rendered" in caplog.text
    with pytest.raises(DataError, match="a text of fewer than two tokens"):
        read(tiny_folder, [{"text": "a"}])


def test_of_a_ranking_the_best_answer_is_shown(tiny_folder):
    pairs = [{"prompt": "the cat", "chosen": " ran", "rejected": " sat"}]
    data, model = read(tiny_folder, pairs)
    assert data.items[0].rows[0][1][0] == model.card.codec.encode("the cat ran")[-1]


def test_the_core_registers_it_for_data():
    spec = PluginManager().get("optimizer", "imitation")
    assert spec.needs == NEEDS and spec.build(spec.settings()).defines("loss")
