"""Conversations as token ids: what a model is asked, what it is trained to answer, and which tokens count.

One rule serves training and inference, so that a prompt's ids are always a prefix of the trained row's: a rendered
conversation is cut where the assistant begins to speak, and each piece is encoded as the continuation of what stands
before it. Needs neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lmrl.errors import DataError
from lmrl.text.conversation import TRAIN_KEYS, is_prefilled, is_trained, variables_of, with_variables
from lmrl.text.encoding import text_ids

if TYPE_CHECKING:
    from lmrl.text.codec import TextCodec

Messages: TypeAlias = Sequence[Mapping[str, Any]]

_ROLES = """{%- if message['role'] not in ('system', 'user', 'assistant') -%}
{{- raise_exception("the role '" ~ message['role'] ~ "' is none of system, user, assistant") -}}
{%- endif -%}
"""

DEFAULT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
"""Special tokens of ``DEFAULT_TEMPLATE``: each opens a turn of its role."""

DEFAULT_TEMPLATE = (
    "{{- bos_token -}}\n{%- for message in messages -%}\n"
    + _ROLES
    + """{{- '<|' ~ message['role'] ~ '|>' ~ message['content'] | trim -}}
{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
)
"""One new special token per role, and the tokenizer's EOS after each answer."""

PLAIN_TEMPLATE = (
    "{{- bos_token -}}\n{%- for message in messages -%}\n"
    + _ROLES
    + """{{- message['role'] | capitalize ~ ': ' ~ message['content'] | trim -}}
{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""
)
"""Roles as words, ``User: ...``, and the tokenizer's EOS after each answer: no new tokens."""


@dataclass(frozen=True)
class _Turn:
    """Place of an answer in a rendered conversation: ``asked`` characters lead to it, ``said`` are its ranges."""

    asked: int
    said: tuple[tuple[int, int], ...]


def prompt_ids(codec: TextCodec, prompt: str | Messages) -> tuple[str, list[int]]:
    """Return the text and the token ids of a prompt, as a model is asked at inference.

    Plain text is encoded by ``text_ids``. Messages are rendered by the chat template with its generation
    prompt; a conversation that ends with an assistant message (prefill) is rendered up to the end of that message,
    which the model continues. The template writes BOS itself, so the tokenizer adds none. The ids are a prefix of what
    ``chat_row`` and ``response_row`` make of the same conversation. Raises ``DataError`` when the template cannot
    render it.
    """
    if isinstance(prompt, str):
        return prompt, text_ids(codec, prompt)
    _refuse_unrendered_calls(codec, prompt)
    if not is_prefilled(prompt):
        text = codec.render_chat(prompt, True)
        return text, _encode_pieces(codec, text, _locate(codec, prompt, text))[0]
    text, asked = codec.render_continued(prompt), codec.render_chat(prompt[:-1], True)
    turns = _locate(codec, prompt[:-1], text)
    if text.startswith(asked):
        turns[len(prompt) - 1] = _Turn(len(asked), ())
    return text, _encode_pieces(codec, text, turns)[0]


def response_row(
    codec: TextCodec, eos_ids: Sequence[int], prompt: str | Messages, completion: str | Messages
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and of its completion, closed by the template's end of a turn or by EOS.

    ``prompt`` and ``completion`` are plain texts, or the prompt is messages and the completion the answer's text (or
    messages, where the continuation has several turns). A prompt that ends with an assistant message is continued by
    the completion. Together they are the row that fine-tuning trains on. Raises ``DataError`` when the answer cannot be
    located in the rendered conversation.
    """
    if isinstance(prompt, str):
        if not isinstance(completion, str):
            raise DataError("the prompt is text and its completion a list of messages; expected two texts.")
        before = text_ids(codec, prompt)
        joint = text_ids(codec, prompt + completion)
        answer = joint[len(before) :] if joint[: len(before)] == before else _encode_after(codec, completion)
        return before, answer if answer and answer[-1] in eos_ids else [*answer, _closing_id(codec, eos_ids)]
    said = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
    said = [{key: value for key, value in message.items() if key not in TRAIN_KEYS} for message in said]
    text, asked = prompt_ids(codec, prompt)
    first, after = len(prompt), 0
    if is_prefilled(prompt):
        begun = f"{prompt[-1].get('content') or ''}{said[0].get('content') or ''}"
        said, first, after = [{**prompt[-1], **said[0], "content": begun}, *said[1:]], first - 1, len(text)
    whole = with_variables([*prompt[:first], *said], variables_of(prompt))
    row, _ = chat_row(codec, eos_ids, whole, first=first, after=after)
    if row[: len(asked)] != asked:
        raise DataError(
            "the chat template renders the prompt differently once an answer follows, so the answer cannot be located; "
            "expected a template that leaves the prompt as it is."
        )
    return asked, row[len(asked) :]


def chat_row(
    codec: TextCodec,
    eos_ids: Sequence[int],
    messages: Messages,
    turns: Literal["all", "last"] = "all",
    first: int = 0,
    after: int = 0,
) -> tuple[list[int], list[bool]]:
    """Return a conversation's ids and, for each, whether it is trained: the assistant's tokens, their end included.

    ``turns`` "last" trains the last answer alone; messages before index ``first``, those whose weight is 0 and the
    first ``after`` characters are never trained. What follows the last trained token is left out. An answer is what a
    rendering with it adds to one without it, or the ``{% generation %}`` blocks in that. Raises ``DataError`` when
    there is no answer, or when the template rewrites one once more turns follow, so that it cannot be located.
    """
    answers = [at for at, message in enumerate(messages) if message.get("role") == "assistant" and at >= first]
    answers = [at for at in (answers[-1:] if turns == "last" else answers) if is_trained(messages[at])]
    if not answers:
        raise DataError("the conversation holds no assistant message to learn from.")
    messages = messages[: answers[-1] + 1]
    _refuse_unrendered_calls(codec, messages)
    text = codec.render_chat(messages, False)
    located = _locate(codec, messages, text, after)
    row, lengths = _encode_pieces(codec, text, located)
    ends = frozenset(eos_ids) | {template_end_id(codec)}
    mask = [False] * len(row)
    for at in answers:
        if at not in located:
            raise DataError(
                f"the chat template rewrites the conversation around its message {at + 1}, so that answer cannot be "
                'located in it; train on the last answers alone (of `lmrl sft`: data.turns = "last"), or choose '
                "another template."
            )
        for start, end in located[at].said:
            begin, stop = lengths[start], lengths[end]
            closed = [place for place in range(begin, stop) if row[place] in ends]
            if closed:
                stop = _first_end(codec, row, closed) + 1
            elif row[stop : stop + 1] and row[stop] in ends:
                stop += 1
            mask[begin:stop] = [True] * (stop - begin)
    if not any(mask):
        raise DataError("the chat template's {% generation %} blocks mark nothing of the assistant's answers.")
    length = max(place for place, trained in enumerate(mask) if trained) + 1
    row, mask = row[:length], mask[:length]
    if row[-1] not in ends:
        return [*row, _closing_id(codec, eos_ids)], [*mask, True]
    return row, mask


def _first_end(codec: TextCodec, row: Sequence[int], closed: Sequence[int]) -> int:
    """Return the place of the token that ends an answer: sampling stops at the first of the ends behind it.

    ``closed`` are the places of all ends. An end inside the answer, with text behind it, is part of the answer.
    """
    last = len(closed) - 1
    while last and not codec.decode_batch([row[closed[last - 1] + 1 : closed[last]]])[0].strip():
        last -= 1
    return closed[last]


def _refuse_unrendered_calls(codec: TextCodec, messages: Messages) -> None:
    if any(message.get("tool_calls") for message in messages) and not _renders_calls(codec):
        raise DataError(
            "the chat template renders no tool_calls, so the calls of tools in the conversation would be lost; choose "
            "a template that reads them."
        )


@lru_cache(maxsize=32)
def _renders_calls(codec: TextCodec) -> bool:
    """Return whether the chat template renders calls of tools; one that refuses this conversation knows of them."""
    asked, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    try:
        return codec.render_chat([asked, said], False) != codec.render_chat(
            [asked, {**said, "tool_calls": [call]}], False
        )
    except DataError:
        return True


@lru_cache(maxsize=32)
def template_end_id(codec: TextCodec) -> int | None:
    """Return the added token with which the chat template closes an answer; None if there is no such token.

    It is the first added token that the template writes behind an answer. A template that closes an answer with plain
    text, or not at all, has none; rows are then closed by EOS.
    """
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Zyzzyva"}]
    after = ""
    for messages in (conversation, [{"role": "system", "content": "a"}, *conversation]):
        try:
            _, answered, after = codec.render_chat(messages, False).rpartition("Zyzzyva")
        except DataError:
            continue
        if answered:
            break
        after = ""
    named = {text: id_ for text, id_ in codec.added_tokens.items() if text.strip() and text in after}
    if not named:
        return None
    return named[min(named, key=lambda text: (after.index(text), -len(text)))]


def _locate(codec: TextCodec, messages: Messages, text: str, after: int = 0) -> dict[int, _Turn]:
    """Return, by index, the answers whose rendering up to them and with them is a prefix of ``text``.

    What an answer says begins behind the first ``after`` characters.
    """
    turns = {}
    for at, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        try:
            asked = codec.render_chat(messages[:at], True)
            told = codec.render_chat(messages[: at + 1], False)
        except DataError:
            continue
        if not (text.startswith(told) and told.startswith(asked)):
            continue
        said: Sequence[tuple[int, int]] = [(len(asked), len(told))]
        if codec.renderer.marks_generation:
            spans = codec.renderer.generation_spans(messages[: at + 1])
            said = [(max(start, len(asked)), end) for start, end in spans if end >= len(asked)]
        turns[at] = _Turn(len(asked), tuple((max(start, after), end) for start, end in said if end > after))
    return turns


def _encode_pieces(codec: TextCodec, text: str, turns: Mapping[int, _Turn]) -> tuple[list[int], dict[int, int]]:
    """Return the ids of ``text``, cut where turns begin and end, and how many ids stand before each cut."""
    places = {place for turn in turns.values() for place in (turn.asked, *(at for span in turn.said for at in span))}
    row: list[int] = []
    lengths = {0: 0}
    before = 0
    for cut in sorted(places | {len(text)}):
        joint = codec.encode_plain(text[:cut])
        row = joint if joint[: len(row)] == row else row + _encode_after(codec, text[before:cut])
        lengths[cut] = len(row)
        before = cut
    return row, lengths


def _encode_after(codec: TextCodec, text: str) -> list[int]:
    """Return the ids of a text that continues another one at a token's border.

    Tokenizers that put a space before each text would put one in the middle, so something is encoded before it.
    """
    for start in ("\n", ".", "a"):
        alone, joint = codec.encode_plain(start), codec.encode_plain(start + text)
        if alone and joint[: len(alone)] == alone:
            return joint[len(alone) :]
    return codec.encode_plain(text)


def _closing_id(codec: TextCodec, eos_ids: Sequence[int]) -> int:
    """Return the id that closes an answer: the tokenizer's EOS where the model stops at it."""
    named = codec.encode_plain(codec.special_tokens.get("eos_token", ""))
    return named[0] if len(named) == 1 and named[0] in eos_ids else eos_ids[0]
