"""`lmrl prefer` as a process: killed, interrupted, out of budget, in a terminal; nothing is lost or asked twice."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from lmrl.annotators.person import shuffled
from lmrl.cli.main import main
from lmrl.seeds import derive_seed


def command(*arguments):
    return [sys.executable, "-m", "lmrl", "prefer", *map(str, arguments)]


def start(cwd, *arguments, **rest):
    # Optimizers have no part in this, and loading them would cost more than all the rest.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160", "LMRL_DISABLE_PLUGINS": "ppo,reinforce"}
    return subprocess.Popen(command(*arguments), cwd=cwd, env=environment, text=True, **rest)


def run(cwd, *arguments, expect=0, typed=None):
    process = start(cwd, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate(typed, timeout=120)
    assert process.returncode == expect, output
    return output


def answers_in(path):
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {record["index"]: record for record in found if "ranks" in record}


@pytest.fixture
def source(tmp_path):
    """Prompts with three completions each; the longer one is better."""
    rows = [{"prompt": f"p{i}", "completions": ["x" * (1 + i % 2), "xxxx", "xxx"]} for i in range(12)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "completions_from.path=answers.jsonl"


@pytest.fixture
def judge(endpoint):
    pytest.importorskip("openai", reason="the client library openai is not installed (it is in the extra judge)")
    prefix = "annotators.j"
    return [
        f"{prefix}.kind=judge",
        f"{prefix}.judge.model=m",
        f"{prefix}.judge.base_url={endpoint.url}",
        f"{prefix}.judge.concurrency=1",
        f"{prefix}.judge.backoff=0.01",
    ]


@pytest.mark.slow
def test_a_killed_judge_asks_nothing_twice_and_loses_nothing(tmp_path, source, judge, endpoint):
    endpoint.delay = 0.03
    folder = tmp_path / "run"
    process = start(tmp_path, source, *judge, "run.folder=run", "--quiet", stdout=subprocess.DEVNULL)
    journal = folder / "answers" / "j.jsonl"
    deadline = time.monotonic() + 100
    while len(answers_in(journal)) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before, asked = answers_in(journal), len(endpoint.questions)
    assert 4 <= len(before) < 12 and asked < 72
    endpoint.delay = 0
    output = run(tmp_path, "--resume", "run")
    after = answers_in(journal)
    assert len(after) == 12 and {index: after[index] for index in before} == before
    # The one on its way when the kill came was answered to nobody; every other was kept by journal or cache.
    assert len(set(endpoint.questions)) == 72 and len(endpoint.questions) <= 73
    rows = [json.loads(line) for line in (folder / "rankings.jsonl").read_text().splitlines()]
    assert all(row["ranks"] == [2, 0, 1] for row in rows) and len(rows) == 12
    assert "Pairs" in output and "j stopped" not in output
    asked = len(endpoint.questions)
    run(tmp_path, "--resume", "run", "output.format=parquet", "--quiet")
    assert len(endpoint.questions) == asked and (folder / "rankings.parquet").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_on_its_way(tmp_path, source, judge, endpoint):
    endpoint.delay = 0.05
    process = start(tmp_path, source, *judge, "run.folder=run", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 100
    while len(endpoint.questions) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Continue with  lmrl prefer --resume run" in output, output
    assert "Traceback" not in output
    written = len((tmp_path / "run" / "rankings.jsonl").read_text().splitlines())
    assert written == len(answers_in(tmp_path / "run" / "answers" / "j.jsonl")) >= 1


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Run `lmrl prefer` in this process, for tests that kill nothing; return its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments, expect=0):
        code = main(["prefer", *arguments, "--quiet"])
        shown = capsys.readouterr()
        assert code == expect, shown
        return shown.out + shown.err

    return call


def test_a_budget_and_a_dead_endpoint_leave_files_of_what_was_answered(here, tmp_path, source, judge, endpoint):
    output = here(source, *judge, "annotators.j.judge.max_calls=15", "run.folder=run")
    assert "j stopped: max_calls = 15 is reached" in output and "Continue with" in output
    rankings = tmp_path / "run" / "rankings.jsonl"
    assert len(rankings.read_text().splitlines()) == 2 and len(endpoint.questions) == 15
    endpoint.mishap = lambda number: (401, '{"error": {"message": "no"}}', {}) if number > 25 else None
    output = here("--resume", "run", "annotators.j.judge.max_calls=0", expect=2)
    assert "status 401" in output and "Continue with: lmrl prefer --resume run" in output
    assert len(rankings.read_text().splitlines()) == 4
    endpoint.mishap = lambda number: None
    output = here("--resume", "run")
    assert len(rankings.read_text().splitlines()) == 12 and len(endpoint.questions) == 72 + 1
    assert "73 calls" in output, "what all sessions took"


def test_no_file_of_a_run_holds_the_key(here, tmp_path, source, judge, endpoint, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "very-secret-key")
    here(source, *judge, "annotators.j.judge.api_key_variable=SOME_KEY", "run.folder=run")
    assert set(endpoint.keys) == {"Bearer very-secret-key"}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"very-secret" not in path.read_bytes(), path


class Terminal:
    """A pseudo-terminal with a program in it."""

    def __init__(self, cwd, *arguments):
        self.master, slave = pty.openpty()
        self.process = start(cwd, *arguments, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.shown = ""

    def until(self, pattern, timeout=100):
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.shown):
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not come; the terminal shows {self.shown[-2000:]!r}"
            try:
                data = os.read(self.master, 4096)
            except OSError:  # Linux's way to say that the program has closed its end
                data = b""
            if not data:
                break
            self.shown += data.decode()
        found = re.search(pattern, self.shown)
        assert found, f"the program ended before {pattern!r} came: {self.shown[-2000:]!r}"
        self.shown = self.shown[found.end() :]

    def type(self, text):
        os.write(self.master, text.encode())

    def wait(self):
        self.until(r"Run folder")
        code = self.process.wait(timeout=60)
        os.close(self.master)
        return code


@pytest.mark.slow
def test_a_person_in_a_terminal_answers_errs_undoes_and_is_interrupted(tmp_path, source):
    terminal = Terminal(tmp_path, source, "annotators.me.kind=person", "run.folder=run")
    journal = tmp_path / "run" / "answers" / "me.jsonl"
    terminal.until(r"\[1/12\] Prompt[\s\S]*Rank all 3[\s\S]*> ")
    terminal.type("1>2\n")
    terminal.until(r"3 is missing; expected each of 1 to 3 once[\s\S]*> ")
    terminal.type("1>2=3\n")
    terminal.until(r"\[2/12\][\s\S]*> ")
    assert answers_in(journal).keys() == {0}, "the answer is kept before the next question is shown"
    terminal.type("u\n")
    terminal.until(r"\[1/12\][\s\S]*> ")
    terminal.type("2>1=3\n")
    terminal.until(r"\[2/12\][\s\S]*> ")
    terminal.type("s\n")
    terminal.until(r"\[3/12\][\s\S]*> ")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait() == 130
    shown = shuffled(["x", "xxxx", "xxx"], derive_seed(0, "annotator"))
    assert answers_in(journal)[0]["ranks"][shown[1]] == 0 and sorted(answers_in(journal)[0]["ranks"]) == [0, 1, 1]

    terminal = Terminal(tmp_path, "--resume", "run")
    terminal.until(r"\[1/10\] Prompt\s+p2[\s\S]*> ")  # neither the answered one nor the skipped one again
    terminal.type("tie\n")
    terminal.until(r"\[2/10\][\s\S]*> ")
    os.kill(terminal.process.pid, signal.SIGKILL)
    terminal.process.wait()
    os.close(terminal.master)
    output = run(tmp_path, "--resume", "run", typed="q\n", expect=130)
    assert "[1/9] Prompt\n\n    p3" in output and "me stopped: 9 left by the person" in output
    rows = [json.loads(line) for line in (tmp_path / "run" / "rankings.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["p0", "p2"] and rows[1]["ranks"] == [0, 0, 0]
    assert "scores" not in rows[0] and rows[0]["annotator"] == "me"


def test_answers_out_of_a_pipe_and_the_end_of_it(here, tmp_path, source, monkeypatch):
    typed = io.TextIOWrapper(io.BytesIO(b"2>1>3\n\xff\ntie\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    output = here(source, "annotators.me.kind=person", "run.folder=run", expect=130)
    assert len(answers_in(tmp_path / "run" / "answers" / "me.jsonl")) == 2 and "10 left by the person" in output
    assert "was typed could not be read" in output


def test_help_has_an_example(tmp_path):
    assert "example:\n  lmrl prefer examples/prefer.toml" in run(tmp_path, "--help")
