"""Fields of a request: set, replaced, dropped, and those that an endpoint refuses."""

import pytest

from lmrl.config import apply_overrides, build
from lmrl.errors import SettingsError
from lmrl.judges.request import advice_for, refused_field
from lmrl.judges.settings import JudgeSettings
from lmrl.stages.prefer import PreferConfig

URL = "http://localhost:1/v1"


def fields(**request):
    return JudgeSettings(model="m", base_url=URL, request=request).request_fields()


@pytest.mark.parametrize(
    ("request_table", "expected"),
    [
        ({}, {"temperature": 0.0, "max_tokens": 256}),
        ({"max_completion_tokens": 500}, {"temperature": 0.0, "max_completion_tokens": 500}),
        ({"max_completion_tokens": 5, "drop": ["temperature", "max_tokens"]}, {"max_completion_tokens": 5}),
        ({"drop": ["temperature", "max_tokens"]}, {}),
        ({"drop": "temperature"}, {"max_tokens": 256}),
        ({"temperature": 1, "seed": 7}, {"temperature": 1, "max_tokens": 256, "seed": 7}),
        ({"reasoning_effort": "none"}, {"temperature": 0.0, "max_tokens": 256, "reasoning_effort": "none"}),
        (
            {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
            {"temperature": 0.0, "max_tokens": 256, "chat_template_kwargs": {"enable_thinking": False}},
        ),
        (
            {"max_tokens": 9, "max_completion_tokens": 8, "drop": "temperature"},
            {"max_tokens": 9, "max_completion_tokens": 8},
        ),
    ],
)
def test_fields_are_set_replaced_and_dropped(request_table, expected):
    assert fields(**request_table) == expected


@pytest.mark.parametrize(
    ("request_table", "message"),
    [
        ({"drop": ["temprature"]}, r"names 'temprature', which is not sent.*Did you mean 'temperature'"),
        ({"drop": ["seed"], "seed": 1}, "names 'seed', which judge.request sets"),
        ({"drop": 3}, "judge.request.drop is 3; expected a list"),
        ({"messages": []}, "judge.request.messages is set"),
        ({"extra_body": {"stream": True}}, "judge.request.stream is set"),
        ({"model": "x"}, "set judge.model"),
        ({"n": 2}, "judge.request.n is set"),
        ({"extra_body": 1}, "judge.request.extra_body is 1; expected a table"),
        ({"seed": 1, "extra_body": {"seed": 1}}, "is also in judge.request.extra_body"),
    ],
)
def test_wrong_tables_are_refused_at_the_start(request_table, message):
    with pytest.raises(SettingsError, match=message):
        fields(**request_table)


def test_a_local_model_takes_no_request():
    with pytest.raises(SettingsError, match=r"judge\.request sets seed, but judge\.base_url is empty"):
        JudgeSettings(model="m", request={"seed": 1})


def test_the_command_line_sets_and_drops_fields():
    overrides = [
        "annotators.j.kind=judge",
        f"annotators.j.judge.base_url={URL}",
        "annotators.j.judge.request.max_completion_tokens=500",
        'annotators.j.judge.request.drop=["temperature"]',
        "annotators.j.judge.request.extra_body.chat_template_kwargs.enable_thinking=false",
    ]
    judge = build(PreferConfig, apply_overrides({}, overrides)).annotators["j"].judge
    expected = {"max_completion_tokens": 500, "chat_template_kwargs": {"enable_thinking": False}}
    assert judge.request_fields() == expected


@pytest.mark.parametrize(
    ("body", "message", "field"),
    [
        (
            {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
             "'max_completion_tokens' instead.", "param": "max_tokens", "code": "unsupported_parameter"},
            "",
            "max_tokens",
        ),
        (
            {"error": {"message": "'temperature' does not support 0 with this model. Only the default (1) value is "
                       "supported.", "param": "temperature", "code": "unsupported_value"}},
            "",
            "temperature",
        ),
        (None, "Unrecognized request argument supplied: seed", "seed"),
        ({"message": "body.temperature: Extra inputs are not permitted"}, "", "temperature"),
        ({"message": "temperature is deprecated for this model", "param": None}, "", "temperature"),
        ({"message": "invalid type", "param": "body.seed"}, "", "seed"),
        (
            {"message": "'max_tokens' or 'max_completion_tokens' is too large: 256. This model's maximum context "
             "length is 4096 tokens", "code": "context_length_exceeded", "param": "max_tokens"},
            "",
            "",
        ),
        ({"message": "This model's maximum context length is 10 tokens. Unsupported max_tokens."}, "", ""),
        ({"message": "Invalid prompt: flagged as violating our policy", "code": "invalid_prompt"}, "", ""),
        ({"message": "bad temperature outside"}, "", ""),
    ],
)  # fmt: skip
def test_the_refused_field_is_found(body, message, field):
    assert refused_field(body, message, {"temperature": 0, "max_tokens": 256, "seed": 1}) == field


def test_the_advice_names_the_setting():
    assert "judge.request.max_completion_tokens = 256" in advice_for("max_tokens", {}, 256)
    assert advice_for("temperature", {"drop": ["max_tokens"]}, 0).endswith('drop = ["max_tokens", "temperature"]')
    assert "remove judge.request.seed" in advice_for("seed", {"seed": 1}, 1)
    assert "remove judge.request.extra_body.seed" in advice_for("seed", {"extra_body": {"seed": 1}}, 1)


def test_settings_that_the_request_replaces_or_drops_are_not_read():
    table = {"max_completion_tokens": 500, "drop": ["temperature"]}
    settings = JudgeSettings(model="m", base_url=URL, request=table)
    assert {"temperature", "max_answer_tokens"} <= set(settings.unread())
    assert not {"temperature", "max_answer_tokens"} & set(JudgeSettings(model="m", base_url=URL).unread())
