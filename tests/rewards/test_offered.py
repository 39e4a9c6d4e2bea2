"""Token ids, finish reasons and text with special tokens, for rewards that name them, wherever rewards are called."""

import json
import pickle

import gymnasium as gym
import pytest

import lmrl  # noqa: F401 - registers the environment
from lmrl.cli.main import main
from lmrl.engines.protocol import FinishReason
from lmrl.errors import RewardError
from lmrl.rewards import per_row, resolve, sampled_columns
from lmrl.rewards.binding import TURNS
from lmrl.testing import write_tiny_model
from lmrl.text.codec import FastCodec

MODULE = """
NAMES = ("response_ids", "completion_ids", "prompt_ids", "finish_reasons", "raw_responses")

def check(prompts, responses, response_ids, completion_ids, prompt_ids, finish_reasons, raw_responses):
    columns = (response_ids, completion_ids, prompt_ids, finish_reasons, raw_responses)
    assert all(len(column) == len(responses) for column in columns), list(map(len, columns))
    assert response_ids == completion_ids and all(prompt_ids)
    for ids, reason, raw, text in zip(response_ids, finish_reasons, raw_responses, responses):
        assert reason in ("eos", "stop", "length", "context"), reason
        assert (ids[-1] == 1) == (reason == "eos") == raw.endswith("<eos>"), (ids, reason, raw)
        bare = [word for word in raw.split() if word not in ("<eos>", "<unk>", "<pad>", "<bos>")]
        assert bare[: len(text.split())] == text.split(), (raw, text)
    return [float(len(ids)) for ids in response_ids]

def trl(completions, **kwargs):
    assert set(kwargs) >= {"prompts", "completion_ids"} and "raw_responses" not in kwargs, set(kwargs)
    return [float(len(ids)) for ids in kwargs["completion_ids"]]

check.concurrency = "thread"
trl.concurrency = "process"
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    (tmp_path / "offered_rewards.py").write_text(MODULE)
    (tmp_path / "prompts.txt").write_text("the cat\na dog\nthe\na\ncat\ndog\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def rl(base, *settings):
    common = [f"model={base}", "prompts.name=file", "prompts.file.path=prompts.txt", "train.updates=2"]
    common += ["train.prompts_per_update=4", "evaluation.prompts=2", "sampling.max_new_tokens=6", "run.folder=run"]
    return main(["rl", "--quiet", *common, *settings])


@pytest.mark.parametrize("concurrency", ["none", "thread", "process"])
@pytest.mark.parametrize("name", ["check", "trl"])
def test_rl(base, rewards, name, concurrency):
    workers = [] if concurrency == "none" else ["scoring.workers=2"]
    assert rl(base, f"reward.name=offered_rewards:{name}", f"scoring.concurrency={concurrency}", *workers) == 0
    lines = [json.loads(line) for line in (rewards / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["rollout/reward"] >= 1 for line in lines[1:])


def test_rl_with_stop_strings(base, rewards):
    settings = ['sampling.stop_strings=["cat"]', "scoring.concurrency=thread"]
    assert rl(base, "reward.name=offered_rewards:check", *settings) == 0


@pytest.mark.parametrize("name", ["check", "trl"])
def test_eval_with_best_of(base, rewards, name):
    settings = [f"models=['{base}']", "prompts.name=file", "prompts.file.path=prompts.txt", "held_out.prompts=0"]
    settings += [f'rewards=["offered_rewards:{name}"]', "best_of.n=2", "sampling.max_new_tokens=6", "run.folder=run"]
    assert main(["eval", *settings]) == 0


@pytest.mark.parametrize("name", ["check", "trl"])
def test_prefer(base, rewards, name):
    settings = [f"model={base}", "prompts.name=file", "prompts.file.path=prompts.txt", "samples.per_prompt=3"]
    settings += [f"annotators.reward.reward=offered_rewards:{name}", "sampling.max_new_tokens=6", "run.folder=run"]
    assert main(["prefer", *settings]) == 0
    rankings = [json.loads(line) for line in (rewards / "run" / "rankings.jsonl").read_text().splitlines()]
    assert rankings and all("response_ids" not in row for row in rankings)


def test_texts_alone_have_no_tokens(rewards):
    (rewards / "given.jsonl").write_text(json.dumps({"prompt": "p", "completions": ["1", "2"]}) + "\n")
    settings = ["completions_from.path=given.jsonl", "annotators.reward.reward=offered_rewards:check", "run.folder=run"]
    assert main(["prefer", *settings]) != 0
    with pytest.raises(RewardError, match=r"response_ids.*only where responses are sampled as tokens"):
        resolve("offered_rewards:check")(["p"], ["r"])


def test_the_best_of_n_engine(base, rewards):
    settings = [f"models=['{base}']", "prompts.name=file", "prompts.file.path=prompts.txt", "held_out.prompts=0"]
    settings += ["engine.name=best_of_n", "engine.best_of_n.n=2", "engine.best_of_n.reward=offered_rewards:check"]
    assert main(["eval", *settings, "rewards=['happy_end']", "sampling.max_new_tokens=6", "run.folder=run"]) == 0


@pytest.mark.parametrize("name", ["check", "trl"])
@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_the_environment(base, rewards, make, name):
    env = make(
        "lmrl:TextGen-v0",
        model=str(base),
        prompts=["the cat", "a dog"],
        reward=f"offered_rewards:{name}",
        max_new_tokens=4,
    )
    env.reset(seed=0)
    total = 0.0
    for action in (7, 9, 1, 7, 9, 3, 4, 5):
        actions = action if make is gym.make else [action] * env.num_envs
        _, reward, terminated, *_ = env.step(actions)
        total += float(reward if make is gym.make else reward[0])
        if make is gym.make and terminated:
            env.reset()
    assert total > 0
    env.close()


def test_nothing_is_computed_that_no_reward_names(base):
    codec = FastCodec(base / "tokenizer.json")
    arguments = (codec, [[3, 5]], [[7, 9, 1]], [FinishReason.EOS])
    own = {TURNS: [[3]]}  # the numbers of tokens, which the reward itself is not passed
    assert sampled_columns(resolve("exact_match"), *arguments) == own
    assert sampled_columns(resolve(lambda prompts, responses: [0]), *arguments) == own
    named = resolve({"happy_end": 1.0, "length": 1.0}, {"length": {"maximum": 3}})
    assert sampled_columns(named, *arguments) == own
    one = resolve(per_row(lambda response, finish_reasons, raw_responses: float(finish_reasons == "eos")))
    columns = sampled_columns(one, *arguments)
    assert set(columns) == {"finish_reasons", "raw_responses", TURNS} and columns["raw_responses"][0].endswith("<eos>")
    assert one(["the cat"], ["ran home"], columns).scores.tolist() == [1.0]
    assert pickle.loads(pickle.dumps(resolve("exact_match"))).asks == frozenset()


def test_the_text_with_special_tokens_continues_the_prompt_of_a_chat_model(tmp_path):
    base = write_tiny_model(tmp_path / "base")
    codec = FastCodec(base / "tokenizer.json")
    reward = resolve(lambda responses, raw_responses: [0])
    raw = sampled_columns(reward, codec, [[3, 1, 5]], [[7, 1, 9, 1]], [1])["raw_responses"]
    assert raw[0].split() == codec.decode_batch([[3, 1, 5, 7, 1, 9, 1]], special=True)[0].split()[3:]
    assert raw[0].count("<eos>") == 2
