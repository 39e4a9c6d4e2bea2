"""The throughput suite's parts: its arithmetic by hand, its models, and that the sides compute the same."""

import copy
import importlib.util
import math

import pytest
import torch

from lmrl.errors import SettingsError
from lmrl.text.card import load_card
from lmrl_suites.throughput import ThroughputSettings, markdown
from lmrl_suites.throughput import flops as work
from lmrl_suites.throughput.episodes import PlainBatch
from lmrl_suites.throughput.learner import Learner
from lmrl_suites.throughput.memory import run_job
from lmrl_suites.throughput.sampling import response_lengths, sample_generate, sample_lmrl, stop_probability
from lmrl_suites.throughput.setting import Cell, cells
from lmrl_suites.throughput.shapes import SHAPES, Shape, ShareOfWords, prompt_text, write_model
from lmrl_suites.throughput.stage import Stage
from lmrl_suites.throughput.table import rows_of, target_of
from lmrl_suites.throughput.timing import Comparison, Host, Side, compare
from lmrl_suites.throughput.update import PaddedBatch, PaddedLearner

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
SMALL = Shape(vocabulary=10, width=4, layers=2, heads=2, inner=6)


@pytest.fixture
def stage(tmp_path):
    settings = ThroughputSettings(smoke=True)
    return Stage.write(settings, "smoke", tmp_path, None)


def test_ratios_are_those_of_neighbouring_rounds():
    mine, base = Side("lmrl", [10, 20], [2.0, 2.0]), Side("generate", [10, 10], [4.0, 1.0])
    comparison = Comparison("tokens", [mine, base], "generate")
    assert mine.rates == [5.0, 10.0] and comparison.ratios(mine) == [2.0, 1.0] and comparison.ratios(base) == []


def test_a_round_of_every_side_precedes_the_next_round_of_any():
    order = []

    def side(name):
        return lambda number: order.append((name, number)) or 1

    comparison = compare("calls", {"a": side("a"), "b": side("b")}, rounds=2, baseline="a")
    assert order == [(name, number) for number in (0, 1, 2) for name in "ab"]
    assert [len(one.seconds) for one in comparison.sides] == [2, 2]


def test_the_formulas_of_the_work_by_hand():
    body = 2 * (4 * 16 + 3 * 4 * 6 + 2 * 4) + 4
    assert SMALL.body == body and SMALL.parameters == body + 40
    # A prompt of 3 and a response of 2: positions 1 to 3 of the prompt, and the response's first token as the fourth.
    attention = 4 * 2 * 4
    assert work.sampling_flops(SMALL, 3, 1, [2]) == 2 * body * 4 + 2 * 40 * 2 + attention * (1 + 2 + 3 + 4)
    assert work.scoring_flops(SMALL, 3, [2]) == 2 * body * 4 + 2 * 40 * 2 + attention * (1 + 2 + 3 + 4)
    assert work.update_flops(SMALL, 3, [2, 1]) == 3 * work.scoring_flops(SMALL, 3, [2, 1])
    # Two samples of one prompt read it once.
    twice = work.sampling_flops(SMALL, 3, 1, [2, 2])
    assert twice == 2 * body * 5 + 2 * 40 * 4 + attention * (1 + 2 + 3 + 4 + 4)
    assert work.decode_step_flops(SMALL, 2, 5) == 2 * body * 2 + 2 * 40 * 2 + attention * 5 * 2
    assert work.decode_step_bytes(SMALL, 2, 5, 4) == 4 * (body + 40 + 2 * 2 * 4 * 5 * 2)


def test_the_floor_is_the_larger_of_memory_and_arithmetic():
    operations, read = work.decode_step_flops(SMALL, 2, 5), work.decode_step_bytes(SMALL, 2, 5, 4)
    assert work.decode_floor(SMALL, 2, 5, 4, 1.0, math.inf) == operations
    assert work.decode_floor(SMALL, 2, 5, 4, math.inf, 1.0) == read


@pytest.mark.parametrize("size", ["smoke", "1M"])
def test_a_written_model_has_the_parameters_of_its_shape(tmp_path, size):
    from lmrl.models import load

    model = load(write_model(tmp_path / size, SHAPES[size], 16)).model
    assert sum(parameter.numel() for parameter in model.parameters()) == SHAPES[size].parameters


def test_sizes_are_named_by_their_parameters():
    for size, shape in SHAPES.items():
        if size != "smoke":
            named = float(size[:-1]) * (1e9 if size.endswith("B") else 1e6)
            assert shape.parameters == pytest.approx(named, rel=0.25), size


def test_one_token_in_sixteen_ends_a_response(tmp_path):
    settings = ThroughputSettings(sizes=["1M"])
    stage = Stage.write(settings, "1M", tmp_path, None)
    share = stop_probability(stage, rows=256)  # 16384 tokens: a deviation of 0.0019
    assert share == pytest.approx(1 / 16, abs=0.008)


def test_the_tokenizer_reads_prompts_back(stage):
    codec = load_card(stage.folder).codec
    assert [codec.encode(text) for text in stage.texts(3)] == stage.distinct_prompts(3)
    assert prompt_text([3, 9]) == "w3 w9"


def test_the_reward_is_a_share_of_words():
    reward = ShareOfWords(4)
    assert reward(["", ""], ["w1 w2 w7 w9", ""]) == [0.5, 0.0] == reward.for_trl(["w1 w2 w7 w9", ""])
    assert reward.means == [0.25, 0.25]


def test_lengths_count_up_to_the_end():
    response = torch.tensor([[5, 9, 5, 5], [9, 0, 0, 0], [5, 5, 5, 5]])
    assert response_lengths(response, [9]).tolist() == [2, 1, 4]
    assert response_lengths(response, []).tolist() == [4, 4, 4]


def test_both_samplers_draw_responses_of_the_same_lengths(stage):
    def mean(sample):
        cell = Cell("sampling", "smoke", "varying", 1, 64)
        lengths = [length for seed in range(4) for length in sample(stage, cell, stage.prompts(cell), 8, seed)]
        assert all(1 <= length <= 8 for length in lengths)
        return sum(lengths) / len(lengths)

    # E[min(geometric, 8)] with p = 1/16; 256 rows leave a deviation of 0.14.
    expected = (1 - (15 / 16) ** 8) * 16
    assert mean(sample_lmrl) == pytest.approx(expected, abs=0.8) and mean(sample_generate) == pytest.approx(
        expected, abs=0.8
    )


@pytest.mark.parametrize(("algorithm", "group_size", "rows"), [("grpo", 4, 8), ("grpo", 4, 3), ("reinforce", 1, 8)])
def test_the_padded_update_has_the_gradient_of_lmrl(stage, algorithm, group_size, rows):
    cell = Cell("update", "smoke", "varying", group_size, 8)
    learner = Learner(stage, cell, algorithm)
    learner.number = 1  # a batch in which lengths differ
    rollout = learner.rollout()
    model = copy.deepcopy(learner.trainer.maker.policy.model)
    with torch.no_grad():  # away from the reference, so that the KL has a gradient
        for one in (model, learner.trainer.maker.policy.model):
            one.model.norm.weight.mul_(1.5)
    assert len(set(rollout.action_mask.sum(1).tolist())) > 1
    optimizer = learner.trainer.updater.optimizer
    state = copy.deepcopy(optimizer.state_dict())
    advantages = optimizer.advantages(rollout).advantages
    optimizer.load_state_dict(state)
    padded = PaddedLearner(model, rows)
    padded.accumulate(PaddedBatch.of(rollout, advantages))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    learner.learn(_behaviour_of_now(learner, rollout))
    learner.close()
    expected = dict(learner.trainer.maker.policy.model.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-6, rtol=1e-5)


def _behaviour_of_now(learner, rollout):
    """The rollout as if the moved policy had sampled it: every ratio is 1, as the padded update takes it."""
    from dataclasses import replace

    from lmrl.models.text_policy import score_logprobs

    maker = learner.trainer.maker
    now = score_logprobs(maker.policy, rollout.inputs, maker.spec, 2048)
    return replace(rollout, sampler_logprobs=now, proximal_logprobs=now)


def test_the_plain_batch_learns_from_its_own_samples(stage):
    batch = PlainBatch(stage, Cell("episodes", "smoke", "varying", 4, 8, "grpo"))
    before = [parameter.clone() for parameter in batch.reference.parameters()]
    batch.learner.optimizer.param_groups[0]["lr"] = 1e-2
    lengths = batch.step(1)
    assert len(lengths) == 8 and all(1 <= length <= 8 for length in lengths)
    moved = zip(batch.learner.model.parameters(), batch.reference.parameters(), before, strict=True)
    assert all(torch.equal(frozen, start) and not torch.equal(now, start) for now, frozen, start in moved)


def test_a_host_takes_the_last_turn_of_every_round():
    order = []

    def loop(between):
        while between():
            order.append("host")

    sides = {"a": lambda number: order.append(number) or 1}
    comparison = compare("calls", sides, rounds=2, baseline="trainer", host=Host("trainer", loop, 5))
    assert order == [0, "host", 1, "host", 2, "host"]
    mine, host = comparison.sides
    assert host.counts == [5, 5] and len(mine.seconds) == len(host.seconds) == 2
    assert len(comparison.ratios(mine)) == 2


@needs_trl
def test_trl_lets_others_take_their_turn_between_two_steps(stage):
    from lmrl_suites.throughput.trl_peer import TRLTrainer

    trainer = TRLTrainer(stage, Cell("episodes", "smoke", "full", 4, 8, "grpo"), "grpo")
    steps = []

    def between():
        steps.append(trainer.trainer.state.global_step)
        return len(steps) < 3

    trainer.train(between)
    assert steps == [0, 1, 2] and len(trainer.reward.means) == 2 and trainer.lengths == [8, 8]


def test_a_job_of_the_memory_process_says_what_it_holds(stage):
    from dataclasses import asdict

    settings = {**asdict(stage.settings), "smoke": False}
    cell = asdict(Cell("memory", "smoke", "full", 4, 8, "grpo"))
    job = {"settings": settings, "size": "smoke", "folder": str(stage.folder), "runs": str(stage.runs), "cell": cell}
    found = run_job({**job, "side": "lmrl"})
    assert found["imported_bytes"] > 1e8 and 0 <= found["peak_bytes"] < found["imported_bytes"]


@pytest.mark.parametrize("size", ["1M", "10M", "60M", "1B"])
def test_a_cpu_leaves_out_what_takes_longest_unless_asked(size):
    def planned(**settings):
        return {
            (cell.workload, cell.lengths, cell.group_size, cell.algorithm)
            for cell in cells(ThroughputSettings(sizes=[size], **settings))
        }

    missing = {
        *((workload, lengths, 1, "") for workload in ("sampling", "update") for lengths in ("full", "varying")),
        ("queue", "full", 8, ""),
        ("episodes", "full", 8, "rloo"),
        ("episodes", "varying", 8, "rloo"),
    }
    expected = {
        "1M": set(),
        "10M": missing,
        "60M": missing | {("queue", "varying", 8, "")},
    }
    if size == "1B":
        assert planned(device="cuda") == planned(device="cuda", complete=True)
    else:
        assert planned(complete=True) - planned() == expected[size] | {("memory", "varying", 8, "grpo")}


def test_settings_say_what_is_wrong_with_them():
    for settings, message in (
        ({"workloads": ["samplin"]}, "did you mean 'sampling'"),
        ({"sizes": ["2M"]}, "throughput.sizes '2M'"),
        ({"group_sizes": [5]}, "group_sizes holds 5; expected a divisor of rows, 64"),
        ({"microbatch_rows": 7}, "microbatch_rows is 7; expected a divisor of rows"),
        ({"queue": -1}, "queue is -1; expected at least 0"),
    ):
        with pytest.raises(SettingsError, match=message):
            ThroughputSettings(**settings)


def test_the_table_shows_a_target_beside_the_side_that_has_one():
    record = {
        "workload": "episodes", "algorithm": "grpo", "variant": "", "model": "1M", "lengths": "full", "group_size": 8,
        "side": "lmrl", "baseline": "trl_grpo", "unit": "episodes", "rate": {"median": 6.0, "min": 5.0, "max": 7.0},
        "ratio": {"median": 3.5, "min": 3.0, "max": 4.0}, "utilisation": 0.25, "skipped": {},
    }  # fmt: skip
    (row,) = rows_of([record])
    assert row[-4:] == ("6.0 episodes (5.0 to 7.0)", "3.5 (3 to 4)", "3", "25%")
    assert target_of({**record, "baseline": "plain"}) is None and target_of({**record, "side": "trl_grpo"}) is None
    skipped = {**record, "side": "trl_grpo", "skipped": {"trl_grpo": "not installed"}}
    assert next(rows_of([skipped]))[5] == "skipped: not installed"
    assert markdown([]) == "No records.\n"
