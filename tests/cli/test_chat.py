"""`lmrl chat` as real processes: through pipes, and in a terminal with keys that interrupt."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from lmrl.cli.main import main
from lmrl.data import load_examples
from lmrl.testing import write_tiny_model

COMMAND = [sys.executable, "-m", "lmrl", "chat"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"}


def piped(*arguments, text, cwd):
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=cwd,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_a_pipe_gets_the_answers_and_nothing_else(tmp_path):
    text = "Mia found a red ball.\n/save talk.jsonl\n/temprature\nBen saw a kite."  # the last line without its end
    output, notices = piped("stories", "--greedy", "--max-new-tokens", 12, text=text, cwd=tmp_path)
    answers = output.splitlines()
    assert len(answers) == 2 and all(answers) and "\x1b" not in output + notices and ">" not in output
    assert "completes text and is not chatted with" in notices and "unknown command /temprature" in notices
    [example] = load_examples(str(tmp_path / "talk.jsonl")).examples
    assert (example.prompt, example.completion) == ("Mia found a red ball.", answers[0])


def test_mistakes_are_one_paragraph(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["no/such/model"], "no model folder"),
        (["stories", "--temperature", "-1"], "sampling.temperature is -1.0"),
        (["stories", "--load", "none.jsonl"], "none.jsonl"),
    ):
        assert main(["chat", *arguments]) == 2
        shown = capsys.readouterr()
        assert message in shown.err and "Traceback" not in shown.err and not shown.out


def test_a_system_prompt_is_kept_beside_a_loaded_conversation(tmp_path, monkeypatch, capsys, caplog):
    folder = write_tiny_model(tmp_path / "m", words=("the", "cat", "user", "assistant", "system", ":"))
    template = "{% for m in messages %}{{ m['role'] ~ ' : ' ~ m['content'] ~ ' ' }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    talk = [{"role": "user", "content": "the", "weight": 0}, {"role": "assistant", "content": "cat"}]
    for name, messages in (("plain", talk), ("own", [{"role": "system", "content": "cat"}, *talk])):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    for file, system, shown in (("plain", "the", "the"), ("own", "", "cat"), ("own", "cat", "cat")):
        monkeypatch.setattr("sys.stdin", io.StringIO("/system\n"))
        given = ["--system", system] if system else []
        assert main(["chat", str(folder), *given, "--load", str(tmp_path / f"{file}.jsonl")]) == 0
        assert f"system prompt: {shown}" in capsys.readouterr().err
    assert "a chat takes over role and content of messages, not weight" in caplog.text
    assert main(["chat", str(folder), "--system", "the", "--load", str(tmp_path / "own.jsonl")]) == 2
    assert "has a system prompt of its own" in capsys.readouterr().err


def test_input_that_is_no_text_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8"))
    assert main(["chat"]) == 2
    assert "standard input is not utf-8" in capsys.readouterr().err


class Terminal:
    """`lmrl chat` behind a pseudo-terminal."""

    def __init__(self, *arguments, cwd):
        pty = pytest.importorskip("pty")
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=ENVIRONMENT,
            cwd=cwd,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def wait_for(self, pattern, seconds=60):
        """Read until the pattern is seen, and forget what was read up to its end."""
        end = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.seen)
            if found:
                before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
                return before
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            if not select.select([self.master], [], [], 1.0)[0]:  # a read alone would wait for ever
                continue
            try:
                self.seen += os.read(self.master, 4096).decode("utf-8", "replace").replace("\r\n", "\n")
            except OSError:
                assert re.search(pattern, self.seen), f"the process ended without {pattern!r}: {self.seen!r}"

    def type(self, text):
        os.write(self.master, text.encode())

    def interrupt(self, pattern, seconds=60):
        """Press Ctrl-C until the pattern is seen: a signal that comes after the prompt is printed and before
        readline waits for a key is noticed only at the next one."""
        end = time.monotonic() + seconds
        while True:
            os.killpg(os.getpgid(self.process.pid), signal.SIGINT)
            try:
                return self.wait_for(pattern, seconds=5)
            except AssertionError:
                if time.monotonic() > end:
                    raise

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(tmp_path):
    words = ("the", "a", "cat", "dog", "user", "assistant", ":")
    folder = write_tiny_model(tmp_path / "chatter", words=words, context=20000, scale=0.0)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] ~ ' : ' ~ m['content'] ~ ' ' }}{% endfor %}assistant :"
    )
    made = Terminal("chatter", "--max-new-tokens", 5, "--system", "the", cwd=tmp_path)
    yield made
    made.close()


@pytest.mark.slow
def test_a_conversation_in_a_terminal(terminal, tmp_path):
    terminal.wait_for("chats with its own template")
    terminal.wait_for("you> ")
    terminal.type("the cat\n")
    terminal.wait_for("you> ")
    terminal.type("/settings max_new_tokens=15000 forbidden_ids=[1]\n")
    terminal.wait_for("max_new_tokens=15000")
    terminal.wait_for("you> ")
    terminal.type("a dog\n")
    terminal.wait_for(r"(?:(?:cat|dog|the|a|user|assistant|:) ){20}")  # an answer that would take a minute
    terminal.interrupt(r"\(stopped\)")
    terminal.wait_for("you> ")
    terminal.type("/save talk.jsonl\n")
    terminal.wait_for(r"\(saved in talk.jsonl\)")
    terminal.wait_for("you> ")
    terminal.interrupt("Ctrl-D or /quit leaves")
    terminal.wait_for("you> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=60) == 0
    messages = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert 20 <= len(messages[-1]["content"].split()) < 15000
