"""Tools, template variables, reasoning, prefill and message weights, compared with transformers."""

import copy
import pickle

import pytest
from test_chat_template import TALK, TEMPLATES, end_of, make_codecs, write_tokenizer

from lmrl.errors import DataError
from lmrl.text.chat_rendering import unread_keys
from lmrl.text.chat_template import chat_row, prompt_ids, response_row
from lmrl.text.conversation import Conversation, variables_of

QWEN = """{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}
{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think>\\n' }}{%- endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' + call.function.name + ' ' + call.function.arguments | tojson + '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
TOOLS = [{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "get_time", "arguments": {"z": 1}}}]}
CALLED = [TALK[0], CALL, {"role": "tool", "content": "9:10", "name": "get_time"}, TALK[3]]
REASONED = [TALK[0], {**TALK[1], "reasoning_content": "A greeting."}, TALK[2], {**TALK[3], "reasoning": "It is ten."}]
PREFILLED = [*TALK[:3], {"role": "assistant", "content": "Ten past"}]


@pytest.mark.parametrize("variables", [{}, {"tools": TOOLS}, {"enable_thinking": False}, {"tools": TOOLS, "x": [1]}])
@pytest.mark.parametrize("talk", [TALK, TALK[:3], CALLED, REASONED])
def test_tools_variables_and_reasoning_are_rendered_as_transformers_does_it(tmp_path, talk, variables):
    fast, slow = make_codecs(write_tokenizer(tmp_path, "bytes", QWEN))
    for generation in (True, False):
        expected = slow.tokenizer.apply_chat_template(
            talk, add_generation_prompt=generation, tokenize=False, **variables
        )
        given = Conversation(talk, variables)
        assert fast.render_chat(given, generation) == expected == slow.render_chat(given, generation)
    assert ("get_time" in fast.render_chat(Conversation(talk[:1], variables), True)) == ("tools" in variables)


@pytest.mark.parametrize("content", ["Ten past", "Ten past ", "", "  Ten\n"])
@pytest.mark.parametrize("name", [*TEMPLATES, "qwen"])
def test_a_prefilled_prompt_is_rendered_as_transformers_does_it_and_begins_the_trained_row(tmp_path, name, content):
    fast, slow = make_codecs(write_tokenizer(tmp_path, "bytes", {**TEMPLATES, "qwen": QWEN}[name]))
    prompt = [*TALK[:3], {"role": "assistant", "content": content}]
    expected = slow.tokenizer.apply_chat_template(prompt, continue_final_message=True, tokenize=False)
    assert fast.render_continued(prompt) == expected == slow.render_continued(prompt)
    text, asked = prompt_ids(fast, prompt)
    assert text == expected and fast.decode_batch([asked]) == fast.decode_batch([fast.encode_plain(expected)])
    before, answer = response_row(fast, end_of(fast), prompt, " nine.")
    assert before == asked and "nine." in fast.decode_batch([answer])[0]
    row, mask = chat_row(fast, end_of(fast), [*prompt[:3], {"role": "assistant", "content": content + " nine."}])
    assert fast.decode_batch([before + answer]) == fast.decode_batch([row])
    assert sum(mask) > 0 and "Ten past" not in fast.decode_batch([answer])[0]


def test_a_prefill_that_the_template_rewrites_is_refused(tmp_path):
    fast, _ = make_codecs(
        write_tokenizer(tmp_path, "bytes", "{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    )
    with pytest.raises(DataError, match="rewrites the last message"):
        prompt_ids(fast, PREFILLED)


@pytest.mark.parametrize("key", [{"weight": 0}, {"train": False}, {"training": False}, {"weight": 0.0}])
def test_a_message_of_weight_zero_is_not_trained(tmp_path, key):
    fast, _ = make_codecs(write_tokenizer(tmp_path, "bytes", TEMPLATES["chatml"]))
    row, mask = chat_row(fast, end_of(fast), [TALK[0], {**TALK[1], **key}, *TALK[2:]])
    plain, whole = chat_row(fast, end_of(fast), TALK)
    trained = fast.decode_batch([[token for token, on in zip(row, mask, strict=True) if on]])
    assert row == plain and trained == ["Ten past nine."] and sum(mask) < sum(whole)
    row, mask = chat_row(fast, end_of(fast), [*TALK[:3], {**TALK[3], **key}])
    assert "Ten past" not in fast.decode_batch([row])[0] and any(mask), (
        "what follows the last trained token is left out"
    )
    with pytest.raises(DataError, match="no assistant message to learn from"):
        chat_row(fast, end_of(fast), [TALK[0], {**TALK[1], **key}])
    assert response_row(fast, end_of(fast), TALK[:1], [{**TALK[1], **key}]) == response_row(
        fast, end_of(fast), TALK[:1], TALK[1]["content"]
    ), "weights are those of fine-tuning alone"


def test_a_conversation_keeps_its_variables():
    made = Conversation(TALK, {"tools": TOOLS})
    assert made == tuple(TALK) and made[:2] == tuple(TALK[:2]) and made[0] == TALK[0]
    for kept in (made[:2], made[1:][:1], copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert variables_of(kept) == {"tools": TOOLS}
    assert variables_of(TALK) == {} and variables_of("text") == {}


def test_keys_that_a_template_does_not_read_are_counted(tmp_path):
    talks = [Conversation(CALLED, {"tools": TOOLS, "enable_thinking": False}), REASONED, TALK, "text"]
    reads, _ = make_codecs(write_tokenizer(tmp_path / "a", "bytes", QWEN))
    assert unread_keys(reads, talks) == {"name": 1}
    drops, _ = make_codecs(write_tokenizer(tmp_path / "b", "bytes", TEMPLATES["chatml"]))
    unread = dict.fromkeys(["name", "tool_calls", "tools", "enable_thinking", "reasoning_content", "reasoning"], 1)
    assert unread_keys(drops, talks) == unread
