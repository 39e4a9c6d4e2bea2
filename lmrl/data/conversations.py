"""Conversations as people write them down, brought to one form: messages of role and content.

Lists of role and content (also with content in parts), sharegpt's from and value, and HH transcripts. Leaves out trees
(``lmrl.data.trees``) and chat templates (``lmrl.models.chat_template``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmrl.data.reading import Skip, native
from lmrl.data.records import Answer, Message, Prompt

ROLES = {
    **{name: "system" for name in ("system", "developer")},
    **{name: "user" for name in ("user", "human", "prompter", "question")},
    **{name: "assistant" for name in ("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "model", "answer")},
    **{name: "tool" for name in ("tool", "function", "observation", "function_response", "ipython")},
}
"""What the names of roles that data sets use stand for."""

TURN = re.compile(r"\n\n(Human|Assistant):")
"""The beginning of a turn in an HH transcript."""

Messages = tuple[Message, ...]


def message(role: str, content: str) -> Message:
    """Return one message."""
    return {"role": role, "content": content}


def looks_like_messages(value: object) -> bool:
    """Tell whether a cell holds messages rather than a text: a list of objects with role or from."""
    value = native(value)
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in value)
    )


def read_messages(value: object, what: str = "messages") -> Messages:
    """Return a conversation whose messages all have a known role and something in them.

    An empty system message says nothing and is dropped. Raises ``Skip`` for an unknown role, an empty message, content
    that is not text (images, calls of tools), or no message at all.
    """
    value = native(value)
    if isinstance(value, Mapping):  # one message alone, as sharegpt's chosen and rejected are
        value = [value]
    if value is None or (isinstance(value, Sequence) and not value):
        raise Skip(f"no {what}")
    if not isinstance(value, Sequence) or isinstance(value, str) or not looks_like_messages(value):
        raise Skip(f"{what}: not messages of role and content", f"a {type(value).__name__}")
    found = tuple(item for item in map(_message, value) if item is not None)
    if not found:
        raise Skip(f"{what}: nothing said")
    return found


def _message(item: Mapping[str, Any]) -> Message | None:
    named = item.get("role") if item.get("role") is not None else item.get("from")
    role = ROLES.get(named.strip().lower()) if isinstance(named, str) else None
    if role is None:
        raise Skip("an unknown role", f"{named!r}; known are {', '.join(sorted(ROLES))}")
    if item.get("tool_calls") or item.get("function_call"):
        raise Skip("a call of a tool")
    content = item.get("content") if item.get("content") is not None else item.get("value")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part(part) for part in content)
    if content is not None and not isinstance(content, str):
        raise Skip("a message that is not text", f"a {type(content).__name__}")
    if content is None or not content.strip():
        if role == "system":
            return None
        raise Skip(f"an empty {role} message")
    return message(role, content)


def _part(part: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise Skip("a message that is not text", f"a part of the kind {kind}")
    return text


def is_transcript(text: str) -> bool:
    r"""Tell whether a text is an HH transcript: ``\n\nHuman: ... \n\nAssistant: ...``."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def read_transcript(text: str) -> Messages:
    """Return the turns of an HH transcript; the space around each is not part of it, and the last may be empty."""
    pieces = TURN.split("\n\n" + text.lstrip())[1:]  # a speaker and what is said, in turn
    found = tuple(
        message(ROLES[speaker.lower()], said.strip()) for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    )
    empty = next((item["role"] for item in found[:-1] if not item["content"]), "")
    if empty:
        raise Skip(f"an empty {empty} message")
    return found


def before_answer(messages: Messages) -> tuple[Messages, str]:
    """Return the conversation up to its last assistant message, and that message's text; what follows it is dropped.

    Raises ``Skip`` when the assistant says nothing, or speaks first.
    """
    last = max((place for place, item in enumerate(messages) if item["role"] == "assistant"), default=-1)
    if last < 0:
        raise Skip("no assistant message")
    if all(item["role"] == "system" for item in messages[:last]):
        raise Skip("an assistant message before any other")
    return messages[:last], messages[last]["content"]


def divide(first: Messages, second: Messages) -> tuple[Messages, Messages, Messages]:
    """Return the common beginning of two conversations and what follows it in each.

    The cut is made where both go on with the assistant. Raises ``Skip`` when there is no such place, or one of the two
    does not end with the assistant.
    """
    for conversation in (first, second):
        if not conversation or conversation[-1]["role"] != "assistant":
            raise Skip("a conversation that does not end with the assistant")
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    while common > 0 and not all(_assistant_at(item, common) for item in (first, second)):
        common -= 1
    if common == 0:
        raise Skip("two conversations without a common beginning")
    return first[:common], first[common:], second[common:]


def _assistant_at(messages: Messages, place: int) -> bool:
    return place < len(messages) and messages[place]["role"] == "assistant"


def shortest(messages: Messages) -> Answer:
    """Return the text of a single assistant message; several messages stay messages."""
    return messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "assistant" else messages


def longest(answer: Answer) -> Messages:
    """Return an answer as messages."""
    return (message("assistant", answer),) if isinstance(answer, str) else answer


def opening(prompt: Prompt) -> str:
    """Return how a prompt begins: a text as a whole, a conversation up to the first assistant message.

    Rows with one opening belong to one side of a split: later prompts of a conversation contain its earlier answers.
    """
    if isinstance(prompt, str):
        return prompt
    first = next((place for place, item in enumerate(prompt) if item["role"] == "assistant"), len(prompt))
    return repr([(item["role"], item["content"]) for item in prompt[:first]])
