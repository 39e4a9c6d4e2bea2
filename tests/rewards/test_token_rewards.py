"""Rewards that return a list: a number for each sampled token, or for each turn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmrl.errors import RewardError
from lmrl.rewards import RewardFunction, per_row, resolve
from lmrl.rewards.binding import TURNS
from lmrl.rewards.function import Member

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)
TURNED = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=5)
"""Tokens of each turn of each response."""


def called(function, turns, weight=1.0):
    texts = [str(row) for row in range(len(turns))]
    return RewardFunction([Member("one", function, weight)], single=True)(texts, texts, {TURNS: turns})


@given(TURNED, st.data())
def test_everything_on_the_last_token_is_the_plain_score_bit_for_bit(turns, data):
    scores = [data.draw(NUMBERS) for _ in turns]
    weight, other = data.draw(NUMBERS), data.draw(NUMBERS)
    lists = [[0.0] * (sum(counts) - 1) + [score] for counts, score in zip(turns, scores, strict=True)]
    for columns in (lists, [torch.tensor(row, dtype=torch.float64) for row in lists], [np.array(row) for row in lists]):
        plain, spread = (
            RewardFunction(
                [
                    Member("before", lambda prompts, responses: [other] * len(turns), 0.3),
                    Member("one", lambda prompts, responses, values=values: values, weight),
                    Member("after", lambda prompts, responses: [other] * len(turns), 0.7),
                ],
                single=False,
            )(*[["text"] * len(turns)] * 2, {TURNS: turns})
            for values in (scores, columns)
        )
        assert spread.scores.tolist() == plain.scores.tolist()
        assert {name: part.tolist() for name, part in spread.parts.items()} == {
            name: part.tolist() for name, part in plain.parts.items()
        }
        for row, counts in enumerate(turns):
            if sum(counts) > 1:
                assert spread.tokens[row].tolist() == [0.0] * (sum(counts) - 1) + [plain.scores[row]]
        assert not plain.tokens


@given(TURNED, st.data())
def test_a_turns_number_is_on_its_last_token_and_the_score_is_the_sum(turns, data):
    numbers = [[data.draw(NUMBERS) for _ in counts] for counts in turns]
    result = called(lambda prompts, responses: numbers, turns)
    for row, (counts, own) in enumerate(zip(turns, numbers, strict=True)):
        expected = [0.0] * sum(counts)
        for end, number in zip(np.cumsum(counts), own, strict=True):
            expected[end - 1] = number
        if len(counts) > 1:
            assert result.tokens[row].tolist() == expected
        assert result.scores[row] == pytest.approx(sum(own), rel=1e-9, abs=1e-6)


def test_a_weighted_sum_adds_token_by_token_by_hand():
    def tokens(prompts, responses):
        return [[1.0, 2.0, 4.0], None, [8.0, 16.0]]

    def turns(prompts, responses):
        return {"score": [[10.0, 20.0], [30.0], 40.0], "style": [[1.0, 1.5], 0.5, None]}

    members = [Member("tokens", tokens, 2.0), Member("turns", turns, 0.5), Member("plain", lambda p, r: [1, 1, 1], 1.0)]
    result = RewardFunction(members, single=False)(["p"] * 3, ["r"] * 3, {TURNS: [[2, 1], [3], [2]]})
    assert result.scores.tolist() == [14 + 15 + 1, 15 + 1, 48 + 20 + 1]
    assert {row: numbers.tolist() for row, numbers in result.tokens.items()} == {
        0: [2.0, 4.0 + 5.0, 8.0 + 10.0 + 1.0],
        2: [16.0, 32.0 + 20.0 + 1.0],
    }
    np.testing.assert_equal(result.parts["tokens"], [7, np.nan, 24])
    np.testing.assert_equal(result.parts["turns_style"], [2.5, 0.5, np.nan])


@pytest.mark.parametrize(
    ("values", "turns", "message"),
    [
        (
            [1.0, [1.0, 2.0]],
            [[3], [3]],
            r"2 numbers for response 1 \('1'\); expected 1 number, or 3, one for",
        ),
        (
            [[1.0] * 4, 1.0],
            [[2, 3], [1]],
            r"4 numbers for response 0 \('0'\); expected 2 numbers, one for each turn",
        ),
        (np.ones((2, 2)), [[2], [3]], "2 numbers for response 1 .*; expected 1 number, or 3"),
        ([[1.0, float("nan")], 1.0], [[2], [2]], "returned nan for response 0"),
        ([[1.0, None], 1.0], [[2], [2]], r"returned \[1.0, None\] \(list\) for response 0"),
        ({"score": [1, 1], "part": [[1, 2], 1]}, [[3], [3]], "2 numbers for 'part' for response 0"),
        ([[1.0, 2.0], 1.0], [[], []], "expected one number, because its sampled tokens are not known here"),
    ],
)
def test_a_wrong_list_names_the_row_what_was_found_and_what_was_expected(values, turns, message):
    with pytest.raises(RewardError, match=message):
        called(lambda prompts, responses: values, turns)


def test_rows_of_a_per_row_reward_may_be_lists():
    reward = per_row(lambda prompt, response, response_ids: [0.5] * len(response_ids))
    columns = {"response_ids": [[7, 8], [9]], TURNS: [[2], [1]]}
    result = resolve(reward)(["a", "b"], ["c", "d"], columns)
    assert result.scores.tolist() == [1.0, 0.5] and result.tokens[0].tolist() == [0.5, 0.5]


def test_a_reward_that_calls_another_keeps_its_tokens():
    inner = resolve(lambda prompts, responses: [[1.0, 2.0], None])
    result = called(lambda prompts, responses: inner(prompts, responses, {TURNS: [[2], [2]]}), [[2], [2]])
    assert result.tokens[0].tolist() == [1.0, 2.0] and result.scored.tolist() == [True, False]
