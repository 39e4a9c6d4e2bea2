"""Chat templates: rendered as transformers does it, prompts that are prefixes of trained rows, masks by hand."""

import json
import pickle
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmrl.errors import DataError
from lmrl.testing import write_tiny_model
from lmrl.text.card import TransformersCodec, load_card
from lmrl.text.chat_template import (
    DEFAULT_TEMPLATE,
    DEFAULT_TOKENS,
    PLAIN_TEMPLATE,
    chat_row,
    prompt_ids,
    response_row,
    template_end_id,
)

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """{%- set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}
    {%- set content = header + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}
        {%- set content = bos_token + content %}
    {%- endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

GEMMA = """{{ bos_token }}
{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

MISTRAL = """{{- bos_token }}
{%- set ns = namespace(index=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + message.content + ' [/INST]' }}
        {%- set ns.index = ns.index + 1 %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content + eos_token }}
    {%- elif message.role == 'system' %}
        {{- '[SYSTEM]' + {'text': message.content} | tojson + strftime_now('%Y') }}
        {%- continue %}
    {%- else %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
{%- endfor %}"""

GENERATION = """{% for message in messages %}{% if message.role == 'assistant' %}<|im_start|>assistant
{% generation %}{{ message.content }}{% endgeneration %}<|im_end|>
{% else %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

FORGETS = """{% for message in messages %}
{% if message.role != 'assistant' %}{{ 'U:' + message.content }}
{% elif loop.last %}{{ 'A:' + message.content + eos_token }}
{% else %}{{ 'A:' + message.content[:1] + eos_token }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}A:{% endif %}"""

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>")
SPECIALS += ("<end_of_turn>", *DEFAULT_TOKENS)
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "generation": GENERATION,
    "default": DEFAULT_TEMPLATE,
    "plain": PLAIN_TEMPLATE,
}
TALK = [
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hi! What is it?"},
    {"role": "user", "content": "The time, please"},
    {"role": "assistant", "content": "Ten past nine."},
]


def write_tokenizer(folder, kind, template, bos="<s>"):
    """Write a tokenizer like those of real models: byte-level BPE, or a metaspace one that puts a space first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    folder.mkdir(parents=True, exist_ok=True)
    texts = [message["content"] for message in TALK] * 3 + ["User: Assistant: the then there hello a b c"] * 5
    alphabet = (
        pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else list("▁abcdefghijklmnopqrstuvwxyz:!?.\n[]/<>|")
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *SPECIALS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def make_codecs(folder):
    """Return lmrl's own codec and the one through transformers."""
    from transformers import AutoTokenizer

    from lmrl.text.codec import FastCodec

    return FastCodec(folder / "tokenizer.json"), TransformersCodec(AutoTokenizer.from_pretrained(folder))


def end_of(codec):
    """Return the EOS ids as a model with this template would name them."""
    return tuple(sorted({codec.encode_plain("</s>")[0]}))


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_rendering_and_ids_equal_those_of_transformers(tmp_path, name, kind):
    fast, slow = make_codecs(write_tokenizer(tmp_path, kind, TEMPLATES[name]))
    talks = [TALK, TALK[:1], TALK[:3], [*TALK[:1], {"role": "assistant", "content": '<b> "quoted" é\n'}]]
    if name in ("chatml", "mistral", "default"):
        talks.append([{"role": "system", "content": 'Be "kind" & <short>'}, *TALK])
    for talk in talks:
        for generation in (True, False):
            expected = slow.tokenizer.apply_chat_template(talk, add_generation_prompt=generation, tokenize=False)
            assert fast.render_chat(talk, generation) == expected == slow.render_chat(talk, generation)
            ids = slow.tokenizer.apply_chat_template(talk, add_generation_prompt=generation)["input_ids"]
            assert fast.encode_plain(expected) == ids == slow.encode_plain(expected)
        assert fast.encode_spans(expected) == slow.encode_spans(expected)
        assert fast.encode_spans(expected)[0] == ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_generation_blocks_are_found_where_transformers_finds_them(tmp_path, name):
    fast, slow = make_codecs(write_tokenizer(tmp_path, "bytes", TEMPLATES[name]))
    if name != "generation":
        assert not fast.renderer.marks_generation and fast.renderer.generation_spans(TALK) == []
        return
    text = fast.render_chat(TALK, False)
    assert [text[start:end] for start, end in fast.renderer.generation_spans(TALK)] == [
        "Hi! What is it?",
        "Ten past nine.",
    ]
    expected = slow.tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    row, mask = chat_row(fast, end_of(fast), TALK)
    marked = [at for at, trained in enumerate(expected["assistant_masks"]) if trained]
    ends = [at + 1 for at in marked if at + 1 not in marked]  # beyond the block, the end of the turn is trained as well
    assert [at for at, trained in enumerate(mask) if trained] == sorted(marked + ends)
    assert row == expected["input_ids"][: len(row)]


def shown(codec, row, mask):
    """Return the trained tokens' text, special tokens included, runs apart."""
    runs, run = [], []
    for token, trained in zip([*row, 0], [*mask, False], strict=True):
        if trained:
            run.append(token)
        elif run:
            runs.append(codec.tokenizer.decode(run, skip_special_tokens=False))
            run = []
    return runs


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("chatml", "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("gemma", "<end_of_turn>"),
        ("mistral", "</s>"),
        ("generation", "<|im_end|>"),
        ("default", "</s>"),
        ("plain", "</s>"),
    ],
)
def test_exactly_the_answers_and_their_ends_are_trained(tmp_path, name, end, kind):
    fast, slow = make_codecs(write_tokenizer(tmp_path, kind, TEMPLATES[name]))
    assert template_end_id(fast) == fast.encode_plain(end)[0]
    row, mask = chat_row(fast, end_of(fast), TALK)
    texts = [text.replace(" ", "") for text in shown(slow, row, mask)]
    assert texts == [f"Hi!Whatisit?{end}", f"Tenpastnine.{end}"]
    assert mask[-1] and row[-1] == fast.encode_plain(end)[0]
    last_row, last_mask = chat_row(fast, end_of(fast), TALK, turns="last")
    assert last_row == row and [text.replace(" ", "") for text in shown(slow, last_row, last_mask)] == texts[1:]
    assert row.count(fast.encode_plain("<s>")[0]) == int(name in ("llama3", "gemma", "mistral", "default", "plain"))


WORDS = st.text(alphabet="ab c:!<\n.", min_size=0, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(WORDS, min_size=2, max_size=6), kind=st.sampled_from(["bytes", "metaspace"]))
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_ids_are_a_prefix_of_the_trained_row(tmp_path_factory, name, contents, kind):
    codec = cached_codec(tmp_path_factory, name, kind)
    contents = contents[: len(contents) // 2 * 2]
    roles = ("user", "assistant")
    talk = [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]
    row, mask = chat_row(codec, (2,), talk)
    for at in range(1, len(talk), 2):
        _, asked = prompt_ids(codec, talk[:at])
        assert row[: len(asked)] == asked
        assert mask[len(asked)], "the first token after a prompt is trained"
        assert sum(mask[: len(asked)]) == sum(chat_row(codec, (2,), talk[:at])[1] if at > 1 else [])
    before, answer = response_row(codec, (2,), talk[:-1], contents[-1])
    assert before + answer == row


CODECS = {}


def cached_codec(tmp_path_factory, name, kind):
    from lmrl.text.codec import FastCodec

    if (name, kind) not in CODECS:
        folder = write_tokenizer(tmp_path_factory.mktemp("codec"), kind, TEMPLATES[name])
        CODECS[name, kind] = FastCodec(folder / "tokenizer.json")
    return CODECS[name, kind]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=WORDS, completion=WORDS, kind=st.sampled_from(["bytes", "metaspace"]))
def test_plain_prompts_are_prefixes_too_and_completions_end_once(tmp_path_factory, prompt, completion, kind):
    codec = cached_codec(tmp_path_factory, "plain", kind)
    before, answer = response_row(codec, (2,), prompt, completion)
    assert before == prompt_ids(codec, prompt)[1] == codec.encode(prompt)
    assert answer[-1] == 2 and 2 not in answer[:-1]
    assert codec.decode_batch([answer]) == codec.decode_batch([codec.encode_plain(completion)]) or codec.decode_batch(
        [before + answer]
    ) == codec.decode_batch([codec.encode(prompt + completion)])


def test_trap_08_bos_is_never_doubled(tmp_path):
    fast, slow = make_codecs(write_tokenizer(tmp_path, "metaspace", LLAMA3))
    for codec in (fast, slow):
        assert prompt_ids(codec, "Hello")[1][0] == 1 and prompt_ids(codec, "Hello")[1].count(1) == 1
        assert prompt_ids(codec, "<s>Hello")[1] == codec.encode_plain("<s>Hello")
        assert prompt_ids(codec, TALK[:1])[1].count(1) == 1
        assert response_row(codec, (2,), "<s>Hello", " there</s>")[1].count(2) == 1


def test_trap_08_eos_is_trained_when_pad_equals_eos(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny", pad_is_eos=True)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}{{ eos_token }} {% endif %}{% endfor %}"
    )
    card = load_card(folder)
    assert card.pad_id == card.eos_ids[0] == 1
    talk = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "ran"}] * 2
    assert chat_row(card.codec, card.eos_ids, talk) == (
        [3, 5, 7, 1, 3, 5, 7, 1],
        [False, False, True, True, False, False, True, True],
    )
    assert response_row(card.codec, card.eos_ids, "the cat", "sat") == ([3, 5], [8, 1])


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("more", ["{{ eos_token }}", "{{ '\\n' + eos_token }}", "{{ eos_token + eos_token }}"])
def test_an_answer_with_several_ends_is_trained_up_to_the_first(tmp_path, more, kind):
    closed = CHATML + "{% if not add_generation_prompt %}" + more + "{% endif %}"  # as in Phi-3
    codec, _ = make_codecs(write_tokenizer(tmp_path, kind, closed))
    end, eos = codec.encode_plain("<|im_end|>")[0], codec.encode_plain("</s>")[0]
    row, mask = chat_row(codec, (eos,), TALK[:2])
    assert mask[-1] and row[-1] == end and eos not in row
    asked, answer = response_row(codec, (eos,), TALK[:1], TALK[1]["content"])
    assert asked + answer == row
    inside = [TALK[0], {"role": "assistant", "content": "One</s> and two."}]
    row, mask = chat_row(codec, (eos,), inside)
    assert row[-1] == end and row.count(eos) == 1, "text behind an end is part of the answer"


def test_an_answer_without_an_end_is_closed_by_eos(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    card = load_card(folder)
    assert template_end_id(card.codec) is None
    talk = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "ran"}]
    assert chat_row(card.codec, card.eos_ids, talk) == ([3, 5, 7, 1], [False, False, True, True])


def test_a_template_that_rewrites_earlier_turns(tmp_path):
    codec, _ = make_codecs(write_tokenizer(tmp_path, "bytes", FORGETS))
    with pytest.raises(DataError, match=r"rewrites the conversation around its message 2.*data.turns"):
        chat_row(codec, (2,), TALK)
    row, mask = chat_row(codec, (2,), TALK, turns="last")
    assert codec.decode_batch([[token for token, trained in zip(row, mask, strict=True) if trained]]) == [
        "Ten past nine."
    ]
    asked = prompt_ids(codec, TALK[:3])[1]
    assert row[: len(asked)] == asked and sum(mask) == len(row) - len(asked)


def test_roles_that_a_template_refuses(tmp_path):
    codec, slow = make_codecs(write_tokenizer(tmp_path / "gemma", "bytes", GEMMA))
    for each in (codec, slow):
        with pytest.raises(DataError, match=r"roles system, user.*System role not supported"):
            prompt_ids(each, [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])
    for name in ("default", "plain"):
        codec, _ = make_codecs(write_tokenizer(tmp_path / name, "bytes", TEMPLATES[name]))
        with pytest.raises(DataError, match="the role 'tool' is none of system, user, assistant"):
            prompt_ids(codec, [{"role": "tool", "content": "x"}])
    with pytest.raises(DataError, match="empty"):
        prompt_ids(codec, [])
    with pytest.raises(DataError, match="no assistant message"):
        chat_row(codec, (2,), TALK[:1])


def test_no_template_and_a_broken_one(tmp_path):
    codec, slow = make_codecs(write_tokenizer(tmp_path / "none", "bytes", None))
    for each in (codec, slow):
        with pytest.raises(DataError, match="messages need a chat template"):
            prompt_ids(each, TALK[:1])
    codec, _ = make_codecs(write_tokenizer(tmp_path / "broken", "bytes", "{% for m in messages %}"))
    with pytest.raises(DataError, match="not valid jinja2, line 1"):
        prompt_ids(codec, TALK[:1])
    codec, _ = make_codecs(write_tokenizer(tmp_path / "breakout", "bytes", "{{ messages.__class__.__mro__ }}"))
    with pytest.raises(DataError, match="cannot render"):
        prompt_ids(codec, TALK[:1])


def test_templates_in_the_configuration(tmp_path):
    folder = write_tokenizer(tmp_path, "bytes", None)
    file = folder / "tokenizer_config.json"
    plain = json.loads(file.read_text())
    token = {"__type": "AddedToken", "content": "</s>", "special": True}
    for template in (CHATML, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]):
        file.write_text(json.dumps(plain | {"chat_template": template, "eos_token": token}))
        fast, slow = make_codecs(folder)
        assert fast.chat_template == slow.chat_template == CHATML
        assert fast.special_tokens == slow.special_tokens
        assert pickle.loads(pickle.dumps(fast)).render_chat(TALK, True) == slow.render_chat(TALK, True)


def test_importing_needs_no_heavy_library():
    code = (
        "import sys, lmrl.models, lmrl.text.chat_template; "
        "print([m for m in ('torch', 'transformers', 'jinja2') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
