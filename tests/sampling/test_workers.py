"""Sampling in several processes against sampling in one, and what happens when a process fails."""

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from lmrl.engines import LiveWeights, RequestQueue, SamplingSpec, open_engine, sample_batch
from lmrl.engines.batch import requests_of
from lmrl.engines.local.engine import TransformersEngine
from lmrl.engines.local.workers import ParallelEngine, share_requests
from lmrl.engines.settings import TransformersEngineSettings
from lmrl.errors import NonFiniteError, PromptError, SettingsError, WorkerError
from lmrl.models import load
from lmrl.models.lm_head import replaced_head
from lmrl.plugins import PluginManager
from lmrl.testing import write_tiny_model
from lmrl_nlpo.mask import MaskPolicy

PROMPTS = [[3, 5], [3], [4, 6, 7, 8], [3, 5], [9], [3, 5], [8, 8, 4], [3]]


@pytest.fixture(scope="module")
def engine():
    """One engine for all tests: its processes take seconds to start."""
    engine = ParallelEngine(TransformersEngineSettings(workers=2, rows=6))
    yield engine
    engine.close()


@pytest.fixture
def model(tmp_path):
    return load(write_tiny_model(tmp_path / "model"))


def spec_of(model, **kwargs):
    values = {"max_new_tokens": 12, "eos_ids": model.card.eos_ids, "context_length": model.card.context_length}
    return SamplingSpec(**(values | kwargs))


def assert_same(found, expected):
    for name in ("ids", "lengths", "sampled", "trajectory"):
        assert torch.equal(getattr(found.inputs, name), getattr(expected.inputs, name)), name
    for name in ("action_mask", "terminated", "truncated", "finish_reasons", "group"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.allclose(found.sampler_logprobs, expected.sampler_logprobs, atol=1e-5)


STOPPED = {"temperature": 0.7, "stop_strings": ("cat",), "on_length": "truncate"}


@pytest.mark.parametrize("options", [{}, STOPPED], ids=str)
@pytest.mark.parametrize("prompts", [PROMPTS * 3, PROMPTS[:1], [PROMPTS[0]] * 9], ids=["many", "one", "equal"])
def test_as_in_one_process(engine, model, options, prompts):
    spec, told = spec_of(model, **options), {}

    def on_response(response):
        assert response.request.id not in told, "a request was answered twice"
        told[response.request.id] = response.ids

    threads = torch.get_num_threads()
    found = sample_batch(engine, model.model, prompts, spec, 5, model.card.codec, on_response)
    assert torch.get_num_threads() == threads
    expected = sample_batch(TransformersEngine(), model.model, prompts, spec, 5, model.card.codec)
    assert_same(found, expected)
    lengths = expected.inputs.action_counts.tolist()
    rows = [row[:length] for row, length in zip(expected.inputs.action_ids.tolist(), lengths, strict=True)]
    assert told == dict(enumerate(rows))


def test_one_process_tells_of_each_row_once_and_while_it_samples(model):
    engine = TransformersEngine(TransformersEngineSettings(compact_share=0.0, rows=16))
    engine.publish(LiveWeights(model.model), 0)
    requests = requests_of(PROMPTS * 3, spec_of(model), 5)
    batches = list(engine.batches(RequestQueue(requests, closed=True)))
    assert len(batches) > 2
    assert sorted(one.request.id for batch in batches for one in batch) == list(range(24))


def test_steps_of_an_optimizer_are_seen_and_nothing_is_sent_again(engine, model):
    policy, spec = model.model, spec_of(model)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.05, foreach=True)
    sample_batch(engine, policy, PROMPTS, spec, 0)
    version, pointers = engine._model.version, [p.data_ptr() for p in policy.parameters()]
    before = sample_batch(TransformersEngine(), policy, PROMPTS, spec, 0)
    for _ in range(3):
        policy(torch.tensor([[3, 4, 5]])).logits.logsumexp(-1).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = sample_batch(TransformersEngine(), policy, PROMPTS, spec, 0)
    assert not torch.equal(before.sampler_logprobs[:, 0], after.sampler_logprobs[:, 0])
    assert_same(sample_batch(engine, policy, PROMPTS, spec, 0), after)
    assert engine._model.version == version and pointers == [p.data_ptr() for p in policy.parameters()]


def test_other_tensors_and_other_models_are_sent(engine, model, tmp_path):
    spec, other = spec_of(model), load(write_tiny_model(tmp_path / "other", seed=1)).model
    head = torch.nn.Linear(16, 15, bias=False)
    sample_batch(engine, model.model, PROMPTS, spec, 0)
    with replaced_head(model.model, head):
        assert_same(
            sample_batch(engine, model.model, PROMPTS, spec, 0),
            sample_batch(TransformersEngine(), model.model, PROMPTS, spec, 0),
        )
    for one in (model.model, other, model.model):
        assert_same(
            sample_batch(engine, one, PROMPTS, spec, 0), sample_batch(TransformersEngine(), one, PROMPTS, spec, 0)
        )
    weight = model.model.lm_head.weight
    weight.data = -weight.data
    assert_same(
        sample_batch(engine, model.model, PROMPTS, spec, 0),
        sample_batch(TransformersEngine(), model.model, PROMPTS, spec, 0),
    )


def test_autocast_reaches_the_processes(engine, model):
    spec = spec_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = sample_batch(engine, model.model, PROMPTS, spec, 0)
        expected = sample_batch(TransformersEngine(), model.model, PROMPTS, spec, 0)
    exact = sample_batch(TransformersEngine(), model.model, PROMPTS, spec, 0)
    assert not torch.equal(expected.sampler_logprobs[:, 0], exact.sampler_logprobs[:, 0])
    assert torch.allclose(found.sampler_logprobs[:, 0], expected.sampler_logprobs[:, 0], atol=1e-2)


def test_two_models_in_one_are_sampled_here(engine, model, caplog):
    spec = spec_of(model)
    restricted = MaskPolicy(model.model, spec, 0.8).restrict(model.model)
    with caplog.at_level(logging.WARNING):
        found = [sample_batch(engine, restricted, PROMPTS, spec, 0) for _ in range(2)]
    assert_same(found[0], sample_batch(TransformersEngine(), restricted, PROMPTS, spec, 0))
    assert [r.getMessage().count("RestrictedModel") for r in caplog.records] == [1]


def test_a_process_that_is_killed_in_a_call_is_an_error_and_no_wait(engine, model):
    spec = spec_of(model, eos_ids=(), max_new_tokens=40)
    sample_batch(engine, model.model, PROMPTS, spec, 0)
    victim, survivor = (worker.process for worker in engine._workers)
    os.kill(victim.pid, signal.SIGSTOP)  # so that it is in the call for certain
    timer = threading.Timer(0.5, os.kill, (victim.pid, signal.SIGKILL))
    timer.start()
    with pytest.raises(WorkerError, match=rf"{victim.pid} ended by the signal SIGKILL.*memory.*workers=1"):
        sample_batch(engine, model.model, PROMPTS, spec, 0)
    assert survivor.poll() is not None and not engine._workers


def test_errors_reach_the_caller_and_the_next_call_works(model, tmp_path):
    engine, spec = ParallelEngine(TransformersEngineSettings(workers=1)), spec_of(model)
    for prompts, message in [([], "no prompts"), ([[3], []], "prompt 1")]:
        with pytest.raises(PromptError, match=message):
            sample_batch(engine, model.model, prompts, spec, 0)
    assert not engine._workers, "refused before any process was started"
    broken = load(write_tiny_model(tmp_path / "broken"))
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="logits") as caught:
        sample_batch(engine, broken.model, PROMPTS, spec, 0)
    assert "local/engine.py" in str(caught.value.__cause__), "the traceback of the process"
    with pytest.raises(WorkerError, match=r"(?s)Traceback.*engine.*IndexError"):
        sample_batch(engine, model.model, [[3], [99]], spec, 0)  # an id outside the vocabulary
    (process,) = (worker.process for worker in engine._workers)
    assert process.poll() is None, "nobody else was at work, so it goes on"
    expected = sample_batch(TransformersEngine(), model.model, PROMPTS, spec, 0)
    assert_same(sample_batch(engine, model.model, PROMPTS, spec, 0), expected)
    assert [worker.process for worker in engine._workers] == [process]

    def on_response(response):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_batch(engine, model.model, PROMPTS, spec, 0, None, on_response)
    assert not engine._workers and process.poll() is not None
    assert_same(sample_batch(engine, model.model, PROMPTS, spec, 0), expected)
    (process,) = (worker.process for worker in engine._workers)
    del engine, caught
    gc.collect()
    assert process.poll() is not None, "it ends with the engine"


SCRIPT = """
import sys, time
from lmrl.models import load
from lmrl.engines import LiveWeights, RequestQueue, SamplingSpec, open_engine, sample_batch
from lmrl.engines.batch import requests_of
from lmrl.engines.settings import TransformersEngineSettings
from lmrl.engines.local.workers import ParallelEngine
model = load(sys.argv[1]).model
engine = ParallelEngine(TransformersEngineSettings(workers=1))
sample_batch(engine, model, [[3]] * 4, SamplingSpec(max_new_tokens=4), 0)
print(engine._workers[0].process.pid, flush=True)
spec = SamplingSpec(max_new_tokens=40, eos_ids=(), context_length=None)
while True:
    sample_batch(engine, model, [[3]] * 400, spec, 0)
"""


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks processes up in /proc")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_parent_and_need_no_guard_in_its_script(model, tmp_path, end):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, script, model.card.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    worker = int(process.stdout.readline())
    time.sleep(0.3)
    process.send_signal(end)
    errors = process.communicate(timeout=60)[1]
    assert ("KeyboardInterrupt" in errors) == (end == signal.SIGINT) and "Fatal" not in errors
    deadline = time.monotonic() + 30
    while not gone(worker):
        assert time.monotonic() < deadline, "the process outlived its parent"
        time.sleep(0.05)


def test_shares_keep_prompts_together_where_none_has_to_wait():
    groups = [[row] * 4 for row in range(1, 17)]
    prompts = [[number] * (1 + number % 5) for group in groups for number in group]

    def shares(prompts, workers):
        found = share_requests(requests_of(prompts, SamplingSpec(max_new_tokens=60), 0), workers)
        return [[request.id for request in share] for share in found]

    first, second = shares(prompts, 2)
    assert sorted(first + second) == list(range(64)) and len(first) == 32
    assert not {tuple(prompts[row]) for row in first} & {tuple(prompts[row]) for row in second}
    assert [len(share) for share in shares([[5]] * 60, 3)] == [20, 20, 20]
    assert sorted(map(len, shares([[5]], 3))) == [0, 0, 1]


def test_the_setting_chooses_the_engine():
    spec = PluginManager().get("engine", "transformers")
    assert type(open_engine(spec, spec.settings())) is TransformersEngine
    assert type(spec.build(spec.settings(workers=2))) is ParallelEngine
    with pytest.raises(SettingsError, match=r"engine\.transformers\.workers is 0"):
        spec.settings(workers=0)


def test_what_cannot_work_is_refused(model, monkeypatch):
    engine = ParallelEngine(TransformersEngineSettings(workers=2))

    class OnDevice:
        device = torch.device("cuda:0")

    with pytest.raises(SettingsError, match="model is on cuda:0"):
        sample_batch(engine, OnDevice(), PROMPTS, spec_of(model), 0)
    monkeypatch.setattr(os, "statvfs", lambda path: type("Space", (), {"f_bavail": 0, "f_frsize": 4096}))
    if os.path.isdir("/dev/shm"):
        with pytest.raises(SettingsError, match="shm-size"):
            sample_batch(engine, model.model, PROMPTS, spec_of(model), 0)
