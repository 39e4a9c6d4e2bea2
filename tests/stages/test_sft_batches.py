"""Batches of fine-tuning: packed, padded and single examples have the same logits, losses and gradients."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from lmrl.stages.sft.batches import AnswerModel, Row, can_pack, make_microbatches

VOCABULARY = 61
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
SIZES = {
    "llama": COMMON | {"num_key_value_heads": 2},
    "qwen2": COMMON | {"num_key_value_heads": 2},
    "mistral": COMMON | {"num_key_value_heads": 2, "sliding_window": 4},
    "gemma2": COMMON | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    "gpt_neox": COMMON,
    "gpt2": {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "opt": COMMON | {"ffn_dim": 64, "word_embed_proj_dim": 32},
}
PACKS = ("llama", "qwen2", "mistral", "gemma2", "gpt_neox", "gpt2")


def random_model(family, seed=0):
    torch.manual_seed(seed)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(family, **SIZES[family], **ids)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def random_rows(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        start = int(torch.randint(length, (1,), generator=generator))
        rows.append(Row(ids, [place >= start for place in range(length)]))
    return rows


def losses(answers, rows, **settings):
    """Return each example's loss by itself, whatever the batches."""
    found = torch.zeros(len(rows))
    for batch in make_microbatches(rows, **settings):
        nats, _ = answers(batch.ids, batch.positions, batch.predicts, batch.targets)
        found.index_add_(0, batch.owners, nats.detach())
    return found


def gradients(answers, rows, **settings):
    answers.zero_grad()
    for batch in make_microbatches(rows, **settings):
        nats, _ = answers(batch.ids, batch.positions, batch.predicts, batch.targets)
        nats.sum().backward()
    return {name: one.grad.clone() for name, one in answers.named_parameters()}


@pytest.mark.parametrize("family", PACKS)
def test_packed_examples_have_the_logits_losses_and_gradients_of_each_alone(family):
    model = random_model(family)
    assert can_pack(model)
    rows = random_rows([9, 3, 14, 1, 7, 20, 2, 5])
    answers = AnswerModel(model)
    [packed] = make_microbatches(rows, 1000, packed=True, width=40)
    assert packed.ids.shape == (2, 40) and packed.positions is not None
    logits = model(input_ids=packed.ids, position_ids=packed.positions, use_cache=False).logits
    starts = (packed.positions == 0).nonzero().tolist()
    for bin_, start in starts:
        end = start + 1
        while end < 40 and packed.positions[bin_, end] != 0:
            end += 1
        alone = model(input_ids=packed.ids[bin_ : bin_ + 1, start:end], use_cache=False).logits[0]
        torch.testing.assert_close(logits[bin_, start:end], alone, atol=1e-5, rtol=0)
    single = [float(losses(answers, [row], budget=1, packed=False)) for row in rows]
    for settings in ({"packed": True, "width": 40}, {"packed": True}, {"packed": False}):
        for budget in (45, 1000):
            torch.testing.assert_close(
                losses(answers, rows, budget=budget, **settings), torch.tensor(single), atol=2e-4, rtol=1e-5
            )
    wanted = gradients(answers, rows, budget=1, packed=False)
    for settings in ({"packed": True, "width": 40}, {"packed": False}):
        for name, gradient in gradients(answers, rows, budget=70, **settings).items():
            torch.testing.assert_close(gradient, wanted[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", ["bloom", "opt"])
def test_a_family_that_sees_across_the_border_is_noticed(family):
    model = random_model(family).train()
    assert not can_pack(model)
    assert model.training, "trying changes nothing"


def test_a_family_without_positions_is_noticed():
    config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    assert not can_pack(transformers.MambaForCausalLM(config))


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    budget=st.integers(1, 200),
    packed=st.booleans(),
    width=st.integers(0, 80),
)
def test_every_target_is_there_once_and_no_batch_is_too_large(lengths, budget, packed, width):
    rows = random_rows(lengths)
    batches = make_microbatches(rows, budget, packed, width)
    assert sum(batch.count for batch in batches) == sum(row.count for row in rows)
    for batch in batches:
        assert batch.tokens <= budget or len(batch.ids) == 1
        assert batch.count == int(batch.predicts.sum()) == len(batch.owners)
    found = {}
    for batch in batches:
        for owner, target in zip(batch.owners.tolist(), batch.targets.tolist(), strict=True):
            found.setdefault(owner, []).append(target)
    for place, row in enumerate(rows):
        said = [token for token, trained in zip(row.ids[1:], row.trained[1:], strict=True) if trained]
        assert found.get(place, []) == said
    if not packed:
        assert all(batch.positions is None for batch in batches)


def test_a_row_sees_neither_its_padding_nor_its_neighbours():
    answers = AnswerModel(random_model("llama"))
    rows = random_rows([12, 4, 6])
    alone = losses(answers, rows[1:2], budget=100, packed=False)
    for packed in (True, False):
        changed = [Row([(i + 7) % VOCABULARY for i in rows[0].ids], rows[0].trained), rows[1], rows[2]]
        for others in (rows, changed, changed[::-1]):
            place = others.index(rows[1])
            torch.testing.assert_close(losses(answers, others, budget=100, packed=packed)[place], alone[0])
