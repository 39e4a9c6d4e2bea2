import asyncio
import copy
import functools
import multiprocessing
import pickle
import threading
import time
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmrl.errors import LmrlError, RewardError, SettingsError
from lmrl.rewards import RewardFunction, RewardResult, per_row, resolve
from lmrl.rewards.function import Member

PROMPTS = ["Say", "Say it again"]
RESPONSES = ["one", "three"]


def lengths(prompts, responses):
    return [len(response) for response in responses]


def with_parts(prompts, responses, **columns):
    return {"score": np.array([1, 2]), "style": [0.5, 0.25]}


def both(*functions, weights=None):
    weights = weights or [1.0] * len(functions)
    members = [Member(function.__name__, function, weight) for function, weight in zip(functions, weights, strict=True)]
    return RewardFunction(members, single=False)


@pytest.mark.parametrize(
    "values",
    [
        [3, 5],
        (3.0, 5.0),
        np.array([3, 5]),
        np.array([3, 5], dtype=np.float32),
        torch.tensor([3.0, 5.0], requires_grad=True),
        torch.tensor([3, 5], dtype=torch.bfloat16),
        [torch.tensor(3.0), np.float32(5.0)],
        [Decimal(3), Decimal(5)],
    ],
)
def test_sequences_of_numbers_become_float64(values):
    result = resolve(lambda prompts, responses: values)(PROMPTS, RESPONSES)
    assert isinstance(result, RewardResult)
    assert result.scores.dtype == np.float64 and result.scores.tolist() == [3.0, 5.0]
    assert result.parts == {}


@pytest.mark.parametrize(
    "values",
    [
        [[3], [5]],
        [(3.0,), (5.0,)],
        np.array([[3], [5]]),
        torch.tensor([[3.0], [5.0]], requires_grad=True),
        [torch.tensor([3.0]), torch.tensor([5.0])],
        [np.array([3.0]), 5],
    ],
)
def test_a_column_is_squeezed(values):
    reward = resolve(lambda prompts, responses: {"score": values, "same": values})
    result = reward(PROMPTS, RESPONSES)
    assert result.scores.tolist() == [3.0, 5.0] and result.parts["same"].tolist() == [3.0, 5.0]


@pytest.mark.parametrize(
    "values", [[3, None], (3.0, None), np.array([3, None], dtype=object), [[3], [None]], [np.float32(3), None]]
)
def test_none_is_no_score(values):
    result = resolve(lambda prompts, responses: values)(PROMPTS, RESPONSES)
    assert result.scored.tolist() == [True, False]
    assert result.scores[0] == 3 and np.isnan(result.scores[1])


def test_a_sum_leaves_out_terms_that_do_not_apply():
    def first(prompts, responses):
        return {"score": [1, None, 4, None], "style": [None, 5, None, None]}

    def second(prompts, responses):
        return [[10], [20], [None], [None]]

    result = both(first, second, weights=[2.0, -0.5])([""] * 4, [""] * 4)
    assert result.scored.tolist() == [True, True, True, False]
    np.testing.assert_equal(result.scores, [2 - 5, -10, 8, np.nan])
    np.testing.assert_equal(result.parts["first"], [1, np.nan, 4, np.nan])
    np.testing.assert_equal(result.parts["first_style"], [np.nan, 5, np.nan, np.nan])
    np.testing.assert_equal(result.parts["second"], [10, 20, np.nan, np.nan])


def test_a_reward_that_calls_another_keeps_its_unscored_rows():
    inner = resolve(lambda prompts, responses: {"score": [None, 2], "style": [1, None]})
    outer = resolve(lambda prompts, responses: inner(prompts, responses))(PROMPTS, RESPONSES)
    assert outer.scored.tolist() == [False, True]
    np.testing.assert_equal(outer.scores, [np.nan, 2])
    np.testing.assert_equal(outer.parts["style"], [1, np.nan])


def test_rows_of_a_per_row_reward_may_be_none():
    plain = per_row(lambda prompt, response: None if response == "one" else 2)
    named = per_row(lambda prompt, response: None if response == "one" else {"score": 2, "style": 1})
    for reward in (plain, named):
        result = resolve(reward)(PROMPTS, RESPONSES)
        assert result.scored.tolist() == [False, True] and result.scores[1] == 2
    np.testing.assert_equal(result.parts["style"], [np.nan, 1])
    assert not resolve(per_row(lambda prompt, response: None))(PROMPTS, RESPONSES).scored.any()


def test_booleans_are_zero_and_one():
    assert resolve(lambda prompts, responses: [True, False])(PROMPTS, RESPONSES).scores.tolist() == [1.0, 0.0]


def test_a_mapping_has_a_score_and_parts():
    result = resolve(with_parts)(PROMPTS, RESPONSES)
    assert result.scores.tolist() == [1.0, 2.0]
    assert {name: part.tolist() for name, part in result.parts.items()} == {"style": [0.5, 0.25]}


def test_a_reward_function_can_be_a_reward_again():
    inner = resolve(with_parts)
    assert resolve(inner) is inner
    outer = resolve(lambda prompts, responses: inner(prompts, responses))(PROMPTS, RESPONSES)
    assert outer.scores.tolist() == [1.0, 2.0] and outer.parts["style"].tolist() == [0.5, 0.25]


def test_a_weighted_sum_by_hand():
    result = both(lengths, with_parts, weights=[2.0, -10.0])(PROMPTS, RESPONSES)
    assert result.scores.tolist() == [2 * 3 - 10 * 1, 2 * 5 - 10 * 2]
    assert {name: part.tolist() for name, part in result.parts.items()} == {
        "lengths": [3.0, 5.0],
        "with_parts": [1.0, 2.0],
        "with_parts_style": [0.5, 0.25],
    }


def test_columns_go_to_those_who_name_them():
    seen = {}

    def plain(prompts, responses):
        return [0, 0]

    def named(prompts, responses, answer, *, other=None):
        seen["named"] = (answer, other)
        return [0, 0]

    def everything(prompts, responses, **columns):
        seen["everything"] = columns
        return [0, 0]

    columns = {"answer": [1, 2], "hero": ["Mia", "Tom"], "prompts": [0, 0]}
    both(plain, named, everything)(PROMPTS, RESPONSES, columns)
    assert seen["named"] == ([1, 2], None)
    assert seen["everything"] == {"answer": [1, 2], "hero": ["Mia", "Tom"]}


def test_a_missing_column_is_named_with_its_neighbour():
    def needy(prompts, responses, answer):
        return [0, 0]

    with pytest.raises(RewardError, match=r"'.*needy' needs the column 'answer'.*rows have answers; did you mean"):
        resolve(needy)(PROMPTS, RESPONSES, {"answers": [1, 2]})
    with pytest.raises(RewardError, match="the rows have none besides the prompt"):
        resolve(needy)(PROMPTS, RESPONSES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"returned 1 scores; expected 2 finite numbers, one per response"),
        ([1.0, 2.0, 3.0], "returned 3 scores"),
        (
            [[1.0, 2.0], [2.0, 1.0]],
            r"2 numbers for response 0 \('one'\); expected one number.*are not known here",
        ),
        ([[1.0], []], r"returned 0 numbers for response 1 \('three'\); expected one number"),
        (np.ones((2, 2)), "returned 2 numbers for response 0"),
        (np.ones((2, 1, 1)), r"array of shape \(2, 1, 1\)"),
        (torch.ones(1, 2), "returned 1 scores"),
        (1.5, r"returned 1.5 \(float\).*per_row"),
        (None, r"returned None \(NoneType\)"),
        (torch.tensor(1.5), "returned .*1.5"),
        ("ab", r"returned 'ab' \(str\)"),
        (["1.0", "2.0"], r"returned '1.0' \(str\) for response 0 \('one'\)"),
        ([[1.0], [float("nan")]], r"returned nan for response 1 \('three'\) and 1 of 2"),
        ([None, float("nan")], r"returned nan for response 1 .* Return None for a row"),
        ({"score": [1, 2], "style": [None, float("nan")]}, "returned nan for 'style'"),
        (RewardResult(np.array([1.0, np.nan])), "returned nan for response 1"),
        ([1.0, float("nan")], r"returned nan for response 1 \('three'\) and 1 of 2"),
        ([float("-inf"), float("nan")], r"returned -inf for response 0 \('one'\) and 2 of 2"),
        (iter([1.0, 2.0]), "expected 2 finite numbers"),
        ({"scores": [1, 2]}, r"keys scores; expected the key 'score' \(is it 'scores'\?\)"),
        ({}, r"keys \(none\); expected the key 'score'"),
        ({"score": [1, 2], "style": [1]}, "returned 1 scores for 'style'"),
        ({"score": [1, 2], "style": [1, float("inf")]}, "returned inf for 'style'"),
        ([10**400, 1], "expected 2 finite numbers"),
    ],
)
def test_wrong_scores_are_refused(values, message):
    reward = resolve(lambda prompts, responses: values)
    with pytest.raises(RewardError, match=message):
        reward(PROMPTS, RESPONSES)


def test_a_reward_that_raises_is_named_and_its_cause_is_kept():
    def broken(prompts, responses):
        return [1 / 0]

    with pytest.raises(RewardError, match=r"broken' raised ZeroDivisionError: .*2, first prompt 'Say'") as caught:
        resolve(broken)(PROMPTS, RESPONSES)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert isinstance(caught.value, LmrlError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_reward_that_expects_messages_is_told_what_it_gets():
    def conversational(completions, **kwargs):
        return [len(completion[0]["content"]) for completion in completions]

    with pytest.raises(RewardError, match="responses are texts; the column prompt_messages contains the messages"):
        resolve(conversational)(PROMPTS, RESPONSES)


def test_the_failing_one_of_several_is_named():
    async def broken(prompts, responses):
        raise ValueError("no such judge")

    with pytest.raises(RewardError, match="broken' raised ValueError: no such judge"):
        both(lengths, broken)(PROMPTS, RESPONSES)


def test_lengths_must_agree():
    reward = resolve(lengths)
    with pytest.raises(RewardError, match="1 prompts and 2 responses"):
        reward(["a"], RESPONSES)
    with pytest.raises(RewardError, match="column 'answer' has 3 values for 2"):
        reward(PROMPTS, RESPONSES, {"answer": [1, 2, 3]})


def test_an_empty_batch_calls_nobody():
    result = resolve(lambda prompts, responses: 1 / 0)([], [])
    assert result.scores.shape == (0,) and result.scores.dtype == np.float64


def test_weights_that_overflow():
    with pytest.raises(RewardError, match="overflows"):
        both(lengths, weights=[1e308])(["a"], ["ten letters"])


def slow(seconds, started, prompts, responses):
    async def call():
        started.append(threading.current_thread().name)
        await asyncio.sleep(seconds)
        return [seconds] * len(responses)

    return call()


def test_asynchronous_rewards_run_at_once():
    started = []
    members = [Member(f"slow{index}", functools.partial(slow, 0.2, started)) for index in range(5)]
    begin = time.perf_counter()
    result = RewardFunction(members, single=False)(PROMPTS, RESPONSES)
    assert time.perf_counter() - begin < 0.8
    assert result.scores == pytest.approx([1.0, 1.0])
    assert len(set(started)) == 1


def test_asynchronous_rewards_work_where_a_loop_runs():
    async def reward(prompts, responses):
        await asyncio.sleep(0)
        return [7.0, 8.0]

    async def notebook():
        return resolve(reward)(PROMPTS, RESPONSES)

    assert asyncio.run(notebook()).scores.tolist() == [7.0, 8.0]


def test_an_asynchronous_reward_sees_one_loop_and_may_call_another():
    loops = []

    async def inner(prompts, responses):
        loops.append(asyncio.get_running_loop())
        return [1.0, 1.0]

    async def outer(prompts, responses):
        return resolve(inner)(prompts, responses).scores

    for _ in range(2):
        resolve(inner)(PROMPTS, RESPONSES)
    assert loops[0] is loops[1]
    assert resolve(outer)(PROMPTS, RESPONSES).scores.tolist() == [1.0, 1.0]


async def waiting(prompts, responses):
    await asyncio.sleep(0)
    return [1.0] * len(responses)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this platform cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_asynchronous_rewards_work_after_a_fork():
    assert resolve(waiting)(PROMPTS, RESPONSES).scores.tolist() == [1.0, 1.0]
    child = multiprocessing.get_context("fork").Process(target=lambda: resolve(waiting)(PROMPTS, RESPONSES))
    child.start()
    child.join(timeout=30)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == 0


@per_row
def brevity(prompt, response, answer=""):
    return -float(len(response) - len(answer))


def plain_row(prompt, response):
    return 2 * len(response)


@per_row
async def polite(prompt, response):
    await asyncio.sleep(0)
    return {"score": 1.0, "words": len(response.split())}


def test_per_row():
    assert resolve(brevity)(PROMPTS, RESPONSES).scores.tolist() == [-3.0, -5.0]
    columns = {"answer": ["x", "xy"], "hero": [1, 2]}
    assert resolve(brevity)(PROMPTS, RESPONSES, columns).scores.tolist() == [-2.0, -3.0]
    result = resolve(polite)(PROMPTS, ["one", "two words"])
    assert result.scores.tolist() == [1.0, 1.0] and result.parts["words"].tolist() == [1.0, 2.0]


def test_per_row_parts_must_agree():
    reward = resolve(per_row(lambda prompt, response: {"score": 1, response: 1}))
    with pytest.raises(RewardError, match="row 1 returned the parts score, three, row 0 score, one"):
        reward(PROMPTS, RESPONSES)


def test_a_function_of_one_argument_is_refused():
    with pytest.raises(SettingsError, match=r"no room for two positional arguments.*per_row"):
        resolve(lambda response: 1.0)


@pytest.mark.parametrize("function", [lengths, brevity, polite, per_row(plain_row)])
def test_live_functions_pickle_when_their_parts_do(function):
    reward = pickle.loads(pickle.dumps(resolve(function)))
    assert reward(PROMPTS, RESPONSES).scores.tolist() == resolve(function)(PROMPTS, RESPONSES).scores.tolist()


def test_a_deep_copy_shares_the_reward():
    reward = resolve(lengths)
    assert copy.deepcopy({"reward": reward})["reward"] is reward


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
    st.lists(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4), min_size=3, max_size=3),
)
def test_the_sum_is_linear_in_its_weights(weights, values):
    members = [
        Member(str(index), lambda prompts, responses, row=row: row, weight)
        for index, (row, weight) in enumerate(zip(values, weights, strict=True))
    ]
    result = RewardFunction(members, single=False)([""] * 4, [""] * 4)
    expected = np.array(weights) @ np.array(values)
    np.testing.assert_allclose(result.scores, expected, rtol=1e-9, atol=1e-3)
    for index, row in enumerate(values):
        assert result.parts[str(index)].tolist() == row


def test_bounds_are_the_weighted_sum_of_what_every_member_says():
    class Bounded:
        bounds = (-1.0, 3.0)

        def __call__(self, prompts, responses):
            return [0.0] * len(responses)

    assert resolve(Bounded()).bounds == (-1, 3)
    bounded = [Member("one", Bounded(), 2.0), Member("two", Bounded(), -1.0)]
    assert RewardFunction(bounded, single=False).bounds == (-5, 7)
    assert resolve(lengths).bounds is None and both(Bounded.__call__, lengths).bounds is None
