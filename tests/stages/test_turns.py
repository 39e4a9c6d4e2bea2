"""What ends a turn in training ends it in sampling: in every stage, and in the checkpoint that is saved."""

import json

import gymnasium
import pytest
from byte_models import write_byte_model

from lmrl.config import build
from lmrl.judges.settings import JudgeSettings
from lmrl.models.loading import load
from lmrl.stages.asking import answer_spec, ask, in_chat
from lmrl.stages.chat import ChatSession
from lmrl.stages.rl import RLConfig, rl
from lmrl.stages.rl.trainer import RLTrainer
from lmrl.text.card import load_card
from lmrl.text.chat_template import response_row, template_end_id
from lmrl.text.turns import holds_turns, with_turn_end

LOOP = "{%- for m in messages -%}"
OPEN = "{%- if add_generation_prompt -%}"


def blocks(before, role_end, end, start):
    """A template whose turns are before, role, role_end, content, end."""
    body = f"{LOOP}{{{{- '{before}' ~ m['role'] ~ '{role_end}' ~ m['content'] ~ '{end}' -}}}}{{%- endfor -%}}"
    return body + f"{OPEN}{{{{- '{start}' -}}}}{{%- endif -%}}"


CHATML = blocks("<|im_start|>", "\\n", "<|im_end|>\\n", "<|im_start|>assistant\\n")
TEMPLATES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "llama3": (
        blocks("<|h|>", "<|/h|>", "<|eot_id|>", "<|h|>assistant<|/h|>"),
        ["<|h|>", "<|/h|>", "<|eot_id|>"],
        "<|eot_id|>",
    ),
    "gemma": (
        blocks("<start_of_turn>", "\\n", "<end_of_turn>\\n", "<start_of_turn>assistant\\n"),
        ["<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
    ),
    "phi": (blocks("<|", "|>", "<|end|>", "<|assistant|>"), ["<|user|>", "<|assistant|>", "<|end|>"], "<|end|>"),
    "thinking": (
        blocks("<|im_start|>", "\\n", "<|im_end|>\\n", "<|im_start|>assistant\\n<think>\\n"),
        ["<|im_start|>", "<|im_end|>"],
        "<|im_end|>",
    ),
    "only answers end": (
        LOOP
        + "{{- m['role'] ~ ':' ~ m['content'] -}}{%- if m['role'] == 'assistant' -%}<|done|>{%- endif -%}{%- endfor -%}"
        + OPEN
        + "assistant:{%- endif -%}",
        ["<|done|>"],
        "<|done|>",
    ),
    "words before it": (blocks("<|u|>", ":", "</turn><|end|>", "<|u|>assistant:"), ["<|u|>", "<|end|>"], "<|end|>"),
    "next header": (blocks("", ":", "<|user|>", "assistant:"), ["<|user|>"], "<|user|>"),
    "eos": (blocks("", ":", "</s>", "assistant:"), [], "</s>"),
    "plain text": (blocks("", ":", "\\n\\n", "assistant:"), [], None),
    "words": (blocks("", ":", "</turn>", "assistant:"), [], None),
    "no end": (blocks("[", "]", "", "[assistant]"), [], None),
}
PAIR = {
    "prompt": [{"role": "user", "content": "a?"}],
    "chosen": [{"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "assistant", "content": "no"}],
}
TEXT_PAIR = {"prompt": "a?", "chosen": " yes", "rejected": " no"}
MESSAGES = [{"role": "user", "content": "a?"}]


def model_of(folder, name, **options):
    template, tokens, end = TEMPLATES[name]
    write_byte_model(folder, template=template, tokens=tokens, context=96, **options)
    return folder, end if end is None else load_card(folder).codec.added_tokens[end]


def ends_of(folder):
    """Return the EOS ids of a saved model, as transformers and lmrl read them."""
    found = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    found = found if isinstance(found, list) else [found]
    assert set(load_card(folder).eos_ids) == set(found)
    return set(found)


def config_of(folder, run, optimizer, **settings):
    content = {
        "model": str(folder),
        "optimizer": {"name": optimizer},
        "run": {"folder": str(run), "device": "cpu"},
        "train": {"updates": 1, "prompts_per_update": 4, "group_size": 2},
        "sampling": {"max_new_tokens": 4},
        "evaluation": {"prompts": 0},
        **settings,
    }
    return build(RLConfig, content)


def reward(prompts, completions):
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_that_training_teaches_is_an_end_of_the_policy_and_of_the_checkpoint(tmp_path, name):
    folder, end = model_of(tmp_path / "m", name)
    card = load_card(folder)
    assert template_end_id(card.codec) == end
    expected = {2} if end is None else {2, end}
    assert set(with_turn_end(card).eos_ids) == expected
    offline = name != "thinking"  # its answers do not begin as its prompts end, so they cannot be trained on
    config = config_of(folder, tmp_path / "run", "orpo" if offline else "grpo")
    data = [PAIR] * 4 if offline else None
    rl(config, prompts=[{"prompt": MESSAGES}] * 4, reward=reward, data=data, progress=False)
    assert ends_of(tmp_path / "run" / "checkpoint") == expected
    if not offline:
        return
    _, said = response_row(card.codec, card.eos_ids, PAIR["prompt"], PAIR["chosen"])
    assert said[-1] in expected, "the last token that is trained ends a response"


OPTIMIZERS = {
    "orpo": [PAIR],
    "dpo": [PAIR],
    "simpo": [PAIR],
    "online_dpo": None,
    "ppo": None,
    "grpo": None,
    "raft": None,
}
OPTIMIZERS["kto"] = [
    {"prompt": MESSAGES, "completion": "yes", "label": True},
    {"prompt": MESSAGES, "completion": "no", "label": False},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_stops_at_the_end_of_a_turn(tmp_path, optimizer):
    folder, end = model_of(tmp_path / "m", "chatml")
    data = OPTIMIZERS[optimizer] and OPTIMIZERS[optimizer] * 4
    config = config_of(folder, tmp_path / "run", optimizer)
    trainer = RLTrainer.from_config(config, reward=reward, prompts=[{"prompt": MESSAGES}] * 4, data=data)
    trainer.close()
    assert set(trainer.maker.spec.eos_ids) == {2, end}
    assert ends_of(trainer.save(tmp_path / "saved")) == {2, end}


def test_texts_keep_their_meaning(tmp_path):
    """A chat model that continues texts ends them where it did, and its checkpoint says the same."""
    folder, _ = model_of(tmp_path / "m", "chatml")
    rl(
        config_of(folder, tmp_path / "run", "orpo"),
        prompts=["a?"] * 4,
        reward=reward,
        data=[TEXT_PAIR] * 4,
        progress=False,
    )
    assert ends_of(tmp_path / "run" / "checkpoint") == {2}
    card = load_card(folder)
    assert response_row(card.codec, card.eos_ids, "a?", " yes")[1][-1] == 2
    assert not holds_turns(card, [card.codec.encode_plain("a?")])


def test_a_rendered_conversation_is_one(tmp_path):
    folder, end = model_of(tmp_path / "m", "chatml")
    text = load_card(folder).codec.render_chat(MESSAGES, True)
    rl(config_of(folder, tmp_path / "run", "grpo"), prompts=[text] * 4, reward=reward, progress=False)
    assert ends_of(tmp_path / "run" / "checkpoint") == {2, end}
    pair = {"prompt": text, "chosen": "yes<|im_end|>", "rejected": "no<|im_end|>"}
    rl(config_of(folder, tmp_path / "dpo", "dpo"), prompts=["a"] * 4, reward=reward, data=[pair] * 4, progress=False)
    assert ends_of(tmp_path / "dpo" / "checkpoint") == {2, end}


def test_a_resumed_run_keeps_the_ends(tmp_path):
    folder, end = model_of(tmp_path / "m", "chatml")
    for updates in (1, 2):
        config = config_of(folder, tmp_path / "run", "grpo")
        config.train.updates = updates
        rl(config, prompts=[{"prompt": MESSAGES}] * 4, reward=reward, resume=updates == 2, progress=False)
    assert ends_of(tmp_path / "run" / "checkpoint") == {2, end}


def test_chat_compare_eval_judge_and_environment_stop_there(tmp_path):
    from lmrl.judges.asking import Budget
    from lmrl.judges.local import LocalAsker

    folder, end = model_of(tmp_path / "m", "chatml")
    model = load(folder)
    card = model.card
    assert ChatSession(model).chats
    asked = [ask(card, MESSAGES)]
    assert in_chat(card, asked) and end in answer_spec(ChatSession(model).sampling, card, in_chat(card, asked)).eos_ids
    plain = [ask(card, "a?", complete=True)]
    assert not in_chat(card, plain)
    assert in_chat(card, [ask(card, asked[0].text, complete=True)])
    asker = LocalAsker(JudgeSettings(model=str(folder)), Budget(), choices=None)
    assert asker.card.codec.chat_template
    for prompts, ended in (
        ([MESSAGES], True),
        ([{"prompt": MESSAGES, "n": 1}], True),
        ([asked[0].text], True),
        (["a?"], False),
    ):
        env = gymnasium.make(
            "lmrl:TextGen-v0", model=folder, prompts=prompts, reward=lambda prompts, completions, **columns: [1.0]
        )
        env.reset(seed=0)
        assert bool(env.step(end)[2]) is ended


def test_a_token_that_is_added_but_not_special_ends_a_turn(tmp_path):
    folder = write_byte_model(tmp_path / "m", template=CHATML, ordinary=["<|im_start|>", "<|im_end|>"])
    card = load_card(folder)
    assert template_end_id(card.codec) == card.codec.added_tokens["<|im_end|>"]
