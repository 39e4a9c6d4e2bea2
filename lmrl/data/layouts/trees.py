"""Conversation trees as OpenAssistant keeps them: a prompt, and ranked replies to every message.

Source: Köpf et al. 2023, "OpenAssistant Conversations", sections 3 and 4; a reply's ``rank`` is 0 for the best. Trees
come whole (``prompt.replies[].replies[]``) or as one row per message, which ``gather_messages`` puts together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmrl.data.layouts.conversations import ROLES, Messages, before_answer, message
from lmrl.data.layouts.reading import Answered, Found, Skip, native, number
from lmrl.data.records import Answer, dense_ranks

Node = Mapping[str, Any]


def tree_rankings(row: Mapping[str, Any]) -> Found:
    """Yield one ranking for every group of two or more ranked replies, with the conversation that led to it."""
    seen = 0
    for conversation, node in _walk((), _root(row)):
        replies = [reply for reply in _replies(node) if _rank(reply) is not None]
        if len(replies) < 2:
            continue
        seen += 1
        if any(_role(reply) != "assistant" for reply in replies):
            yield Skip("ranked replies that are not the assistant's")
            continue
        texts = tuple(str(reply["text"]).strip() for reply in replies)
        ranks = dense_ranks(tuple(float(_rank(reply) or 0) for reply in replies))
        depth = sum(item["role"] == "assistant" for item in conversation)
        found = {"message_tree_id": row.get("message_tree_id", ""), "depth": depth}
        yield Answered(conversation, texts, ranks, used=tuple(row), columns=found)
    if not seen:
        yield Skip("a tree without two ranked replies to one message")


def tree_example(row: Mapping[str, Any]) -> Found:
    """Yield the best path through the tree, which ends with the last assistant message on it; see ``best_path``."""
    prompt, answer = path_before_answer(row)
    if answer is None:
        raise Skip("a tree without an answer")
    yield Answered(prompt, (answer,), (0,), used=tuple(row))


def path_before_answer(row: Mapping[str, Any]) -> tuple[Messages, Answer | None]:
    """Return the best path up to its last assistant message, and that message's text; a path without one is whole."""
    path = best_path(row)
    if not any(item["role"] == "assistant" for item in path):
        return path, None
    return before_answer(path)


def best_path(row: Mapping[str, Any]) -> Messages:
    """Return the best ranked reply at every turn, the longest way on where none is ranked, as messages.

    Raises ``Skip`` where there is no usable root.
    """
    node: Node | None = _root(row)
    path: list[Any] = []
    while node is not None:
        path.append(_message(node))
        replies = _replies(node)
        # Python keeps the first of equals, so the order in the file decides last.
        node = min(replies, key=_preference, default=None)
    return tuple(path)


def gather_messages(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, dict[str, Any] | Skip]]:
    """Return whole trees of one-message rows, each with the number of its first row (from 1).

    A message whose parent is not among the rows is left out, and what follows it with it.
    """
    nodes: dict[Any, dict[str, Any]] = {}
    places: dict[Any, int] = {}
    trees: list[tuple[int, dict[str, Any] | Skip]] = []
    for place, row in enumerate(rows, start=1):
        if not all(isinstance(row[name], str | int | None) for name in ("message_id", "parent_id")):
            trees.append((place, Skip("a message_id or parent_id that is neither text nor a number")))
            continue
        if row["message_id"] in nodes:
            trees.append((place, Skip("a message whose message_id another one has")))
            continue
        nodes[row["message_id"]] = {**row, "replies": []}
        places[row["message_id"]] = place
    for key, node in nodes.items():
        parent = node.get("parent_id")
        if parent is None:
            trees.append((places[key], {"message_tree_id": node.get("message_tree_id", key), "prompt": node}))
        elif parent in nodes:
            nodes[parent]["replies"].append(node)
        else:
            trees.append((places[key], Skip("a message whose parent is not there")))
    return trees


def _walk(before: Messages, node: Node) -> Iterator[tuple[Messages, Node]]:
    conversation = (*before, _message(node))
    yield conversation, node
    for reply in _replies(node):
        yield from _walk(conversation, reply)


def _root(row: Mapping[str, Any]) -> Node:
    node = row.get("prompt")
    if not isinstance(node, Mapping) or not _usable(node):
        raise Skip("a tree whose prompt is missing, deleted or empty")
    if _role(node) != "user":
        raise Skip("a tree that the assistant begins")
    return node


def _replies(node: Node) -> list[Node]:
    found = native(node.get("replies"))
    listed = found if isinstance(found, Sequence) else []
    return [reply for reply in listed if isinstance(reply, Mapping) and _usable(reply)]


def _usable(node: Node) -> bool:
    text = node.get("text")
    return isinstance(text, str) and bool(text.strip()) and not node.get("deleted") and bool(_role(node))


def _role(node: Node) -> str:
    return ROLES.get(str(node.get("role")).lower(), "")


def _message(node: Node) -> Mapping[str, str]:
    return message(_role(node), str(node["text"]).strip())


def _preference(node: Node) -> tuple[float, int]:
    rank = _rank(node)
    return (float("inf") if rank is None else rank, -_depth(node))


def _rank(node: Node) -> float | None:
    return number(node.get("rank"))


def _depth(node: Node) -> int:
    return 1 + max((_depth(reply) for reply in _replies(node)), default=0)
