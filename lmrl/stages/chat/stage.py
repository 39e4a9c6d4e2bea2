"""Chatting with a model: the conversation and what may be done to it, without a terminal.

``ChatSession`` holds the engine core; ``lmrl.stages.chat.loop`` reads lines and commands, `lmrl chat` brings the
terminal.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lmrl.config import apply_overrides, build
from lmrl.data.loading.files import read_rows
from lmrl.engines.protocol import FinishReason
from lmrl.engines.settings import SamplingSettings
from lmrl.errors import DataError, PromptError, SettingsError
from lmrl.models.loading import LanguageModel, load
from lmrl.seeds import derive_seed
from lmrl.stages.asking import answer_spec, as_messages, ask, chats, model_path, refuse_broken
from lmrl.stages.chat.stream import Stream
from lmrl.text.encoding import opening_ids, text_ids
from lmrl.text.turns import holds_turns

logger = logging.getLogger(__name__)
CHAT_SAMPLING = SamplingSettings(temperature=0.7, max_new_tokens=256)
"""Default sampling of a chat."""


@dataclass(frozen=True)
class Reply:
    """Facts about the last answer: ``finish`` is NONE if it was stopped; ``dropped`` old messages (or, where text
    is completed, tokens) did not fit into the context."""

    text: str
    tokens: int
    seconds: float
    finish: FinishReason
    dropped: int = 0


class ChatSession:
    """A conversation with one model. A model without a chat template has texts completed: ``chats`` says which.

    ``messages`` alternate between user and assistant; the system prompt stands apart. Where text is completed they
    are prompts and completions. The n-th answer of a session depends on the seed, n and the conversation alone.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        system: str = "",
        sampling: SamplingSettings | None = None,
        seed: int = 0,
        complete: bool = False,
    ) -> None:
        self.model = model
        self.chats = chats(model.card) and not complete
        self.system = system
        self.seed = seed
        self.sampling = replace(sampling or CHAT_SAMPLING)
        self.messages: list[dict[str, str]] = []
        self.last: Reply | None = None
        self._answers = 0
        answer_spec(self.sampling, model.card, self.chats)  # refuses settings out of range before anything is said

    def say(self, text: str) -> Iterator[str]:
        """Yield the answer to what the user says, piece by piece.

        Where text is completed, an empty text goes on with the last one. What was said until the iteration was broken
        off is kept. Raises ``PromptError`` for a message that the context cannot hold; nothing is kept then.
        """
        goes_on = not self.chats and not text.strip()
        if goes_on and not self.messages:
            raise PromptError("there is no text to go on with; write its beginning")
        if self.chats and not text.strip():
            raise PromptError("the message is empty; write something")
        asked = [*self.messages, {"role": "user", "content": text}]
        ids, dropped = self._fit(asked) if self.chats else self._fit_text(self._whole() if goes_on else text)
        self._answers += 1
        spec = answer_spec(self.sampling, self.model.card, self.chats or holds_turns(self.model.card, [ids]))
        stream = Stream(self.model, ids, spec, derive_seed(self.seed, "chat", self._answers))
        started = time.perf_counter()
        try:
            yield from stream.pieces()
        finally:
            self.last = Reply(stream.text, len(stream.ids), time.perf_counter() - started, stream.finish, dropped)
            self._keep(text, goes_on, self.last)

    def again(self) -> Iterator[str]:
        """Drop the last answer and yield another one to the same message; raises ``PromptError`` without any.

        Broken off before its first token, or failing, it leaves the last answer where it was.
        """
        removed = self._last_exchange()
        if removed is None:
            raise PromptError("nothing has been said yet")
        before = list(self.messages)
        del self.messages[-2:]
        try:
            yield from self.say(removed)
        finally:
            if len(self.messages) < len(before):  # it did not come to an answer: the last one stays
                self.messages = before

    def reset(self) -> None:
        """Forget the conversation; the system prompt and the settings stay."""
        self.messages.clear()

    def undo(self) -> str | None:
        """Take the last exchange back and return what the user had said, None if there was none."""
        removed = self._last_exchange()
        if removed is not None:
            del self.messages[-2:]
        return removed

    def configure(self, overrides: Sequence[str]) -> None:
        """Change sampling settings, ``["temperature=0.7", "top_k=5"]``, or ``seed=3``; a wrong one changes nothing."""
        mapping = apply_overrides(asdict(self.sampling) | {"seed": self.seed}, overrides)
        seed = mapping.pop("seed")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise SettingsError(f"seed is {seed!r}; expected an integer")
        changed = build(SamplingSettings, mapping)
        answer_spec(changed, self.model.card, self.chats)
        self.sampling, self.seed = changed, seed

    def rows(self) -> list[dict[str, Any]]:
        """Return the conversation as rows that ``load_examples`` reads: a chat, or prompts with completions."""
        if not self.messages:
            return []
        if self.chats:
            return [{"messages": [dict(message) for message in self._with_system(self.messages)]}]
        pairs = zip(self.messages[::2], self.messages[1::2], strict=True)
        return [{"prompt": asked["content"], "completion": said["content"]} for asked, said in pairs]

    def save(self, path: str | Path) -> Path:
        """Append the conversation to a JSONL file; raises ``DataError`` if there is nothing to save or no way to."""
        rows = self.rows()
        if not rows:
            raise DataError("there is nothing to save yet")
        file = Path(path).expanduser()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise DataError(f"{file} cannot be written ({error.strerror}); choose another file") from error
        return file

    def load(self, path: str | Path) -> int:
        """Take over the last conversation of a file in place of this one, and return the number of its messages.

        Raises ``DataError`` for a file without one; the conversation is then unchanged.
        """
        rows = read_rows(path)
        if not self.chats:
            texts = [
                row for row in rows if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)
            ]
            if not texts:
                raise DataError(f"{path} holds no row with a prompt and a completion; expected what /save writes")
            row = texts[-1]
            self.messages = [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
            return 2
        found: list[Any] = next(
            (row["messages"] for row in reversed(rows) if isinstance(row.get("messages"), list)), []
        )
        keys = ("role", "content")
        if not all(isinstance(m, dict) and all(isinstance(m.get(key), str) for key in keys) for m in found):
            found = []
        dropped = sorted({key for message in found for key in message} - {*keys})
        if dropped:
            logger.warning("%s: a chat takes over role and content of messages, not %s", path, ", ".join(dropped))
        messages = [{key: m[key] for key in keys} for m in found]
        system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else ""
        if messages and messages[-1]["role"] == "user":
            messages.pop()  # a question without an answer: it would stand twice once it is asked again
        turns = [message["role"] for message in messages]
        if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
            raise DataError(
                f"{path} holds no conversation in which user and assistant take turns; expected a row with messages, "
                "as /save writes it"
            )
        self.system, self.messages = system, messages
        return len(messages)

    def _last_exchange(self) -> str | None:
        return self.messages[-2]["content"] if len(self.messages) >= 2 else None

    def _with_system(self, messages: Sequence[dict[str, str]]) -> tuple[Mapping[str, Any], ...]:
        return as_messages(messages, self.system)

    def _whole(self) -> str:
        return "".join(message["content"] for message in self.messages[-2:])

    def _keep(self, text: str, goes_on: bool, reply: Reply) -> None:
        if goes_on:
            self.messages[-1]["content"] += reply.text
        elif reply.tokens:  # stopped before its first token: as if it had not been asked
            self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": reply.text}]

    @property
    def _room(self) -> int:
        """Tokens that an answer should have in the context: all it may have, but no more than half of the context."""
        return min(self.sampling.max_new_tokens, self.model.card.context_length // 2)

    def _fit(self, messages: Sequence[dict[str, str]]) -> tuple[list[int], int]:
        """Return the ids of the conversation without as many of its oldest messages as must go, and their number."""
        context = self.model.card.context_length
        for first in range(0, len(messages), 2):
            try:
                asked = ask(self.model.card, self._with_system(messages[first:]))
            except PromptError:
                if first == len(messages) - 1:
                    raise
                continue
            if len(asked.ids) + self._room <= context or first == len(messages) - 1:
                return asked.ids, first
        raise AssertionError("the last message alone is always tried")

    def _fit_text(self, text: str) -> tuple[list[int], int]:
        refuse_broken(text)
        codec = self.model.card.codec
        ids = text_ids(codec, text)
        if not ids:
            raise PromptError(f"the text {text!r} has no tokens; write something else")
        kept = max(self.model.card.context_length - self._room, 1)
        if len(ids) <= kept:
            return ids, 0
        opening = opening_ids(codec)[: kept - 1]  # BOS stays where the beginning of the text goes
        return [*opening, *ids[len(opening) - kept :]], len(ids) - kept


def chat(
    model: str | Path | LanguageModel,
    *,
    system: str = "",
    sampling: SamplingSettings | None = None,
    seed: int = 0,
    complete: bool = False,
    device: str = "auto",
    trust_remote_code: bool = False,
    read: Callable[[], str] | None = None,
    write: Callable[[str], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> ChatSession:
    """Chat until the input ends: read lines, answer them, obey commands such as ``/help``; return the session.

    ``read`` returns the next line and raises ``EOFError`` at the end (default: ``input``), ``write`` shows pieces of
    an answer and ``notice`` lines that are none (default: standard output and standard error).
    """
    from lmrl.stages.chat.loop import converse
    from lmrl.training.devices import torch_device

    if not isinstance(model, LanguageModel):
        model = load(model_path(model), device=torch_device(device), trust_remote_code=trust_remote_code)
    session = ChatSession(model, system=system, sampling=sampling, seed=seed, complete=complete)
    converse(session, read, write, notice)
    return session
