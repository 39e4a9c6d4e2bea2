"""`lmrl compare` and `lmrl eval` as real processes: arguments, files, and what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lmrl.cli.main import main


def lmrl(*arguments, cwd):
    environment = os.environ | {"COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lmrl", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_compare_prints_the_table_and_writes_the_files(tmp_path):
    (tmp_path / "prompts.txt").write_text("Ben saw a kite.\nMia had a hat.\nTom ran.\n")
    output = lmrl(
        "compare", "stories", "stories", "--names", "base, RLHF", "--prompt", "Mia found a red ball.",
        "--prompts", "prompts.txt", "--limit", 2, "--reward", "happy_end", "--reward-setting", "happy=3",
        "--reference", "stories", "--max-new-tokens", 20, "--markdown", "out/t.md", "--html", "out/t.html",
        "--json", "out/t.json", "--quiet", cwd=tmp_path,
    )  # fmt: skip
    for expected in (
        "base (completes)",
        "RLHF (completes)",
        "Mia found a red ball.",
        "Mia had a hat.",
        "KL 0.0",
        "mean",
    ):
        assert expected in output
    assert "Tom ran." not in output and "temperature 1, seed 0, at most 20 tokens" in output
    table = json.loads((tmp_path / "out" / "t.json").read_text())
    assert table["prompts"] == ["Mia found a red ball.", "Ben saw a kite.", "Mia had a hat."]
    assert {answer["reward"] for row in table["answers"] for answer in row} <= {3.0, -1.0, 0.0}
    for name in ("t.md", "t.html"):
        text = (tmp_path / "out" / name).read_text()
        assert text.count("RLHF") >= 2 and "Mia had a hat." in text
    assert "# base \\| RLHF" in (tmp_path / "out" / "t.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "stories"], "nothing to ask"),
        (["compare", "stories", "--prompts", "missing.txt"], "missing.txt"),
        (["compare", "stories", "--prompt", "x", "--reward", "hapy_end"], "did you mean 'happy_end'"),
        (["compare", "stories", "--prompt", "x", "--names", "a,b"], "2 names were given for 1 models"),
        (["compare", "stories", "stories", "--prompt", "x", "--names", "a,a"], "two models are called 'a'"),
        (["compare", "stories", "--prompt", "x", "--limit", "3"], "reads it only with --prompts FILE"),
        (["compare", "stories", "--prompt", "x", "prompts.file.columns.prompt=q"], "reads it only with --prompts FILE"),
        (["compare", "stories", "--prompts", "p.txt", "prompts.file.path=q.txt"], "are both given"),
        (
            ["compare", "stories", "--prompts", "p.txt", "prompts.file.colums.prompt=q"],
            "did you mean 'prompts.file.columns'",
        ),
        (
            ["compare", "stories", "--prompts", "p.txt", "sampling.top_k=3"],
            "sampling.top_k is no setting of lmrl compare",
        ),
        (["compare", "prompts.file.path=q.txt"], "no model is named"),
        (["compare", "stories", "--prompt", "x", "--greedy", "--top-k", "3"], "--top-k with --greedy"),
        (
            ["compare", "stories", "--prompt", "x", "--temperature", "0", "--min-p", "0.1"],
            "--min-p with --temperature 0",
        ),
        (["compare", "stories", "--prompt", "x", "--greedy", "--temperature", "1"], "are both given"),
        (["compare", "stories", "--prompt", "x", "--system", "s", "--complete"], "--system and --complete are both"),
        (["chat", "stories", "--greedy", "--top-p", "0.9"], "--top-p with --greedy"),
        (["chat", "stories", "--system", "s", "--complete"], "--system and --complete are both given"),
        (["compare", "stories", "--prompt", "x", "--reward-setting", "happy=3"], "stands without --reward NAME"),
        (["compare", "stories", "--prompt", "the \udcff"], "holds half a character at place 5"),
        (["compare", "stories", "--prompt", "x", "--device", "gpu"], "the device is 'gpu', which cannot be used here"),
        (["compare", "stories", "--prompt", "x", "--device", "cuda:99"], "the device is 'cuda:99', which cannot"),
        (["compare", "stories", "--prompt", "x", "--top-p", "2"], "sampling.top_p is 2.0"),
        (["eval", "a.toml", "b.toml"], "a.toml and b.toml are two recipes"),
        (["eval", "storis/model"], "storis/model"),
        (["eval", "stories", "held_out.promts=3"], "did you mean 'held_out.prompts'"),
    ],
)
def test_mistakes_are_one_paragraph(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("row", "overrides", "asked"),
    [
        ({"problem": "Ben saw a kite.", "note": "n"}, ["prompts.file.columns.prompt=problem"], "Ben saw a kite."),
        ({"a": "Ben saw", "b": "a kite."}, ["prompts.file.template={a} {b}"], "Ben saw a kite."),
        (
            {"Body": "Ben ran.", "Question": "Why?", "Answer": "x"},
            [f"prompts.file.columns.{ours}={ours.title()}" for ours in ("question", "answer")]
            + ["prompts.file.columns.context=Body"],
            "Ben ran.\n\nWhy?",
        ),
    ],
)
def test_compare_reads_prompts_as_other_stages_do(tmp_path, row, overrides, asked):
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    options = ["--max-new-tokens", "2", "--quiet", "--json", str(tmp_path / "t.json")]
    for given in (["--prompts", str(tmp_path / "p.jsonl")], [f"prompts.file.path={tmp_path / 'p.jsonl'}"]):
        assert main(["compare", "stories", *given, *overrides, *options]) == 0
        assert json.loads((tmp_path / "t.json").read_text())["prompts"] == [asked]


def test_a_file_that_cannot_be_written_is_one_line_below_the_table(tmp_path, capsys):
    arguments = ["--prompt", "Mia found a red ball.", "--max-new-tokens", "2", "--quiet"]
    assert main(["compare", "stories", *arguments, "--markdown", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "Mia found a red ball." in shown.out and f"error: {tmp_path}: Is a directory" in shown.err


@pytest.mark.slow
def test_eval_takes_models_a_recipe_and_overrides_and_resumes(tmp_path, monkeypatch, capsys):
    (tmp_path / "eval.toml").write_text(
        'rewards = ["happy_end"]\n[prompts.stories]\ncount = 40\n[held_out]\nprompts = 8\n'
    )
    arguments = ["sampling.max_new_tokens=16", "run.device=cpu", "show=1"]
    output = lmrl(
        "eval", "eval.toml", "stories", "stories", "--names", "base, RLHF", "reference=stories", *arguments, "--quiet",
        cwd=tmp_path,
    )  # fmt: skip
    for expected in (
        "8 held-out prompts, mean [95% interval over prompts]", "reward happy_end", "win rate against base", "50.0% [",
        "KL to the reference", "distinct 2-grams", "RLHF against base: 0 wins, 8 ties, 0 losses",
        "runs/eval-1/report.html",
    ):  # fmt: skip
        assert expected in output, expected
    folder = tmp_path / "runs" / "eval-1"
    first = (folder / "results.json").read_text()
    (folder / "results.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "--resume", "runs/eval-1", "--quiet"]) == 0
    assert (folder / "results.json").read_text() == first
    assert main(["eval", "--resume", "runs/eval-1", "sampling.temperature=0"]) == 2
    assert "cannot change in a resumed run" in capsys.readouterr().err
    again = ["eval", "--resume", "runs/eval-1", "--quiet"]
    assert main([*again, "bounds.happy_end=[0.5, 1]"]) == 2
    message = capsys.readouterr().err
    assert "bounds.happy_end is [0.5, 1.0], but scores from 0 to 0 were" in message
    assert "eval --resume runs/eval-1" in message
    assert main(again) == 0, "what was refused is not kept"
    assert main([*again, "bounds.happy_end=[-2, 2]", 'rewards=["happy_end", "repetition"]']) == 0
    assert "reward repetition" in capsys.readouterr().out and "repetition" in (folder / "config.toml").read_text()
