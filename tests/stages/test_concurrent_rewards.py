"""Rewards that are called while the engine still samples give what they give afterwards, errors included."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from lmrl.config import build
from lmrl.engines import FinishReason, Response
from lmrl.engines.local.engine import TransformersEngine
from lmrl.engines.settings import TransformersEngineSettings
from lmrl.errors import RewardError, SettingsError
from lmrl.models.policy import PolicyWeights
from lmrl.plugins import PluginManager
from lmrl.reporting.metrics import read_metrics
from lmrl.rewards import per_row, resolve
from lmrl.rewards.concurrent import ConcurrentReward
from lmrl.rewards.function import Member, RewardFunction
from lmrl.stages.rl import RLConfig, rl

TEXTS = ["the cat", "a dog", "the dog sat", "a cat ran", "the", "a", "home", "far ."]
MODULE = """
import os


def length(prompts, responses, weight):
    return {"score": [w * len(r) for w, r in zip(weight, responses)], "length": [len(r) for r in responses]}


def deadly(prompts, responses):
    os._exit(3)
"""


@per_row
def wordy(prompt, response, weight=1.0):
    """Row by row, with a part and a column."""
    words = len(response.split())
    return {"score": weight * (response.count("cat") - 0.1 * words) + len(prompt) / 7, "words": float(words)}


@per_row
def by_token(prompt, response, response_ids):
    """Numbers of the tokens of some responses, one number for the others."""
    numbers = [0.1 * (token % 5) for token in response_ids]
    return {"score": numbers if response_ids[0] % 2 else sum(numbers), "tokens": len(numbers)}


@per_row
def careful(prompt, response):
    if "dog" in response:
        raise ValueError("no dogs")
    return 1.0


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Rewards of a module, which processes can import: the name before the colon."""
    (tmp_path / "rewards_of_a_module.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "rewards_of_a_module"


def numbered(toy, rows=24, **spec):
    """A toy, and prompts of which each row has a weight of its own."""
    made = toy(reward=resolve(wordy), values=False)
    if spec:
        made.maker.spec = replace(made.maker.spec, **spec)
    prompts = replace(made.prompts(rows), columns={"weight": [row / 3 for row in range(rows)]})
    return made.maker, prompts


def assert_same(found, expected):
    assert found.responses == expected.responses and found.prompts == expected.prompts
    assert torch.equal(found.scores, expected.scores)
    assert found.score_parts.keys() == expected.score_parts.keys()
    for name, part in expected.score_parts.items():
        assert torch.equal(found.score_parts[name].nan_to_num(nan=7.5), part.nan_to_num(nan=7.5)), name
    assert torch.equal(found.rewards, expected.rewards)


@pytest.mark.parametrize("spec", [{}, {"on_length": "truncate", "stop_strings": ("cat",)}], ids=str)
def test_threads_score_as_one_call_afterwards(toy, spec):
    maker, prompts = numbered(toy, **spec)
    expected = maker.sample(prompts, 3)
    if spec:
        assert 0 < expected.samples.truncated.sum() < 24
    for workers in (1, 3, 50):
        concurrent = ConcurrentReward(maker.reward, "thread", workers)
        assert_same(replace(maker, concurrent=concurrent).sample(prompts, 3), expected)
        concurrent.close()


def test_rewards_of_tokens_are_scored_early_too(toy):
    maker, prompts = numbered(toy)
    maker.reward = RewardFunction([Member("by_token", by_token, 0.5), Member("wordy", wordy, 2.0)], single=False)
    expected = maker.sample(prompts, 3)
    assert (expected.rewards != 0).sum() > 24, "most are not on the last token"
    early = replace(maker, concurrent=ConcurrentReward(maker.reward, "thread", 3))
    assert_same(early.sample(prompts, 3), expected)
    early.close()


def test_processes_score_as_one_call_afterwards_and_may_die(toy, module):
    maker, prompts = numbered(toy)
    maker.reward = resolve(f"{module}:length")
    expected = maker.sample(prompts, 3)
    early = replace(maker, concurrent=ConcurrentReward(maker.reward, "process", 1))
    for _ in range(2):
        assert_same(early.sample(prompts, 3), expected)
    early.close()
    early.concurrent = ConcurrentReward(resolve(f"{module}:deadly"), "process", 1)
    with pytest.raises(RewardError, match=r"deadly.*ended before it had answered.*__main__"):
        early.sample(prompts, 3)


def test_complete_rows_are_scored_while_others_are_sampled_and_decoded_once(toy, monkeypatch):
    maker, prompts = numbered(toy)
    engine = TransformersEngine(TransformersEngineSettings(compact_share=0.0))
    sampling, scored_early, decoded = threading.Event(), [], []
    codec = maker.card.codec
    decode_batch = codec.decode_batch

    def counting(rows, special=False):
        decoded.extend(tuple(row) for row in rows)
        return decode_batch(rows, special)

    class Slow:
        """Waits for the first rows to be scored before it goes on."""

        def generate(self, requests):
            for response in engine.generate(requests):
                yield response
                if not scored_early:
                    assert sampling.wait(30), "no row was scored while others were sampled"

    def reward(rows, responses, columns):
        scored_early.append(len(rows))
        sampling.set()
        return resolve(wordy)(rows, responses, columns)

    monkeypatch.setattr(codec, "decode_batch", counting)
    engine.publish(PolicyWeights(maker.policy, maker.card), 0)
    early = replace(maker, engine=Slow(), concurrent=ConcurrentReward(reward, "thread", 2))
    found = early.sample(prompts, 3)
    lengths = found.samples.inputs.action_counts.tolist()
    whole = [
        (*prompt, *(ids[:length] if ids[length - 1] != 1 else ids[: length - 1]))
        for prompt, ids, length in zip(prompts.ids, found.samples.inputs.action_ids.tolist(), lengths, strict=True)
    ]
    for text in set(whole) - {tuple(prompt) for prompt in prompts.ids}:
        assert decoded.count(text) == whole.count(text)
    assert_same(found, replace(maker, engine=engine).sample(prompts, 3))


@pytest.mark.parametrize("workers", [2, 100])
def test_errors_name_their_rows(toy, workers):
    made = toy(reward=resolve(careful), values=False)
    prompts = made.prompts(24)
    with pytest.raises(RewardError, match="'careful' raised ValueError: no dogs"):
        made.maker.sample(prompts, 3)
    early = replace(made.maker, concurrent=ConcurrentReward(made.maker.reward, "thread", workers))
    with pytest.raises(RewardError, match="'careful' raised ValueError: no dogs") as caught:
        early.sample(prompts, 3)
    responses = replace(made.maker, reward=lambda *texts: resolve(lambda p, r: [0.0] * len(r))(*texts)).sample(
        prompts, 3
    )
    first = next(row for row, response in enumerate(responses.responses) if "dog" in response)
    assert str(first) in str(caught.value).split(":")[0].replace(",", "").split()
    if workers == 100:
        assert str(caught.value).startswith(f"row {first}: ")


def test_calls_that_have_not_begun_are_given_up_with_the_sampling(toy):
    called, hold = [], threading.Event()

    def reward(prompts, responses, columns):
        called.append(len(responses))
        hold.wait(30)
        return resolve(wordy)(prompts, responses, columns)

    class Broken:
        def generate(self, requests):
            for request in requests.take():
                yield Response(request, [3], [-1.0], FinishReason.EOS, [0])
            raise KeyboardInterrupt

    made = toy(reward=reward, values=False)
    pool = ConcurrentReward(reward, "thread", 1)
    with pytest.raises(KeyboardInterrupt):
        replace(made.maker, engine=Broken(), concurrent=pool).sample(made.prompts(4), 0)
    hold.set()
    pool._pool.shutdown(wait=True)
    assert called == [1]


PLUGIN = """
from lmrl import RewardSpec, hookimpl
from lmrl.models.policy import PolicyWeights
from lmrl.rewards.shape import Repetition, RepetitionSettings


@hookimpl
def lmrl_rewards():
    yield RewardSpec("elsewhere", Repetition, RepetitionSettings, concurrency="process")
    yield RewardSpec("here", Repetition, RepetitionSettings, concurrency="thread")
"""


def test_a_reward_says_how_it_may_be_called(tmp_path):
    def plain(prompts, responses):
        return [0.0] * len(responses)

    def threaded(prompts, responses, scale=1.0):
        return [scale] * len(responses)

    threaded.concurrency = "thread"

    file = tmp_path / "said.py"
    file.write_text(PLUGIN, encoding="utf-8")
    manager = PluginManager([file])
    assert resolve(plain).concurrency == "none"
    assert resolve(threaded).concurrency == "thread"
    assert resolve(threaded, {"scale": 2.0}).concurrency == "thread", "with settings bound to it"
    assert resolve("elsewhere", None, manager).concurrency == "process"
    weights = {"here": 1.0, "elsewhere": 1.0}
    assert resolve(weights, None, manager).concurrency == "process"
    assert resolve(weights | {"repetition": 1.0}, None, manager).concurrency == "none"
    threaded.concurrency = "threads"
    with pytest.raises(SettingsError, match="'threads'; expected one of none, thread, process"):
        resolve(threaded)
    with pytest.raises(SettingsError, match="cannot be sent to a process"):
        ConcurrentReward(resolve(plain), "process", 1)


def test_a_whole_run_is_the_same_with_all_of_it(tiny_folder, tmp_path, monkeypatch):
    sections = {"plain": {}, "all": {"engine": {"transformers": {"workers": 2}}, "scoring": {"concurrency": "thread"}}}
    found = []
    pools = []

    class KeptPool(ThreadPoolExecutor):
        """A pool that the garbage collector cannot close in place of the run."""

        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            pools.append(self)

    monkeypatch.setattr("lmrl.rewards.concurrent.ThreadPoolExecutor", KeptPool)
    for name, further in sections.items():
        mapping = {
            "model": str(tiny_folder),
            "run": {"folder": str(tmp_path / name), "device": "cpu"},
            "sampling": {"max_new_tokens": 8},
            "train": {"updates": 3, "prompts_per_update": 8, "learning_rate": 0.01},
            "evaluation": {"every": 2, "prompts": 2},
            **further,
        }
        rl(build(RLConfig, mapping), reward=wordy, prompts=TEXTS, progress=False)
        records = read_metrics(tmp_path / name)
        # Intervals are left out, too: those of a KL of 0 are missing, or as wide as rounding.
        left_out = re.compile("time/|.*_(low|high)$")
        found.append([{key: value for key, value in r.items() if not left_out.match(key)} for r in records])
    plain, everything = found
    assert len(plain) == len(everything) == 4
    for one, other in zip(plain, everything, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)
    threads = [thread for pool in pools for thread in pool._threads]
    assert threads, "no reward was called in a thread"
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "the pool outlived the run"
