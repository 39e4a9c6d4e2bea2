"""The loop of a chat: lines are said to the model, lines that begin with a slash are commands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict

from lmrl.engines.protocol import FinishReason
from lmrl.errors import LmrlError, SettingsError, nearest
from lmrl.stages.chat.stage import ChatSession

HELP = """\
/system [TEXT]        show or set the system prompt; it counts from the next answer on
/settings [NAME=VALUE ...]   show or change how answers are sampled: temperature=0.7 top_k=5 max_new_tokens=100 seed=3
/again                another answer to the last message
/undo                 take the last exchange back
/reset                forget the conversation
/save FILE            append the conversation to a JSONL file that `lmrl sft` reads
/load FILE            go on with the last conversation of such a file
/history              show the conversation
/help                 show this
/quit                 leave; so does the end of the input (Ctrl-D)
A line that ends with a backslash goes on with the next one; a message that begins with a slash is written with two.
Ctrl-C stops an answer."""
COMMANDS = ("again", "help", "history", "load", "quit", "reset", "save", "settings", "system", "undo")


class Leave(Exception):
    """Raised by /quit."""


def converse(
    session: ChatSession,
    read: Callable[[], str] | None = None,
    write: Callable[[str], None] | None = None,
    notice: Callable[[str], None] | None = None,
    interruptible: bool = True,
) -> None:
    """Read, answer and obey until the input ends or somebody quits.

    ``interruptible`` lets Ctrl-C stop an answer and not the program. Errors that lmrl raises on purpose are notices.
    """
    read, write = read or input, write or _write
    notice = notice or (lambda line: print(line, file=sys.stderr, flush=True))
    for line in opening(session):
        notice(line)
    while True:
        try:
            line = _whole_line(read)
        except EOFError:
            return
        except KeyboardInterrupt:
            if not interruptible:
                raise
            notice("(Ctrl-D or /quit leaves)")
            continue
        try:
            pieces = _obey(session, line, notice)
            if pieces is not None:
                _answer(session, pieces, write, notice, interruptible)
        except Leave:
            return
        except LmrlError as error:
            notice(f"error: {error}")


def opening(session: ChatSession) -> list[str]:
    """Return what is said before the first message: which model it is, and whether it chats."""
    card = session.model.card
    if session.chats:
        lines = [f"{card.path}: chats with its own template, context of {card.context_length} tokens."]
    else:
        why = "has no chat template" if not card.codec.chat_template else "was asked to complete"
        lines = [
            f"{card.path} {why}: it completes text and is not chatted with. Write the beginning of a text; an empty "
            "line lets it go on."
        ]
        if session.system:
            lines.append("The system prompt is left out: a model without roles has no place for it.")
    return [*lines, "/help shows the commands."]


def _answer(
    session: ChatSession,
    pieces: Iterator[str],
    write: Callable[[str], None],
    notice: Callable[[str], None],
    interruptible: bool,
) -> None:
    said, previous = False, session.last
    try:
        for piece in pieces:
            write(piece)
            said = True
    except KeyboardInterrupt:
        if not interruptible:
            raise
        pieces.close()  # type: ignore[attr-defined]  # a generator: what was said is kept
    finally:
        if said or session.last is not previous:
            write("\n")
    if session.last is not None and session.last is not previous:
        for line in remarks(session):
            notice(line)


def remarks(session: ChatSession) -> list[str]:
    """Return what a person should know of the last answer beside its text."""
    reply = session.last
    if reply is None:
        return []
    found = []
    if reply.dropped:
        what = "messages" if session.chats else "tokens"
        found.append(f"(the oldest {reply.dropped} {what} no longer fit into the context and were left out)")
    if reply.finish == FinishReason.NONE:
        found.append("(stopped)")
    elif reply.finish == FinishReason.LENGTH:
        found.append(f"(cut off at {reply.tokens} tokens; /settings max_new_tokens=... allows more)")
    elif reply.finish == FinishReason.CONTEXT:
        found.append("(cut off: the context is full)")
    elif not reply.text.strip():
        found.append("(an empty answer)")
    return found


def _obey(session: ChatSession, line: str, notice: Callable[[str], None]) -> Iterator[str] | None:
    """Obey a command and return None, or return the pieces of an answer."""
    if line.startswith("//"):
        return session.say(line[1:])
    if not line.startswith("/"):
        if session.chats and not line.strip():
            return None
        return session.say(line)
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    if name == "again":
        return session.again()
    if name in ("quit", "exit"):
        raise Leave
    if name == "help":
        notice(HELP)
    elif name == "history":
        for message in session.messages:
            notice(f"{message['role']}: {message['content']}")
    elif name == "reset":
        session.reset()
        notice("(the conversation is forgotten)")
    elif name == "undo":
        taken = session.undo()
        notice("(nothing to take back)" if taken is None else f"(taken back: {taken})")
    elif name == "system":
        _system(session, rest, notice)
    elif name == "settings":
        if rest:
            session.configure(_words(rest))
        settings = asdict(session.sampling) | {"seed": session.seed}
        notice(" ".join(f"{key}={value}" for key, value in settings.items() if key != "on_length"))
    elif name in ("save", "load"):
        _file(session, name, rest, notice)
    else:
        guess = nearest(name, COMMANDS)
        notice(f"error: unknown command /{name}" + (f"; did you mean /{guess}?" if guess else ". /help shows all."))
    return None


def _system(session: ChatSession, text: str, notice: Callable[[str], None]) -> None:
    if text and not session.chats:
        notice("error: this model completes text and knows no system prompt")
        return
    if text:
        session.system = "" if text == '""' else text
    notice(f"system prompt: {session.system}" if session.system else "(no system prompt)")


def _file(session: ChatSession, name: str, file: str, notice: Callable[[str], None]) -> None:
    if not file:
        notice(f"error: /{name} needs a file: /{name} chat.jsonl")
    elif name == "save":
        notice(f"(saved in {session.save(file)})")
    else:
        notice(f"({session.load(file)} messages of {file})")


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise SettingsError(
            f"{text} cannot be read ({error}); quote as in a shell: /settings 'stop_strings=[\"User:\"]'"
        ) from error


def _whole_line(read: Callable[[], str]) -> str:
    parts: list[str] = []
    while True:
        try:
            line = read()
        except EOFError:
            if not parts:
                raise
            return "\n".join(parts)
        if not line.endswith("\\"):
            return "\n".join([*parts, line])
        parts.append(line[:-1])


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
