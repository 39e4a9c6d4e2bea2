"""Traps 1 to 8: which tokens are actions, where the score lands, and which logits belong to which token."""

from __future__ import annotations

import pytest
import torch
from trap_checks import check_03, check_04, check_05

from lmrl.data.examples import load_examples
from lmrl.engines import FinishReason, SamplingSpec, sample_batch
from lmrl.engines.local.engine import TransformersEngine
from lmrl.errors import ModelError
from lmrl.models import PolicyModel, load
from lmrl.models.reward_model import start_reward_model
from lmrl.stages.sft.batches import Row
from lmrl.testing import write_tiny_model
from lmrl.text.chat_template import chat_row, response_row


def sampled(folder, eos_ids, rows=64, length=6):
    model = load(folder)
    prompts = [model.card.codec.encode("the cat")] * rows
    spec = SamplingSpec(max_new_tokens=length, eos_ids=eos_ids, context_length=48)
    return sample_batch(TransformersEngine(), model.model, prompts, spec, 0, model.card.codec)


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_trap_01_a_sampled_eos_is_an_action(tiny_folder, pad_is_eos_folder, pad_is_eos):
    samples = sampled(pad_is_eos_folder if pad_is_eos else tiny_folder, (1,))
    ids, mask = samples.inputs.action_ids, samples.action_mask
    ended = samples.finish_reasons == int(FinishReason.EOS)
    assert 0 < int(ended.sum()) < len(ended), "some rows end by themselves, some do not"
    for row in ended.nonzero().squeeze(1).tolist():
        length = int(samples.inputs.action_counts[row])
        assert ids[row, length - 1] == 1 and mask[row, length - 1]
        assert not mask[row, length:].any()
        assert not (ids[row, : length - 1] == 1).any()


def test_trap_02_a_row_without_eos_is_masked_by_its_length(tiny_folder):
    samples = sampled(tiny_folder, eos_ids=(), length=8)
    assert samples.action_mask.all(), "id 0 is the pad and id 1 the EOS of the tokenizer, and both may be sampled here"
    assert {0, 1} <= set(samples.inputs.action_ids.flatten().tolist())


def test_trap_03_score_sits_on_last_action(toy):
    check_03(toy())


def test_trap_04_logprob_t_scores_token_t_plus_one(table_model):
    check_04(table_model)


@pytest.mark.parametrize("extra", [0, 5])
def test_trap_05_a_row_is_itself_in_any_batch(toy, extra):
    check_05(toy(), extra)


def test_trap_05_a_reward_models_score_is_a_function_of_its_row(tiny_folder):
    model = start_reward_model(tiny_folder, seed=0)
    rows = [[3, 4, 5], [6], [7, 1, 0, 8, 9]]
    alone = torch.cat([model.score_rows([row]) for row in rows])
    assert torch.allclose(model.score_rows(rows), alone, atol=1e-5)
    assert torch.allclose(model.score_rows(rows[::-1], 4), alone.flip(0), atol=1e-5)


def test_trap_06_a_reward_model_reads_the_last_real_token(tiny_folder):
    model = start_reward_model(tiny_folder, seed=0)
    row = [1, 0, 5, 1, 0, 7, 8]  # the prompt holds an EOS and a pad of its own
    with torch.no_grad():
        states = model.model.base_model(input_ids=torch.tensor([row])).last_hidden_state[0]
    expected = states[-1] @ model.model.score.weight[0]
    assert torch.allclose(model.score_rows([row, [3]])[0], expected, atol=1e-5)


def test_trap_07_trained_ids_are_the_sampled_ones(toy):
    world = toy()
    drawn = {}
    generate = world.maker.engine.generate

    def spy(requests):
        for response in generate(requests):
            drawn[response.request.id] = list(response.ids)
            yield response

    world.maker.engine.generate = spy
    rollout = world.rollout(rows=48)
    codec = world.language_model.card.codec
    rows = [drawn[row] for row in range(48)]
    assert rollout.inputs.action_rows() == rows
    again = [codec.encode_plain(text) for text in codec.decode_batch(rows)]
    assert rows != again, "otherwise a text that is encoded again would pass unnoticed here"


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_trap_08_the_eos_is_trained_and_a_bos_is_never_doubled(tmp_path, pad_is_eos):
    folder = write_tiny_model(tmp_path / "model", pad_is_eos=pad_is_eos)
    card = load(folder).card
    asked, answer = response_row(card.codec, card.eos_ids, "the cat", " sat .")
    assert answer[-1] == 1 and answer.count(1) == 1
    row = Row(tuple([*asked, *answer]), tuple([False] * len(asked) + [True] * len(answer)))
    assert sum(row.trained) == len(answer) and row.trained[-1]
    assert len(load_examples([{"prompt": "the cat", "completion": " sat ."}])) == 1


def test_trap_08_a_template_that_writes_bos_gets_no_second_one(tmp_path):
    import json

    from tokenizers import Tokenizer, processors

    folder = write_tiny_model(tmp_path / "model", words=("<bos>", "the", "cat", "sat", "user:", "assistant:"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<bos>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"bos_token": "<bos>"}
    settings["chat_template"] = (
        "{{ bos_token }}{% for m in messages %} {{ m['role'] + ':' }} {{ m['content'] }}"
        "{% if m['role'] == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %} assistant:{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    card = load(folder).card
    messages = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    ids, trained = chat_row(card.codec, card.eos_ids, messages)
    assert ids.count(3) == 1 and ids[0] == 3
    assert ids[-1] == 1 and trained[-1]


def test_a_policy_without_a_head_is_read_from_its_logits(table_model):
    assert PolicyModel(table_model).layout.name == "general"
    with pytest.raises(ModelError, match="needs a value head, but TableModel has no output embedding"):
        PolicyModel(table_model, with_values=True)
