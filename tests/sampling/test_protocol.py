"""Engines: a response depends on its request alone, not on other requests or their order."""

import gc
import random
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmrl.engines import (
    FinishReason,
    LiveWeights,
    Request,
    RequestQueue,
    SamplingSpec,
    derive_seed,
    generate_all,
    open_engine,
)
from lmrl.engines.local.engine import TransformersEngine
from lmrl.engines.local.llama_decoder import LlamaDecoder
from lmrl.engines.local.places import Specs
from lmrl.engines.local.workers import ParallelEngine
from lmrl.engines.settings import TransformersEngineSettings
from lmrl.errors import EngineError, PluginError, RenamedError, SettingsError
from lmrl.models import load
from lmrl.plugins.specs import EngineSpec
from lmrl.seeds import token_uniforms
from lmrl.testing import write_tiny_model
from lmrl_best_of_n import BestOfN, BestOfNSettings
from lmrl_nlpo.mask import MaskPolicy

PROMPTS = [[3, 5], [3], [4, 6, 7, 8], [3, 5], [9], [3, 5], [8, 8, 4], [3]]
PLAIN = SamplingSpec(max_new_tokens=12, eos_ids=(1,))
SPECS = [
    PLAIN,
    SamplingSpec(max_new_tokens=5, eos_ids=(1,), temperature=0.0),
    SamplingSpec(max_new_tokens=20, eos_ids=(1, 4), temperature=1.4, forbidden_ids=(5,)),
    SamplingSpec(max_new_tokens=9, context_length=7, on_length="truncate"),
    SamplingSpec(max_new_tokens=12, eos_ids=(1,), stop_strings=("cat",)),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module", params=["fast", "general", "general, 3 rows", "2 processes", "best of 1"])
def engine(request, model):
    settings = {
        "fast": TransformersEngineSettings(),
        "general": TransformersEngineSettings(fast_path=False),
        "general, 3 rows": TransformersEngineSettings(fast_path=False, rows=3, compact_share=0.0),
        "2 processes": TransformersEngineSettings(workers=2, rows=6),
    }
    if request.param == "best of 1":
        engine = BestOfN(BestOfNSettings(n=1, reward="length", settings={"maximum": 4}))
    elif request.param == "2 processes":
        engine = ParallelEngine(settings[request.param])
    else:
        engine = TransformersEngine(settings[request.param])
    engine.publish(LiveWeights(model.model, model.card.codec), 7)
    yield engine
    engine.close()


def mixed(count=16):
    return [
        Request(PROMPTS[row % 8], SPECS[row % 5], derive_seed(3, "row", row), group=row % 8, id=row)
        for row in range(count)
    ]


def same(found, expected):
    assert (found.ids, found.finish) == (expected.ids, expected.finish)
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def alone(model, requests):
    """The responses of the plain engine to each request alone."""
    engine = TransformersEngine(TransformersEngineSettings(rows=1, fast_path=False))
    engine.publish(LiveWeights(model.model, model.card.codec), 0)
    return [generate_all(engine, [Request(one.ids, one.spec, one.seed)])[0] for one in requests]


def test_a_response_depends_on_its_request_alone(engine, model):
    requests = mixed()
    expected = alone(model, requests)
    assert len({response.finish for response in expected}) == 4, "the case should end in every way"
    for found, wanted in zip(generate_all(engine, requests), expected, strict=True):
        same(found, wanted)
        assert found.request in requests and found.policy_version == [7] * len(found.ids)
    shuffled = list(requests)
    random.Random(0).shuffle(shuffled)
    by_id = {response.request.id: response for response in engine.generate(RequestQueue(shuffled, closed=True))}
    for request, wanted in zip(requests, expected, strict=True):
        same(by_id[request.id], wanted)


def test_requests_may_come_while_the_engine_works(engine, model):
    """Every response asks for one that continues it, twice over, as turns of a conversation do."""
    requests = mixed(6)
    queue, found = RequestQueue(requests), []
    for response in engine.generate(queue):
        found.append(response)
        if len(found) <= 12:
            old = response.request
            ids = [*old.ids, *response.ids, 4][-9:]  # a turn's prompt may be longer than all before it
            spec = SamplingSpec(max_new_tokens=3 + len(found), eos_ids=(1,))
            queue.add([Request(ids, spec, derive_seed(old.seed, "turn"), old.group, old.id + 6)])
        if len(found) == 12:
            queue.close()
    assert sorted(response.request.id for response in found) == list(range(18))
    for response, wanted in zip(found, alone(model, [one.request for one in found]), strict=True):
        same(response, wanted)


def test_requests_come_from_another_thread(engine, model):
    requests, queue = mixed(10), RequestQueue()

    def ask():
        for request in requests:
            queue.add([request])
        queue.close()

    timer = threading.Timer(0.05, ask)  # the engine waits first
    timer.start()
    found = sorted(engine.generate(queue), key=lambda response: response.request.id)
    timer.join()
    for response, wanted in zip(found, alone(model, requests), strict=True):
        same(response, wanted)


def test_nothing_is_asked(engine):
    assert list(engine.generate(RequestQueue([], closed=True))) == []


def test_an_iterator_that_is_dropped_leaves_the_engine_usable(engine, model):
    requests = mixed()
    next(iter(engine.generate(RequestQueue(requests, closed=True))))
    for found, wanted in zip(generate_all(engine, requests), alone(model, requests), strict=True):
        same(found, wanted)


@pytest.mark.parametrize("settings", [{}, {"workers": 2, "rows": 4}], ids=str)
def test_several_models_under_their_names(model, tmp_path, settings):
    other = load(write_tiny_model(tmp_path / "other", seed=5))
    engine = (ParallelEngine if settings else TransformersEngine)(TransformersEngineSettings(**settings))
    engine.publish(LiveWeights(model.model), 1)
    engine.publish(LiveWeights(other.model), 2, "reference")
    requests = [
        Request(PROMPTS[row], PLAIN, row, id=row, model="reference" if row % 3 else "policy") for row in range(8)
    ]
    found = generate_all(engine, requests)
    for number, (response, request) in enumerate(zip(found, requests, strict=True)):
        same(response, alone(other if number % 3 else model, [request])[0])
        assert set(response.policy_version) == {2 if number % 3 else 1}
    engine.close()


@pytest.mark.parametrize("settings", [{}, {"workers": 1, "rows": 4}], ids=str)
def test_weights_that_may_change_are_copied_and_others_are_live(tmp_path, settings):
    model = load(write_tiny_model(tmp_path / "model")).model
    engine = (ParallelEngine if settings else TransformersEngine)(TransformersEngineSettings(**settings))
    requests = [Request(prompt, PLAIN, row, id=row) for row, prompt in enumerate(PROMPTS)]
    engine.publish(LiveWeights(model, synchronous=False), 0)
    before = generate_all(engine, requests)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    for found, wanted in zip(generate_all(engine, requests), before, strict=True):
        same(found, wanted)
    engine.publish(LiveWeights(model), 1)
    assert [response.ids for response in generate_all(engine, requests)] != [response.ids for response in before]
    assert all(parameter.requires_grad for parameter in model.parameters())
    engine.close()


class Counting(TransformersEngine):
    """Counts decode steps by the rows decoded side by side."""

    def __init__(self, settings=None):
        super().__init__(settings)
        self.rows = []

    def _decoder(self, *arguments):
        decoder = super()._decoder(*arguments)
        step = decoder.step

        def counted(ids, done):
            self.rows.append(len(ids))
            return step(ids, done)

        decoder.step = counted
        return decoder


def test_many_requests_that_come_late_are_decoded_side_by_side(model):
    """The places of a decoder never become more, so a batch with few of them makes way for one with many."""
    engine = Counting()
    engine.publish(LiveWeights(model.model), 0)
    first = [Request([3, 5], SamplingSpec(max_new_tokens=2 + row), row, id=row) for row in range(32)]
    queue, found = RequestQueue(first), []
    for response in engine.generate(queue):
        found.append(response)
        if len(found) == 32:
            queue.add([Request([4], SamplingSpec(max_new_tokens=20), row, id=32 + row) for row in range(32)])
            queue.close()
    assert len(found) == 64 and len(engine.rows) < 33 + 22, "one more batch of 32 rows, not 32 batches of one"


def test_nothing_overtakes_a_request_that_waits_for_another_decoder(model):
    engine = TransformersEngine(TransformersEngineSettings(rows=2, compact_share=0.0))
    engine.publish(LiveWeights(model.model), 0)
    engine.publish(LiveWeights(model.model), 0, "judge")
    queue = RequestQueue([Request([3], PLAIN, row, id=row) for row in range(2)])
    order = []
    for response in engine.generate(queue):
        order.append(response.request.id)
        if len(order) == 1:
            queue.add([Request([3], PLAIN, 9, id=99, model="judge")])
        if len(order) < 12:
            queue.add([Request([3], PLAIN, len(order), id=10 + len(order))])
        elif len(order) == 12:
            queue.close()
    assert order.index(99) <= 3 and len(order) == 2 + 1 + 11


def test_requests_without_ids_keep_their_own_prompts(model):
    for settings in ({}, {"workers": 2}):
        engine = (ParallelEngine if settings else TransformersEngine)(TransformersEngineSettings(**settings))
        engine.publish(LiveWeights(model.model), 0)
        requests = [Request(prompt, PLAIN, row) for row, prompt in enumerate(PROMPTS)]
        found = list(engine.generate(RequestQueue(requests, closed=True)))
        assert sorted(map(list, (one.request.ids for one in found))) == sorted(PROMPTS)
        for response in found:
            same(response, alone(model, [response.request])[0])
        engine.close()


def test_limits_of_their_own_make_no_distributions_of_their_own():
    specs = Specs(10, torch.device("cpu"))
    limits = [SamplingSpec(max_new_tokens=n, context_length=n + 9, eos_ids=(1,)) for n in (1, 2, 3)]
    assert {specs.number(spec) for spec in limits} == {0}
    assert [specs.number(spec) for spec in (SamplingSpec(eos_ids=(2,)), SamplingSpec(temperature=0.5))] == [1, 2]


def test_prefilled_prompts_are_dropped_once_nothing_needs_them(model):
    decoder = LlamaDecoder(model.model, [[3 + number % 9] for number in range(100)], 50, turnover=True)
    decoder.admit(torch.arange(2), [0, 1])  # the first stays, the other turns over
    for number in range(2, 100):
        decoder.admit(torch.tensor([1]), [number])
        assert len(decoder.ready) <= 2 + 8, "the active ones and those prefilled ahead"


def test_a_model_that_its_owner_drops_is_not_kept(tmp_path):
    engine, folder = TransformersEngine(), write_tiny_model(tmp_path / "model")
    owned = load(folder)
    engine.publish(LiveWeights(owned.model, owned.card.codec), 0)
    generate_all(engine, [Request([3], PLAIN, 0)])
    gone = weakref.ref(owned.model)
    del owned
    gc.collect()
    assert gone() is None
    with pytest.raises(EngineError, match="the model that was published is gone"):
        generate_all(engine, [Request([3], PLAIN, 0)])


def test_a_restricted_model_is_copied_too(model):
    restricted = MaskPolicy(model.model, PLAIN, 0.8).restrict(model.model)
    engine = TransformersEngine()
    found = []
    for synchronous in (True, False):
        engine.publish(LiveWeights(restricted, synchronous=synchronous), 0)
        found.append(generate_all(engine, [Request([3, 5], PLAIN, 0)])[0].ids)
    assert found[0] == found[1]


def test_what_is_out_of_turn_is_refused(model):
    engine = TransformersEngine()
    with pytest.raises(EngineError, match=r"names the model .policy.; published: none\. Call publish"):
        generate_all(engine, [Request([3], PLAIN, 0)])
    engine.publish(LiveWeights(model.model), 0)
    with pytest.raises(EngineError, match="names the model 'teacher'; published: policy"):
        generate_all(engine, [Request([3], PLAIN, 0, model="teacher")])
    with pytest.raises(SettingsError, match="publish weights with their codec"):
        generate_all(engine, [Request([3], SPECS[4], 0)])
    running = engine.generate(RequestQueue(mixed(4)[:4:2], closed=True))
    next(running)
    with pytest.raises(EngineError, match="published while responses are being sampled"):
        engine.publish(LiveWeights(model.model), 1)
    with pytest.raises(EngineError, match="exhaust or close the first iterator"):
        next(engine.generate(RequestQueue(mixed(1), closed=True)))
    running.close()
    engine.publish(LiveWeights(model.model), 1)
    assert generate_all(engine, [Request([3], PLAIN, 0)])[0].policy_version[0] == 1
    with pytest.raises(ValueError, match="closed"):
        RequestQueue([], closed=True).add(mixed(1))


class Forgetful(TransformersEngine):
    """Leaves out its second response, or gives it twice."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def generate(self, requests):
        for number, response in enumerate(super().generate(requests)):
            yield from [response] * (self.times if number == 1 else 1)


@pytest.mark.parametrize(("times", "message"), [(0, "responses to 3 of 4 requests"), (2, "two responses to request")])
def test_an_engine_that_leaves_out_or_repeats_is_found_out(model, times, message):
    engine = Forgetful(times)
    engine.publish(LiveWeights(model.model), 0)
    with pytest.raises(EngineError, match=message):
        generate_all(engine, mixed(4)[:1] + [Request([3], PLAIN, row, id=row) for row in (1, 2, 3)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logprobs": [-1.0] * 40}, "tokens, 40 log-probabilities"),
        ({"policy_version": []}, "0 versions"),
        ({"finish": FinishReason.NONE}, "has no finish reason"),
        ({"request": Request([3], PLAIN, 0, id=77)}, "request 77 is not among the requests"),
    ],
    ids=str,
)
def test_malformed_responses_are_found_out(model, change, message):
    class Malformed(TransformersEngine):
        def generate(self, requests):
            for response in super().generate(requests):
                yield replace(response, **change)

    engine = Malformed()
    engine.publish(LiveWeights(model.model), 0)
    with pytest.raises(EngineError, match=message):
        generate_all(engine, [Request([3], PLAIN, 0)])


def test_seeds_of_64_bits_are_seeds(model):
    engine = TransformersEngine()
    engine.publish(LiveWeights(model.model), 0)
    found = generate_all(engine, [Request([3], PLAIN, seed, id=n) for n, seed in enumerate((2**64 - 1, -1, 2**63))])
    assert found[0].ids == found[1].ids


def test_engines_of_version_0_1_are_refused_with_what_changed():
    class Old:
        def generate(self, model, prompts, spec, seed, codec=None):
            raise AssertionError("never called")

    spec = EngineSpec("old", lambda settings: Old(), TransformersEngineSettings)
    for option in ("streams", "exact"):
        with pytest.raises(RenamedError, match=rf"EngineSpec\({option}=.*capabilities.*docs/migration\.md"):
            EngineSpec("old", lambda settings: Old(), TransformersEngineSettings, **{option: True})
    with pytest.raises(PluginError, match=r"Old has no publish, close, capabilities.*docs/migration\.md"):
        open_engine(spec, TransformersEngineSettings())


def splitmix(seed, count):
    """SplitMix64 with Python's integers."""
    state, found = seed % 2**64, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        bits = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % 2**64
        found.append(((bits ^ (bits >> 31)) >> 11) * 2.0**-53)
    return found


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5))
def test_uniforms_are_those_of_the_published_generator(seeds):
    found = token_uniforms(torch.tensor(seeds)[:, None], torch.arange(20))
    assert found.dtype == torch.float64
    assert found.tolist() == [splitmix(seed, 20) for seed in seeds]


def test_uniforms_look_independent_over_rows_and_tokens():
    seeds = torch.tensor([derive_seed(0, "row", row) for row in range(2000)])
    found = token_uniforms(seeds[:, None], torch.arange(64))
    assert found.min() >= 0 and found.max() < 1
    counts = torch.histc(found, 50, 0, 1)
    assert ((counts - 2560) ** 2 / 2560).sum() < 95  # chi squared, 49 degrees: once in 10,000
    for one, other in ((found[:, :-1], found[:, 1:]), (found[:-1], found[1:])):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.012
