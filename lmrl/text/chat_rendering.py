"""Rendering of chat templates, as transformers does it, with jinja2 alone.

The same sandbox, filters, globals and whitespace rules as ``transformers.utils.chat_template_utils``; a test compares
the two. Tools and further variables come with a ``Conversation``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lmrl.errors import DataError
from lmrl.text.conversation import TRAIN_KEYS, Conversation, variables_of

if TYPE_CHECKING:
    from jinja2 import Template

    from lmrl.text.codec import TextCodec

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The keyword with which a template marks what the assistant said."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which messages keep the reasoning before an answer; templates read the first or the second."""
CONTINUED = "CONTINUE_FINAL_MESSAGE_TAG "
"""Stands behind the message that is continued while it is rendered, as in transformers."""
PROBED = 8
"""Conversations that are rendered with and without a key, to see whether the template reads it."""


class ChatRenderer:
    """A compiled chat template with the special tokens that it may name (``bos_token``, ``eos_token``, ...)."""

    def __init__(self, template: str, special_tokens: Mapping[str, str]) -> None:
        self.template = template
        self._special_tokens = dict(special_tokens)
        self._compiled = _compile(template)

    @property
    def marks_generation(self) -> bool:
        """True if the template marks the assistant's words by ``{% generation %}``."""
        return GENERATION.search(self.template) is not None

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        """Return the conversation's text; raises ``DataError`` with the template's own reason when it cannot."""
        with template_errors(messages):
            return self._compiled.render(**self._variables(messages, add_generation_prompt, variables_of(messages)))

    def render_continued(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text of a conversation up to the end of its last message's content, for the model to continue.

        This is ``continue_final_message`` of transformers. Raises ``DataError`` when the template rewrites the message.
        """
        with template_errors(messages):
            content = messages[-1].get("content")
            if not isinstance(content, str):
                raise ValueError("the last message has no text to continue")
            tagged = [*messages[:-1], {**messages[-1], "content": content + CONTINUED}]
            text = self._compiled.render(**self._variables(tagged, False, variables_of(messages)))
            tag = CONTINUED.strip()
            if content.strip() not in text or tag not in text:
                raise ValueError("it rewrites the last message, which therefore cannot be continued")
            end = text.rindex(tag)
            # Without the tag's own space the template trims its messages, so the beginning is trimmed too.
            return text[:end] if text[end : end + len(CONTINUED)] == CONTINUED else text[:end].rstrip()

    def generation_spans(self, messages: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
        """Return the (start, end) characters of each ``{% generation %}`` block in the rendered conversation."""
        blocks: list[str] = []
        spans: list[tuple[int, int]] = []
        environment: Any = self._compiled.environment
        with template_errors(messages), environment.track_generation(blocks, spans):
            for block in self._compiled.generate(**self._variables(messages, False, variables_of(messages))):
                blocks.append(block)
        return spans

    def _variables(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "tools": None,
            "documents": None,
            **self._special_tokens,
            **variables,
            "messages": [_plain_message(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }


def _plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without keys whose value is None, which many templates would print, and with its reasoning
    under both names that templates read; transformers does the same."""
    plain = {key: value for key, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in REASONING if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def unread_keys(codec: TextCodec, conversations: Iterable[object]) -> dict[str, int]:
    """Return the message keys and variables that the chat template drops, with how many conversations have them.

    A key is dropped when no conversation (of the first few that have it) is rendered differently without it.
    """
    having: dict[str, list[Sequence[Mapping[str, Any]]]] = {}
    for messages in conversations:
        if isinstance(messages, Sequence) and not isinstance(messages, str):
            keys = {str(key) for message in messages for key, value in message.items() if value is not None}
            for name in (keys | set(variables_of(messages))) - {"role", "content", *TRAIN_KEYS}:
                having.setdefault(name, []).append(messages)
    return {
        name: len(found)
        for name, found in having.items()
        if all(_rendered(codec, item) == _rendered(codec, item, name) for item in found[:PROBED])
    }


def _rendered(codec: TextCodec, messages: Sequence[Mapping[str, Any]], without: str = "") -> str:
    variables = {name: value for name, value in variables_of(messages).items() if name != without}
    plain = [{name: value for name, value in message.items() if name != without} for message in messages]
    try:
        return codec.render_chat(Conversation(plain, variables), True)
    except DataError as error:
        return f"refused: {error}"


@contextmanager
def template_errors(messages: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Turn whatever a template raises into a ``DataError`` that names the conversation's roles."""
    roles = ", ".join(str(message.get("role")) for message in messages) or "no message at all"
    try:
        if not messages:
            raise ValueError("the conversation is empty")
        yield
    except DataError:
        raise
    except Exception as error:  # a template is somebody's program; it can fail in any way
        raise DataError(
            f"the chat template cannot render a conversation of the roles {roles}: {error}. Change the rows, or choose "
            "another template (of `lmrl sft`: template.name)."
        ) from error


def default_template(found: Any) -> str | None:
    """Return the one template to use of what a tokenizer's configuration holds: a string, or several by name."""
    if isinstance(found, list):
        found = {item.get("name"): item.get("template") for item in found if isinstance(item, Mapping)}
    if isinstance(found, Mapping):
        found = found.get("default")
    return found if isinstance(found, str) else None


@lru_cache(maxsize=64)
def _compile(template: str) -> Template:
    from lmrl.text.template_environment import compile_template  # late: it needs jinja2

    return compile_template(template)
