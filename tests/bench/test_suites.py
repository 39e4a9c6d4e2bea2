"""Suite files: the shipped ones can be planned as they are, and what is wrong in one is said before anything runs."""

from pathlib import Path

import pytest

from lmrl.bench.kinds import GROUP
from lmrl.bench.running import plan
from lmrl.bench.suite import load_suite
from lmrl.cli.bench_run import _members
from lmrl.cli.main import main
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager

TINY = """
name = "tiny"
kind = "exact"
betas = [0.3]
seeds = 2
optimizers = ["reinforce"]
budget = { amount = 3 }

[tasks.counting]
problem = "counting"

[smoke]
seeds = 1
"""


@pytest.fixture(scope="module")
def plugins():
    return PluginManager()


@pytest.fixture
def tiny(tmp_path):
    def write(text=TINY):
        file = tmp_path / "tiny.toml"
        file.write_text(text, encoding="utf-8")
        return str(file)

    return write


@pytest.mark.parametrize("name", ["exact", "stories", "verifiable", "synthetic"])
def test_a_shipped_suite_can_be_run_by_every_optimizer_and_at_its_toy_size(plugins, name):
    suite = load_suite(name, plugins, changes={"seeds": 2})
    planned = plan(suite, plugins)
    names = {one.run.optimizer for one in planned}
    assert len(names) > 15
    assert len(planned) == len(names) * len(suite.tasks) * len(suite.betas) * 2
    assert len({(one.digest, one.run.seed) for one in planned}) == len(planned), "every cell has settings of its own"
    small = load_suite(name, plugins, smoke=True)
    assert small.budget.amount < suite.budget.amount and plan(small, plugins)


def test_the_group_names_suites_and_real_tasks_ask_for_a_model(plugins):
    group = load_suite("smoke", plugins)
    assert group.kind == GROUP and all(load_suite(name, plugins, smoke=True) for name in group.members)
    with pytest.raises(SettingsError, match=r"tasks\.gsm8k\.model is empty"):
        plan(load_suite("reasoning", plugins), plugins)


def test_a_group_gives_each_suite_the_optimizers_that_it_can_run(plugins, caplog):
    members = load_suite("smoke", plugins).members
    assert set(members) == {one for one in plugins.benchmarks() if one not in ("smoke", "reasoning")}
    found = _members(members, plugins, [], {"optimizers": ["rloo", "best_of_n"], "betas": [0.3]})
    assert found["exact"].optimizers == ["rloo", "best_of_n"] and found["stories"].optimizers == ["rloo"]
    assert "reward-models" not in found and "which runs none of rloo" in caplog.text
    assert found["exact"].betas == [0.3]
    further = _members(members, plugins, [], {"optimizers": ["grpo_centred"]})
    assert list(further) == ["exact"], "a row that only this suite has"
    added = _members(members, plugins, ["recipes.mine.of=ppo"], {"optimizers": ["mine"]})
    assert "exact" in added and "stories" in added
    assert _members(members, plugins, [], {"betas": [0.3]})["reward-models"].betas == [0.0], "it has no coefficient"
    with pytest.raises(SettingsError, match="did you mean 'rloo'"):
        _members(members, plugins, [], {"optimizers": ["rlooo"]})


def test_a_coefficient_where_there_is_none_is_refused(plugins):
    with pytest.raises(SettingsError, match=r"have no coefficient of the KL.*leave --beta out"):
        plan(load_suite("reward-models", plugins, changes={"betas": [0.1]}), plugins)


def test_a_budget_of_tokens_counts_every_answer_at_its_full_length(plugins):
    from lmrl.bench.suite_kind import SuiteRun
    from lmrl_suites.kinds.rl import RLKind

    changes = {"budget": {"unit": "tokens", "amount": 50_000}}
    suite = load_suite("verifiable", plugins, changes=changes)
    config = RLKind().config(suite, SuiteRun("addition", "rloo", 0.1, 0), Path(), plugins)
    assert config.train.updates == 50_000 // (32 * 4 * 4)
    greedy = RLKind().config(suite, SuiteRun("addition", "remax", 0.1, 0), Path(), plugins)
    assert greedy.train.updates == 50_000 // (32 * (4 + 1) * 4), "the greedy answer to each prompt is sampled as well"
    with pytest.raises(SettingsError, match="fewer than one update"):
        plan(load_suite("verifiable", plugins, changes={"budget": {"unit": "tokens", "amount": 9}}), plugins)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = 2", "seed = 2", "did you mean 'seeds'"),
        ('problem = "counting"', 'problme = "counting"', r"tasks\.counting\.problme"),
        ('problem = "counting"', 'problem = "hard"', 'expected one of "random", "counting"'),
        ('"reinforce"', '"reinforec"', "did you mean 'reinforce'"),
        ('kind = "exact"', 'kind = "exakt"', "did you mean 'exact'"),
        ("amount = 3", "amount = 0", "at least 1"),
        ("betas = [0.3]", "betas = [0.3, 0.3]", "each number once"),
        ("[tasks.counting]\n", "[settings]\n", "settings.problem"),
        ("seeds = 1", "sedes = 1", "did you mean 'seeds'"),
        ("[smoke]", "[measure]\nname = 'gap_close'\n[smoke]", "did you mean 'gap_closed'"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(plugins, tiny, old, new, said):
    text = TINY.replace(old, new)
    if new.startswith("[settings]"):
        text += '\n[tasks.counting]\nproblem = "counting"\n'
    with pytest.raises(SettingsError, match=said):
        plan(load_suite(tiny(text), plugins), plugins)


def test_unknown_names_and_files_on_the_command_line(tmp_path, tiny, capsys):
    assert main(["bench", "run", "storys"]) == 2
    assert "did you mean 'stories'" in capsys.readouterr().err
    assert main(["bench", "run", str(tmp_path / "tini.toml")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["bench", "run", "exact", "--optimizers", "rlooo", "--output", str(tmp_path)]) == 2
    assert "did you mean 'rloo'" in capsys.readouterr().err
    assert main(["bench", "run", "exact", "--tasks", "count", "--output", str(tmp_path)]) == 2
    assert "did you mean 'counting'" in capsys.readouterr().err
    assert main(["bench", "run", "smoke", "--output", str(tmp_path / "a.jsonl")]) == 2
    assert "expected a folder" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("exact smoke.seeds=1", "smoke.seeds is set, but overrides come after the toy sizes. Set seeds itself."),
        ("exact tasks.randm.problem=random", "unknown task 'randm'; did you mean 'random'"),
        ("exact tasks.random.problem=counting --tasks counting", "--tasks leaves random out"),
        ("exact recipes.gpro.optimizer.epochs=2", "the suite does not run gpro: "),
        ("exact recipes.grpo.optimizer.clip_range=0.3 --optimizers ppo", "the suite does not run grpo: ppo."),
        ("exact members=[]", "only a suite of the kind group has members"),
        ("exact seeds=2 --seeds 1", "seeds and --seeds are both given"),
        ("exact betas=[1] --beta 0.1", "betas and --beta are both given"),
        ("exact models.x.steps=3", "no task of this run begins with the model x"),
        ("stories --optimizers ppo settings.checkpoint.every=3", "settings.checkpoint is set, but a run of a suite"),
        ("stories --optimizers ppo settings.reward.numeric_answer.tolerance=1", "only with reward.name=numeric_answer"),
        ("stories --optimizers ppo tasks.sentiment.settings.kl.target=3", "only with kl.controller=adaptive"),
    ],
)
def test_overrides_that_no_run_reads_are_refused(tmp_path, capsys, arguments, message):
    assert main(["bench", "run", *arguments.split(), "--smoke", "--quiet", "--output", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["list", "run", "report", "compare"])
def test_every_command_has_an_example(command, capsys):
    assert main(["bench", command, "--help"]) == 0
    assert f"example:\n  lmrl bench {command}" in capsys.readouterr().out


def test_the_list_shows_shipped_suites_and_a_plugins(tiny, tmp_path, capsys):
    file = tmp_path / "offers.py"
    file.write_text(
        "from pathlib import Path\nfrom lmrl import BenchmarkSpec, hookimpl\n\n\n@hookimpl\ndef lmrl_benchmarks():\n"
        "    yield BenchmarkSpec('tiny', str(Path(__file__).with_name('tiny.toml')), 'Very small')\n"
    )
    tiny()
    assert main(["bench", "--plugin", str(file), "list"]) == 0
    printed = capsys.readouterr().out
    assert "stories" in printed and "tiny" in printed and "Very small" in printed
    output = str(tmp_path / "out.jsonl")
    words = ["bench", "run", "tiny", "--quiet", "--smoke", "budget.amount=2", "--output", output, "--plugin", str(file)]
    assert main(words) == 0
    assert '"asked":"tiny --smoke budget.amount=2"' in Path(output).read_text()
