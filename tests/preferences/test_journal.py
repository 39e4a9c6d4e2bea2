"""The journal: what has been answered is there again, whatever happened to the process."""

import os
import signal
import subprocess
import sys

import pytest

from lmrl.annotators.annotators import Judgement, Unanswered
from lmrl.annotators.journal import Journal
from lmrl.errors import ResumeError

HEADER = {"annotator": "me", "samples": "abc"}
ANSWERS = [
    (0, Judgement((0, 1), (1.5, -0.5))),
    (3, Judgement((1, 0), (), {"verdicts": [[0, 1, "A"]]})),
    (1, Unanswered("skipped")),
    (2, Unanswered("failed")),
]


def test_answers_are_there_again(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", HEADER)
    for index, answer in ANSWERS:
        journal.append(index, answer)
    journal.close_session({"calls": 3})
    again = Journal(tmp_path / "j.jsonl", HEADER)
    assert again.answers == dict(ANSWERS) and again.counts == {"calls": 3}
    assert again.settled == {0, 1, 3} and set(again.judgements) == {0, 3}
    again.close_session({"calls": 2, "tokens": 5})
    assert Journal(tmp_path / "j.jsonl", HEADER).counts == {"calls": 5, "tokens": 5}


def test_undoing_takes_an_answer_back(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", HEADER)
    journal.append_all([(0, Judgement((0, 1))), (0, Unanswered("undone"))])
    assert journal.settled == set() == Journal(tmp_path / "j.jsonl", HEADER).settled
    journal.append(0, Judgement((1, 0)))
    assert Journal(tmp_path / "j.jsonl", HEADER).answers[0].ranks == (1, 0)


def test_every_cut_through_the_file_loses_only_the_line_it_cuts(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, HEADER)
    journal.append_all(ANSWERS[:3])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        again = Journal(path, HEADER)
        complete = whole[:cut].count(b"\n") - 1
        assert again.answers == dict(ANSWERS[:complete])
        again.append(9, Judgement((0,)))
        assert Journal(path, HEADER).answers == dict(ANSWERS[:complete]) | {9: Judgement((0,))}


def test_a_cut_in_the_header_begins_anew(tmp_path):
    (tmp_path / "j.jsonl").write_bytes(b'{"annotator": "m')
    assert Journal(tmp_path / "j.jsonl", HEADER).answers == {}
    assert Journal(tmp_path / "j.jsonl", HEADER).answers == {}


def test_a_journal_of_other_questions_is_refused(tmp_path):
    Journal(tmp_path / "j.jsonl", HEADER)
    with pytest.raises(ResumeError, match=r"another run\.folder"):
        Journal(tmp_path / "j.jsonl", HEADER | {"samples": "def"})


@pytest.mark.parametrize("line", [b"{broken\n", b"[1]\n", b'{"index": 0}\n', b'{"index": "x", "ranks": 1}\n'])
def test_a_journal_changed_by_hand_is_refused_with_its_line(tmp_path, line):
    Journal(tmp_path / "j.jsonl", HEADER)
    with (tmp_path / "j.jsonl").open("ab") as file:
        file.write(line)
    with pytest.raises(ResumeError, match="line 2"):
        Journal(tmp_path / "j.jsonl", HEADER)


def test_a_kill_loses_nothing_that_was_kept(tmp_path):
    """A process that keeps answers and says so is killed; all that it said is there."""
    code = (
        "import sys\nfrom lmrl.annotators.journal import Journal\nfrom lmrl.annotators.annotators import Judgement\n"
        f"journal = Journal(__import__('pathlib').Path(sys.argv[1]), {HEADER!r})\n"
        "for i in range(10**6):\n    journal.append(i, Judgement((0, 1)))\n    print(i, flush=True)\n"
    )
    path = tmp_path / "j.jsonl"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    said = [int(process.stdout.readline()) for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().splitlines() if line]
    process.wait()
    assert len(said) >= 50 and set(said) <= set(Journal(path, HEADER).answers)
