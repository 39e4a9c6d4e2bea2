"""Running: nothing twice, nothing lost by a kill, failures as failures, and a small RL suite from model to page."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import psutil
import pytest
from bench_records import record, write

from lmrl.bench.records import Grid, read_records
from lmrl.bench.running import run_suite
from lmrl.bench.suite import load_suite
from lmrl.cli.main import main
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl_suites.kinds.exact import ExactKind

EXACT = """
name = "tiny"
kind = "exact"
betas = [0.3]
seeds = 3
optimizers = ["reinforce", "rloo"]
budget = { amount = 4 }

[tasks.counting]
problem = "counting"
"""

RL = """
name = "small"
kind = "rl"
betas = [0.05, 0.2]
seeds = 2
optimizers = ["rloo", "dpo", "kto"]
budget = { amount = 2 }

[settings]
sampling = { max_new_tokens = 4 }
train = { prompts_per_update = 8, group_size = 4, learning_rate = 1e-3 }
evaluation = { prompts = 16 }

[models.sums]
texts = "lmrl_suites.tasks.sums:texts"
arguments = { largest = 9 }
steps = 30
rows = 16
hidden_size = 16
heads = 2
context_length = 12

[tasks.addition]
model = "sums"
prompts = { rows = "lmrl_suites.tasks.sums:prompts", count = 64, arguments = { largest = 9 } }
settings = { reward = { name = "length", length = { mode = "linear", cost = 0.1 } } }

[recipes.dpo]
optimizer = { beta = "beta" }
why = "its coefficient is the suite's"
"""


@pytest.fixture(scope="module")
def plugins():
    return PluginManager()


@pytest.fixture
def exact(tmp_path, plugins):
    file = tmp_path / "tiny.toml"
    file.write_text(EXACT, encoding="utf-8")
    return load_suite(str(file), plugins)


def test_what_is_there_is_not_run_again_and_other_settings_are_refused(tmp_path, exact, plugins):
    output = tmp_path / "tiny.jsonl"
    first = run_suite(replace(exact, seeds=1), output, plugins=plugins, progress=False)
    again = run_suite(replace(exact, seeds=2), output, plugins=plugins, progress=False)
    assert again[:2] == first and len(read_records(output)) == 4
    assert again[-1].grid == Grid(["counting"], ["reinforce", "rloo"], [0.3], 2), "what was asked for"
    assert {one.machine["threads"] for one in again} == {1} and again[0].versions["torch"]
    with pytest.raises(SettingsError, match="with other settings"):
        run_suite(replace(exact, settings={"learning_rate": 1e-4}), output, plugins=plugins, progress=False)
    with pytest.raises(SettingsError, match="expected one budget"):
        run_suite(replace(exact, budget=replace(exact.budget, amount=5)), output, plugins=plugins, progress=False)
    with pytest.raises(SettingsError, match="expected one suite"):
        run_suite(replace(exact, name="other"), output, plugins=plugins, progress=False)
    assert len(read_records(output)) == 4


def test_a_run_that_fails_says_so_and_is_tried_again_when_asked(tmp_path, exact, plugins, monkeypatch):
    output, run_once = tmp_path / "tiny.jsonl", ExactKind.execute

    def broken(self, suite, run, folder, plugins):
        if run.optimizer == "rloo" and run.seed == 1:
            raise ArithmeticError("the loss is nan")
        return run_once(self, suite, run, folder, plugins)

    monkeypatch.setattr(ExactKind, "execute", broken)
    records = run_suite(exact, output, plugins=plugins, progress=False)
    [failed] = [one for one in records if one.status == "failed"]
    assert failed.error == "ArithmeticError: the loss is nan" and failed.score is None and failed.metrics == {}
    monkeypatch.setattr(ExactKind, "execute", run_once)
    assert run_suite(exact, output, plugins=plugins, progress=False) == records, "not by itself"
    kept = output.read_text()
    mended = run_suite(exact, output, plugins=plugins, progress=False, retry=True)
    assert all(one.status == "done" for one in mended) and len(read_records(output)) == 6
    lines = kept.splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if '"failed"' in line)
    lines[place] = lines[place].replace(failed.digest, "0" * 12)
    output.write_text("".join(lines))
    with pytest.raises(SettingsError, match="with other settings"):
        run_suite(exact, output, plugins=plugins, progress=False)
    mended = run_suite(exact, output, plugins=plugins, progress=False, retry=True)
    assert all(one.status == "done" for one in mended), "the settings that made it fail may be mended"


def test_a_figure_that_is_not_finite_is_a_failure(tmp_path, exact, plugins, monkeypatch):
    from lmrl.bench.suite_kind import RunResult

    monkeypatch.setattr(ExactKind, "execute", lambda *arguments: RunResult({"gap_closed": float("nan")}))
    records = run_suite(replace(exact, seeds=1), tmp_path / "a.jsonl", plugins=plugins, progress=False)
    assert {one.status for one in records} == {"failed"} and "gap_closed is nan" in records[0].error
    curve = {"update": [0, 1], "gap_closed": [0.0, float("inf")]}
    monkeypatch.setattr(ExactKind, "execute", lambda *arguments: RunResult({"gap_closed": 0.5}, curve))
    records = run_suite(replace(exact, seeds=1), tmp_path / "b.jsonl", plugins=plugins, progress=False)
    assert {one.error for one in records} == {
        "ArithmeticError: gap_closed of the curve is inf; expected a finite number"
    }
    assert read_records(tmp_path / "b.jsonl") == records, "and nothing of it is lost"


def test_infinite_settings_are_no_reason_to_lose_a_result(tmp_path, exact, plugins):
    with pytest.raises(SettingsError, match="finite"):
        replace(exact, betas=[math.inf])
    suite = replace(exact, seeds=1, optimizers=["rloo"], settings={"learning_rate": math.inf})
    [found] = run_suite(suite, tmp_path / "a.jsonl", plugins=plugins, progress=False)
    assert found.status == "failed" and found.settings["learning_rate"] == "inf"
    assert run_suite(suite, tmp_path / "a.jsonl", plugins=plugins, progress=False) == [found]


def test_a_seed_is_not_tried_again_under_settings_that_others_of_its_cell_did_not_have(tmp_path, exact, plugins):
    output = tmp_path / "tiny.jsonl"
    suite = replace(exact, seeds=2, optimizers=["rloo"])
    run_suite(suite, output, plugins=plugins, progress=False)
    lines = output.read_text().splitlines()
    broken = json.loads(lines[0]) | {"status": "failed", "score": None}
    output.write_text(json.dumps(broken) + "\n" + lines[1] + "\n")
    other = replace(suite, seeds=1, settings={"learning_rate": 0.5})
    with pytest.raises(SettingsError, match="seed 1 with other settings"):
        run_suite(other, output, plugins=plugins, progress=False, retry=True)


def test_two_processes_give_the_same_figures(tmp_path, exact, plugins):
    small = replace(exact, seeds=2)
    one, two = (run_suite(small, tmp_path / f"{j}.jsonl", plugins=plugins, jobs=j, progress=False) for j in (1, 2))
    assert [(a.key, a.metrics, a.curve) for a in one] == [(b.key, b.metrics, b.curve) for b in two]


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
def test_a_killed_suite_goes_on_where_it_was(tmp_path, exact):
    output = tmp_path / "out.jsonl"
    suite = str(tmp_path / "tiny.toml")
    command = [sys.executable, "-m", "lmrl", "bench", "run", suite, "--quiet", "--output", str(output)]
    process = subprocess.Popen(
        [*command, "budget.amount=60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        until = time.monotonic() + 120
        while not (output.exists() and output.read_text().count("\n")) and time.monotonic() < until:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    kept = output.read_text()
    whole = kept[: kept.rindex("\n") + 1]
    assert 1 <= whole.count("\n") < 6, "killed in the middle"
    output.write_text(whole + whole.splitlines()[0][:50])  # and in the middle of a line
    done = subprocess.run([*command, "budget.amount=60"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no whole record" in done.stderr
    assert output.read_text().startswith(whole), "what was there stays as it is"
    assert len(read_records(output)) == 6
    assert {one.status for one in read_records(output)} == {"done"}


ORPHANS = """
import os, time
from pathlib import Path
from lmrl.bench.processes import run_all
from lmrl.plugins import PluginManager

def wait(folder, plugins):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    list(run_all(wait, [{folder!r}] * 4, 2, PluginManager()))
"""


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
def test_processes_end_with_the_one_that_collects(tmp_path):
    places = tmp_path / "pids"
    places.mkdir()
    (tmp_path / "script.py").write_text(ORPHANS.format(folder=str(places)), encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], start_new_session=True)
    try:
        wait_until(lambda: len(list(places.iterdir())) == 2)
        process.kill()
        process.wait(60)
        wait_until(lambda: not any(is_running(int(place.name)) for place in places.iterdir()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_until(true):
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until, "waited for two minutes"
        time.sleep(0.05)


def is_running(pid):
    """Whether a process is there and is no zombie that waits for somebody to ask how it ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def small(tmp_path_factory, plugins):
    """A suite of the kind rl that was run once: its folder."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.toml").write_text(RL, encoding="utf-8")
    words = ["bench", "run", str(folder / "small.toml"), "--quiet", "--output", str(folder / "small.jsonl")]
    assert main(words) == 0
    return folder


def test_an_rl_suite_measures_what_lmrl_rl_does(small, plugins):
    records = read_records(small / "small.jsonl")
    assert len(records) == 12 and {one.status for one in records} == {"done"}
    [model] = (small / "models").iterdir()
    assert (model / "model.safetensors").exists() and not list(small.glob("models/*partial*"))
    for one in records:
        metrics = one.metrics
        assert metrics["objective"] == pytest.approx(metrics["reward"] - one.beta * metrics["kl"])
        assert one.score == metrics["objective"], "the task's bounds are 0 and 1"
        assert one.curve["update"] == [0, 2] and one.curve["reward"][0] == pytest.approx(
            metrics["start_reward"], abs=1e-6
        )
        assert one.curve["kl"][0] == pytest.approx(0, abs=1e-4) and metrics["tokens_per_second"] > 0
        assert (metrics["sampled_tokens"] > 0) == (one.optimizer == "rloo")
        assert one.settings["kl"]["beta"] == one.beta and one.settings["model"].startswith("sums ")
    dpo = [one for one in records if one.optimizer == "dpo"]
    assert {one.settings["optimizer"]["dpo"]["beta"] for one in dpo} == {0.05, 0.2}
    starts = {one.seed: one.metrics["start_reward"] for one in records}
    assert all(one.metrics["start_reward"] == starts[one.seed] for one in records), "all begin with one model"


def test_the_report_of_a_run_and_its_repetition(small, tmp_path, capsys):
    file = str(small / "small.jsonl")
    before = (small / "small.jsonl").read_text()
    assert main(["bench", "run", str(small / "small.toml"), "--quiet", "--output", file]) == 0
    assert (small / "small.jsonl").read_text() == before
    assert main(["bench", "report", file, "--against", str(small), "--output", str(tmp_path)]) == 0
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert page.count("data:image/svg+xml") == 1 + 1 + 3 + 3 + 3
    assert "http" not in page.replace("http://www.w3.org", "").split("</style>")[1].split("<img")[0]
    for part in ("Reward against KL", "Probability of improvement", "lmrl bench run small.toml", "equal"):
        assert part in page and part in text
    assert str(small) not in page + before, "no folder of this machine"
    assert main(["bench", "compare", file, file]) == 0
    assert "0 worse" in capsys.readouterr().out
    older = tmp_path / "older" / "small.jsonl"
    older.parent.mkdir()
    older.write_text(before.replace('"amount":2', '"amount":3'))
    assert older.read_text() != before
    assert main(["bench", "report", file, "--against", str(older), "--output", str(tmp_path)]) == 0
    assert "Not compared with the older results" in (tmp_path / "report.md").read_text()


def test_wrong_settings_of_an_rl_suite_are_refused_before_anything_is_made(tmp_path, plugins, capsys):
    file, output = tmp_path / "small.toml", tmp_path / "out"
    for old, new, said in [
        ("prompts_per_update", "prompts_per_updat", "did you mean"),
        ("learning_rate = 1e-3", "updates = 3", "the suite says it by its budget"),
        ('name = "length"', 'name = "lenght"', "did you mean 'length'"),
        ("evaluation = { prompts = 16 }", "evaluation = { prompts = 0 }", "at least one held-out prompt"),
        ("sums:prompts", "sums:prompt", "cannot be imported"),
        ("sums:texts", "sum:texts", "cannot be imported"),
        ("steps = 30", "step = 30", "did you mean 'models.sums.steps'"),
        ("steps = 30", "steps = 0", "steps is 0; expected a number of at least 1"),
        ("hidden_size = 16", "hidden_size = 10", "expected a multiple of 4"),
        ("group_size = 4", "group_size = 1", "compares at least 2 answers"),
        ('beta = "beta"', "betta = 1", "betta"),
    ]:
        file.write_text(RL.replace(old, new), encoding="utf-8")
        assert main(["bench", "run", str(file), "--quiet", "--output", str(output)]) == 2, said
        assert said in capsys.readouterr().err
    assert not output.exists()


def test_a_function_that_writes_no_texts_is_said(tmp_path, plugins, capsys):
    file = tmp_path / "small.toml"
    for old, new, said in [
        ('"lmrl_suites.tasks.sums:texts"', '"builtins:len"', "cannot be called"),
        (
            'texts = "lmrl_suites.tasks.sums:texts"\narguments = { largest = 9 }',
            'texts = "builtins:id"',
            "returns int",
        ),
    ]:
        file.write_text(RL.replace(old, new), encoding="utf-8")
        assert main(["bench", "run", str(file), "--quiet", "--output", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err


def test_a_report_says_what_is_new_what_is_gone_and_what_has_nothing_to_compare(tmp_path, capsys):
    file = write(tmp_path / "a.jsonl", [record(0.5, seed=seed) for seed in range(3)])
    failed = write(tmp_path / "b.jsonl", [record(None, seed=0, error="one | line\nand <b>another")])
    other = write(tmp_path / "c.jsonl", [record(0.5, suite="other")])

    def text(new, old):
        assert main(["bench", "report", str(new), "--against", str(old), "--output", str(tmp_path / "page")]) == 0
        return (tmp_path / "page" / "report.md").read_text()

    broken = text(failed, file)
    assert "1 runs that ended well before fail now" in broken and "2 runs of the older results are missing" in broken
    assert "| one \\| line and &lt;b>another |" in broken, "within its cell"
    assert "have nothing of the suite tiny" in text(file, other)
    assert main(["bench", "report", str(file), "--output", str(file)]) == 2
    assert "is a file; expected a folder" in capsys.readouterr().err


def test_a_report_says_who_had_other_settings_than_most(tmp_path):
    def run(name, rate):
        return record(
            0.5, optimizer=name, settings={"train": {"rate": rate, "updates": 2}, "optimizer": {"name": name}}
        )

    file = write(tmp_path / "a.jsonl", [run("rloo", 0.1), run("ppo", 0.3), run("dpo", 0.1)])
    assert main(["bench", "report", str(file), "--output", str(tmp_path)]) == 0
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "What most have, of sums at beta 0.05: train.rate 0.1, train.updates 2." in lines
    assert [line.split("|")[3].strip() for line in lines if line.startswith(("| ppo | name", "| rloo | name"))] == [
        "train.rate 0.3",
        "",
    ]


def test_results_are_json_that_everybody_can_read(small):
    for line in (small / "small.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_throughput_suite_keeps_what_was_measured(tmp_path, plugins, monkeypatch, capsys):
    """With a stand-in for the module that measures."""
    from types import ModuleType

    from lmrl_suites.kinds import throughput

    @dataclass
    class ThroughputSettings:
        rows: int = 4

    module = ModuleType("stand_in")
    module.ThroughputSettings = ThroughputSettings
    module.measure = lambda settings, progress: iter(
        [
            {"workload": "sampling", "side": "lmrl", "rate": {"median": 100.0 * settings.rows}},
            {"workload": "sampling", "side": "generate", "rate": {"median": 1.0}},
        ]
    )
    module.markdown = lambda records: f"{len(records)} records"
    monkeypatch.setattr(throughput, "_module", lambda: module)
    file = tmp_path / "speed.toml"
    file.write_text('name = "speed"\nkind = "throughput"\nseeds = 2\nbetas = [0.0]\n[tasks.sampling]\nrows = 8\n')
    assert main(["bench", "run", str(file), "--quiet", "--output", str(tmp_path)]) == 0
    records = read_records(tmp_path / "speed.jsonl")
    assert [one.metrics["log_rate"] for one in records] == [pytest.approx(math.log(800))] * 2
    others = {"side": "lmrl", "peak_bytes": 200}, {"side": "lmrl", "last_mean": 0.5}, {"side": "trl", "peak_bytes": 400}
    assert [throughput._own_figure(one) for one in others] == [1 / 200, 0.5, 0.0], "memory and learning count as well"
    assert main(["bench", "report", str(tmp_path / "speed.jsonl"), "--output", str(tmp_path / "page")]) == 0
    assert "2 records" in (tmp_path / "page" / "report.md").read_text()
