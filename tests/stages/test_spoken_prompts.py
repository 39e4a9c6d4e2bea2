"""rl, prefer, eval and the environment ask a chat model the instructions of a file, and complete texts to continue."""

from __future__ import annotations

import json

import gymnasium as gym
import pytest

from lmrl.config import build
from lmrl.stages.evaluate import EvaluateConfig, evaluate
from lmrl.stages.prefer import PreferConfig, prefer
from lmrl.stages.rl import RLConfig
from lmrl.stages.rl.trainer import RLTrainer
from lmrl.text.card import load_card
from lmrl.text.chat_template import prompt_ids

WORDS = ("the cat", "a dog", "the dog", "a cat")


@pytest.fixture(params=["instruction", "question", "prompt"])
def file(request, tmp_path):
    rows = [{request.param: text, "output" if request.param == "instruction" else "answer": "home"} for text in WORDS]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path), request.param != "prompt"


def table(file, folder, **rest):
    prompts = {"name": "file", "file": {"path": file}}
    return {"prompts": prompts, "run": {"folder": str(folder)}, "sampling": {"max_new_tokens": 3}, **rest}


def chatted_ids(folder, text="the cat"):
    return list(prompt_ids(load_card(folder).codec, [{"role": "user", "content": text}])[1])


def test_rl(file, chat_folder, tiny_folder, tmp_path):
    path, spoken = file
    more = {"reward": {"name": "repetition"}, "evaluation": {"prompts": 0}, "train": {"prompts_per_update": 4}}
    for folder, chats in ((chat_folder, spoken), (tiny_folder, False)):
        config = build(RLConfig, table(path, tmp_path / folder.name, model=str(folder), **more))
        trainer = RLTrainer.from_config(config)
        trainer.close()
        expected = chatted_ids(folder) if chats else load_card(folder).codec.encode("the cat")
        assert expected in trainer.texts.training_ids


def test_prefer(file, chat_folder, tmp_path):
    path, spoken = file
    config = table(path, tmp_path / "run", model=str(chat_folder), annotators={"me": {"reward": "repetition"}})
    prefer(build(PreferConfig, config), progress=False)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    expected = [{"role": "user", "content": "the cat"}] if spoken else "the cat"
    assert expected in [sample["prompt"] for sample in samples]


@pytest.mark.parametrize("chat", ["auto", "off", "on"])
def test_eval(file, chat_folder, tmp_path, chat):
    path, spoken = file
    config = table(path, tmp_path / "run", models=[str(chat_folder)], rewards=[], held_out={"prompts": 0}, chat=chat)
    result = evaluate(build(EvaluateConfig, config), progress=False)
    assert result.columns[0].chatted == (chat == "on" or (chat == "auto" and spoken))


def test_the_environment(file, chat_folder):
    path, spoken = file
    env = gym.make("lmrl:TextGen-v0", model=str(chat_folder), prompts=path, reward="repetition", max_new_tokens=3)
    observation, _ = env.reset(options={"prompt_index": 0})
    ids = observation["input_ids"][: int(observation["prompt_length"][0])].tolist()
    assert ids == (chatted_ids(chat_folder) if spoken else load_card(chat_folder).codec.encode("the cat"))
