"""A conversation with the variables of its chat template: tools, and whatever ``chat_template_kwargs`` sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, overload

RESERVED = ("messages", "add_generation_prompt", "continue_final_message", "tokenize", "chat_template")
"""Names that the renderer sets itself; ``chat_template_kwargs`` may not contain them."""
TRAIN_KEYS = ("weight", "train", "training")
"""Message keys that say whether an assistant message is trained: OpenAI's ``weight``, Axolotl's ``train``."""


class Conversation(tuple[Mapping[str, Any], ...]):
    """Messages that keep the variables of their chat template; a slice keeps them too.

    Functions that render messages accept any sequence and read ``variables`` where it is there.
    """

    variables: dict[str, Any]

    def __new__(
        cls, messages: Iterable[Mapping[str, Any]] = (), variables: Mapping[str, Any] | None = None
    ) -> Conversation:
        """Return the messages with these variables."""
        made = super().__new__(cls, messages)
        made.variables = dict(variables or {})
        return made

    @overload
    def __getitem__(self, key: SupportsIndex, /) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, key: slice, /) -> Conversation: ...
    def __getitem__(self, key: Any, /) -> Any:
        found = super().__getitem__(key)
        return Conversation(found, self.variables) if isinstance(key, slice) else found


def variables_of(messages: object) -> dict[str, Any]:
    """Return the template variables of a conversation; none for any other sequence."""
    return messages.variables if isinstance(messages, Conversation) else {}


def with_variables(
    messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> tuple[Mapping[str, Any], ...]:
    """Return messages with these template variables, as a plain tuple where there are none."""
    return Conversation(messages, variables) if variables else tuple(messages)


def is_trained(message: Mapping[str, Any]) -> bool:
    """Return whether fine-tuning imitates an assistant message: unless its weight is 0 or its ``train`` is false."""
    return all(message.get(key) is None or bool(message[key]) for key in TRAIN_KEYS)


def is_prefilled(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a prompt ends with the beginning of the answer: an assistant message that is continued."""
    return bool(messages) and messages[-1].get("role") == "assistant"
