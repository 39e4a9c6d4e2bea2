"""Arguments of rewards: by the names that authors use, in any order, or refused before anything is sampled."""

import functools
import operator

import pytest

from lmrl.errors import RewardError, SettingsError
from lmrl.rewards import per_row, resolve

PROMPTS, RESPONSES = ["2 + 2", "a long prompt"], ["4", "long"]
COLUMNS = {"answer": ["4", "no"], "level": [1, 2]}


def right(said, answers):
    return [float(one == other) for one, other in zip(said, answers, strict=True)]


def by_trl(completions, answer, **kwargs):
    assert kwargs["prompts"] == PROMPTS and kwargs["level"] == [1, 2]
    return right(completions, answer)


def everything_by_name(**kwargs):
    assert kwargs["prompts"] == PROMPTS and kwargs["completions"] == kwargs["responses"]
    return right(kwargs["completions"], kwargs["answer"])


def positional_only(answer, completions, /):
    return right(completions, answer)


async def waits(completions, *, answer):
    return right(completions, answer)


class Judge:
    def __call__(self, answer, responses):
        return right(responses, answer)

    def method(self, completions, answer, unused=None):
        return right(completions, answer)


def timed(function):  # without functools.wraps
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def by_place_only(function):
    def wrapper(*args):
        return function(*args)

    return wrapper


class Decorated:
    @timed
    def __call__(self, answer, completions):
        return right(completions, answer)


def scaled(level, completions, answer, scale):
    return [scale * score for score in right(completions, answer)]


REWARDS = {
    "TRL": by_trl,
    "responses last": lambda answer, responses: right(responses, answer),
    "completions before prompts": lambda completions, prompts, answer: right(completions, answer),
    "both names of the responses": lambda completions, responses, answer: right(responses, answer),
    "keyword only": lambda *, answer, prompts, completions: right(completions, answer),
    "kwargs": everything_by_name,
    "positional only": positional_only,
    "asynchronous": waits,
    "a class": Judge(),
    "a method": Judge().method,
    "wrapped": functools.wraps(by_trl)(lambda *args, **kwargs: by_trl(*args, **kwargs)),
    "wrapped in silence": timed(by_trl),
    "wrapped by place": by_place_only(positional_only),
    "wrapped twice": timed(timed(by_trl)),
    "a decorated method": Decorated(),
    "partial": functools.partial(scaled, scale=1.0),
    "partial of a wrapper": functools.partial(timed(scaled), scale=1.0),
    "one row": per_row(lambda completion, answer: float(completion == answer)),
    "one row with kwargs": per_row(lambda response, **columns: float(response == columns["answer"])),
    "by position": lambda p, r, answer: right(r, answer),
    "positional names": lambda asked, said, *, answer: right(said, answer),
}


@pytest.mark.parametrize("name", REWARDS)
def test_arguments_go_to_the_parameters_of_their_names(name):
    reward = resolve(REWARDS[name])
    reward.check_columns(COLUMNS)
    assert reward(PROMPTS, RESPONSES, COLUMNS).scores.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("function", "scores"),
    [
        (lambda completions, prompts: [len(p) - len(c) for c, p in zip(completions, prompts, strict=True)], [4, 9]),
        (lambda responses: list(map(len, responses)), [1, 4]),
        (lambda completions: list(map(len, completions)), [1, 4]),
        (lambda p, r: [len(one) for one in r], [1, 4]),
        (lambda prompts, texts: list(map(len, texts)), [1, 4]),
        (lambda x, y: [len(one) for one in x], [5, 13]),
        (lambda *args: [len(one) for one in args[1]], [1, 4]),
        (lambda *args, **kwargs: [len(one) for one in args[1]], [1, 4]),
        (lambda prompts, responses, k=3: [k, k], [3, 3]),
        (lambda p, r, row=(5, 6): row, [5, 6]),
        (functools.partial(lambda bonus, p, r: [bonus] * len(r), 2), [2, 2]),
        (functools.partial(lambda x, y, bonus: [bonus] * len(y), bonus=2), [2, 2]),
        (per_row(lambda response: len(response)), [1, 4]),
        (per_row(lambda p, r: len(r)), [1, 4]),
    ],
)
def test_prompts_and_responses_alone(function, scores):
    assert resolve(function)(PROMPTS, RESPONSES).scores.tolist() == scores


def test_a_column_beside_the_name_of_the_responses():
    columns = {"response": ["4", "other"]}
    reward = resolve(lambda completions, response: right(completions, response))
    assert reward(PROMPTS, RESPONSES, columns).scores.tolist() == [1.0, 0.0]


def test_a_setting_is_not_replaced_by_a_column_of_its_name():
    reward = resolve(lambda prompts, responses, level: [level] * len(responses), {"level": 7})
    assert reward(PROMPTS, RESPONSES, COLUMNS).scores.tolist() == [7.0, 7.0]


@pytest.mark.parametrize(
    "function",
    [
        lambda outputs, inputs: [],
        lambda r, p: [],
        lambda texts, answer: [],
        lambda predictions, references: [],
        lambda prompts, answer: [],
        lambda prompts: [],
        lambda prompts, passages: [],
        lambda text, scale=2.0: [],
        lambda x: [],
        lambda: [],
        lambda response: 1.0,
        lambda completion: 1.0,
        functools.partial(lambda x, y: [], y=1),
    ],
)
def test_signatures_without_a_meaning_are_refused_with_what_is_expected(function):
    with pytest.raises(SettingsError, match=r"takes \(.*expected parameters named prompts, responses"):
        resolve(function)


@pytest.mark.parametrize("parameter", ["trainer_state", "log_metric", "log_extra"])
def test_what_trl_passes_and_lmrl_does_not_is_named(parameter):
    source = f"lambda completions, {parameter}: [0]"
    with pytest.raises(RewardError, match=f"{parameter!r}.*Give the parameter a default"):
        resolve(eval(source)).check_columns(["answer"])
    resolve(eval(source.replace(parameter, f"{parameter}=None"))).check_columns(["answer"])


def test_columns_are_checked_against_the_data():
    with pytest.raises(RewardError, match=r"needs the column 'answr', but the data have the columns answer, level"):
        resolve(lambda completions, answr: [0]).check_columns(COLUMNS)
    with pytest.raises(RewardError, match=r"'level' is a column of the data, but its position is"):
        resolve(lambda text, level: [0]).check_columns(COLUMNS)
    with pytest.raises(RewardError, match="needs the column 'answer'"):
        resolve("exact_match").check_columns(["solution"])


def test_a_column_that_the_sampling_fills_is_named(caplog):
    resolve(lambda prompts, completions: [0]).check_columns(["completions"])
    assert "the column 'completions' of the data is not passed to reward" in caplog.text


def test_a_function_without_a_signature_gets_prompts_and_responses(monkeypatch):
    monkeypatch.setattr("lmrl.rewards.binding.signature_of", lambda function: None)
    assert resolve(operator.eq).bindings[0].positional == ("prompts", "responses")
