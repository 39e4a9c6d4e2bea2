"""Conversations as people write them down, brought to one form: messages of role and content.

Lists of role and content (also with content in parts), sharegpt's from and value, and HH transcripts. Leaves out trees
(``lmrl.data.layouts.trees``) and chat templates (``lmrl.text.chat_template``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmrl.data.layouts.reading import Skip, number, structured
from lmrl.data.records import Answer, Message, Prompt
from lmrl.text.conversation import TRAIN_KEYS, variables_of, with_variables

ROLES = {
    **{name: "system" for name in ("system", "developer")},
    **{name: "user" for name in ("user", "human", "prompter", "question")},
    **{name: "assistant" for name in ("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "model", "answer")},
    **{name: "assistant" for name in ("chatbot", "ai", "function_call", "tool_call")},
    **{name: "tool" for name in ("tool", "function", "observation", "function_response", "tool_response", "ipython")},
}
"""Our roles by the names that data sets use."""
CALLS = ("function_call", "tool_call")
"""Roles of messages whose content is a call of a tool, as JSON."""

TURN = re.compile(r"\n\n(Human|Assistant):")
"""The beginning of a turn in an HH transcript."""

Messages = tuple[Message, ...]


def message(role: str, content: str) -> Message:
    """Return one message."""
    return {"role": role, "content": content}


def looks_like_messages(value: object) -> bool:
    """Tell whether a cell holds messages rather than a text: a list of objects with role or from, perhaps as JSON."""
    value = structured(value)
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in value)
    )


def is_text(value: object) -> bool:
    """Tell whether a cell holds a text rather than messages that are stored as JSON."""
    return isinstance(value, str) and (not value.lstrip().startswith("[") or not looks_like_messages(value))


def read_messages(value: object, what: str = "messages") -> Messages:
    """Return a conversation whose messages all have a known role and something in them.

    Keys besides role and content are kept for the chat template. An empty system message is dropped. Raises ``Skip``
    for an unknown role, an empty message, content that is not text (images), or no message at all.
    """
    value = structured(value)
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
    name = named.strip().lower() if isinstance(named, str) else ""
    role = ROLES.get(name)
    if role is None:
        raise Skip("an unknown role", f"{named!r}; known are {', '.join(sorted(ROLES))}")
    content = item.get("content") if item.get("content") is not None else item.get("value")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part(part) for part in content)
    if content is not None and not isinstance(content, str):
        raise Skip("a message that is not text", f"a {type(content).__name__}")
    further = _further(item)
    calls = item.get("tool_calls") or item.get("function_call") or (content if name in CALLS else None)
    if calls:
        further["tool_calls"] = _calls(calls)
        return {"role": role, "content": "" if name in CALLS else content or "", **further}
    if content is None or not content.strip():
        if role == "system":
            return None
        raise Skip(f"an empty {role} message")
    return {"role": role, "content": content, **further}


def _further(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message's other keys; a weight of 1 says nothing and is dropped."""
    taken = {"role", "from", "content", "value", "tool_calls", "function_call"}
    further = {str(key): value for key, value in item.items() if key not in taken and value is not None}
    for key in TRAIN_KEYS:
        weight = number(further.pop(key, 1))
        if weight not in (0.0, 1.0):
            raise Skip("a message weight that is neither 0 nor 1", repr(item[key])[:40])
        if not weight:
            further[key] = 0
    return further


def _calls(value: object) -> list[dict[str, Any]]:
    """Return calls of tools as chat templates take them, with arguments as objects. Raises ``Skip`` for broken ones."""
    value = structured(value)
    found = []
    for call in [value] if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]:
        call = structured(call)
        function = structured(call.get("function", call)) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Skip("a call of a tool without a name")
        plain = {key: item for key, item in function.items() if item is not None and key not in ("id", "type")}
        plain["arguments"] = structured(plain.get("arguments", {}))
        identity = {key: call[key] for key in ("id",) if call.get(key) is not None}
        found.append({**identity, "type": "function", "function": plain})
    return found


def _part(part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part
    if isinstance(part, Mapping):
        text = next((part[key] for key in ("text", "value", "content") if isinstance(part.get(key), str)), None)
    if not isinstance(text, str) or kind not in ("text", "input_text", "output_text", "str", None):
        raise Skip("a message that is not text", f"a part of the kind {kind}")
    return text


def with_system(row: Mapping[str, Any], messages: Messages) -> Messages:
    """Return a conversation with the system message that the row keeps in a column of its own."""
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
        return with_variables((message("system", system), *messages), variables_of(messages))
    return messages


def alike(first: Messages, second: Messages) -> bool:
    """Tell whether two conversations say the same; keys such as ids and times may differ."""
    return len(first) == len(second) and all(map(_same, first, second))


def _same(first: Message, second: Message) -> bool:
    return all(first.get(key) == second.get(key) for key in ("role", "content", "tool_calls"))


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


def before_answer(messages: Messages) -> tuple[Messages, Answer]:
    """Return the conversation up to its last assistant message, and that message; what follows it is dropped.

    Raises ``Skip`` when the assistant says nothing, or speaks first.
    """
    last = max((place for place, item in enumerate(messages) if item["role"] == "assistant"), default=-1)
    if last < 0:
        raise Skip("no assistant message")
    if all(item["role"] == "system" for item in messages[:last]):
        raise Skip("an assistant message before any other")
    first = last
    while messages[first - 1]["role"] == "assistant":  # several in a row are one answer
        first -= 1
    return messages[:first], shortest(messages[first : last + 1])


def divide(first: Messages, second: Messages) -> tuple[Messages, Messages, Messages]:
    """Return the common beginning of two conversations and what follows it in each.

    The cut is made where both go on with the assistant. Raises ``Skip`` when there is no such place, or one of the two
    does not end with the assistant.
    """
    for conversation in (first, second):
        if not conversation or conversation[-1]["role"] != "assistant":
            raise Skip("a conversation that does not end with the assistant")
    common = 0
    while common < min(len(first), len(second)) and _same(first[common], second[common]):
        common += 1
    while common > 0 and not all(_assistant_at(item, common) for item in (first, second)):
        common -= 1
    if common == 0:
        raise Skip("two conversations without a common beginning")
    return first[:common], first[common:], second[common:]


def _assistant_at(messages: Messages, place: int) -> bool:
    return place < len(messages) and messages[place]["role"] == "assistant"


def shortest(messages: Messages) -> Answer:
    """Return the text of a single assistant message that is nothing else; several messages stay messages."""
    only = messages[0] if len(messages) == 1 else {}
    return str(only["content"]) if only.get("role") == "assistant" and set(only) == {"role", "content"} else messages


def text_of_answer(answer: Answer) -> str:
    """Return what an answer says, for rewards: its text, or the content of its last message."""
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


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
