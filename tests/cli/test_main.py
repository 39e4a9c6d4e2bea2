"""The command line: finding commands, saying what is wrong in one paragraph, and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lmrl import __version__
from lmrl.cli.main import main

COMMANDS = """
from lmrl import CommandSpec, errors, hookimpl

def arguments(parser):
    parser.add_argument("names", nargs="*")
    parser.add_argument("--loud", action="store_true")

def run(arguments):
    print(arguments.names, arguments.loud, len(arguments.plugin_manager.listing()) > 0)
    kind = arguments.names[0] if arguments.names else ""
    if kind == "settings":
        raise errors.SettingsError("size is 3; expected 4")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "bug":
        raise ZeroDivisionError
    return 7 if kind == "seven" else None

@hookimpl
def lmrl_commands():
    yield CommandSpec("hello", arguments, run, summary="greet somebody", example="lmrl hello Ada")
"""
CONFLICT = """
from lmrl import CommandSpec, hookimpl

@hookimpl
def lmrl_commands():
    yield CommandSpec("plugins", lambda parser: None, lambda arguments: 9)
"""


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for name in ("LMRL_DISABLE_PLUGINS", "LMRL_STRICT_PLUGINS", "LMRL_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hello(tmp_path) -> str:
    path = tmp_path / "hello.py"
    path.write_text(COMMANDS)
    return str(path)


def process(*arguments, **environment):
    command = [sys.executable, "-m", "lmrl.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lmrl {__version__}\n"
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert "  plugins " in out and "  rl " in out and out.rstrip().splitlines()[-2] == "example:"


def test_every_commands_help_ends_with_an_example(capsys):
    from lmrl.plugins import PluginManager

    for name, spec in PluginManager(entry_points=[]).commands().items():
        assert main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert spec.example.startswith(f"lmrl {name}") and out.endswith(f"example:\n  {spec.example}\n")
        assert "--plugin FILE" in out


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_plugin_file_may_bring_the_command(place, hello, capsys):
    arguments = ["hello", "a", "--loud", "b"]
    for option in (["--plugin", hello], [f"--plugin={hello}"]):
        assert main(arguments[:place] + option + arguments[place:]) == 0
        assert capsys.readouterr().out == "['a', 'b'] True True\n"


def test_exit_codes(hello, capsys):
    assert main(["--plugin", hello, "hello", "seven"]) == 7
    assert main(["--plugin", hello, "hello", "interrupt"]) == 130
    assert main(["--plugin", hello, "hello", "settings"]) == 2
    assert capsys.readouterr().err.splitlines() == ["interrupted", "error: size is 3; expected 4"]
    assert main(["--plugin", hello, "hello", "--lout"]) == 2
    assert "unrecognized arguments: --lout" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["--plugin", hello, "hello", "bug"])


def test_debugging_shows_the_traceback(hello, capsys, monkeypatch):
    monkeypatch.setenv("LMRL_DEBUG", "1")
    assert main(["--plugin", hello, "hello", "settings"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("error: size is 3; expected 4\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plugin"], "unknown command 'plugin'; did you mean 'plugins'?"),
        (["--plugin"], "--plugin stands without a file"),
        (["--plugin", "--json"], "--plugin stands without a file"),
        (["--plugin", "no.py", "config"], "the plugin file no.py does not exist"),
        (["--quiet", "rl"], "unknown option --quiet"),
        (["config", "optimizer.pop"], "unknown optimizer 'pop'; did you mean 'ppo'?"),
        (["config", "--stage", "rewrad"], "unknown stage 'rewrad'; did you mean 'reward'?"),
        (["config", "--stage", "reward", "optimizer"], "unknown setting 'optimizer'"),
        (["config", "trian"], "unknown setting 'trian'; did you mean 'train'?"),
        (["config", "train.learning_rat"], "did you mean 'train.learning_rate'?"),
        (["config", "optimizer.ppo.clip_rang"], "did you mean 'optimizer.ppo.clip_range'?"),
        (["config", "dataset.file"], "The section that picks the dataset is 'prompts'."),
        (["config", "model.size"], "model is a single setting"),
    ],
)
def test_what_is_wrong_is_said_in_one_paragraph(arguments, message, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_configuration_pages(capsys):
    for path, parts in {
        "": ["train", "section (optimizer)", "checkpoint"],
        "train": ["[train]", "learning_rate = 0.0001", "Peak learning rate of the policy."],
        "train.updates": ["updates = 100"],
        "optimizer": ["reinforce", 'name = "ppo"'],
        "optimizer.ppo": ["[optimizer.ppo]", "clip_range = 0.2", "float", "Distance of the ratio"],
        "reward.lexicon": ["[reward.lexicon]", "Lexicon file"],
        "prompts.file": ["[prompts.file]"],
    }.items():
        assert main(["config", path] if path else ["config"]) == 0
        out = capsys.readouterr().out
        assert all(part in out for part in parts), out
    assert main(["config", "--stage", "eval", "prompts"]) == 0
    assert "settings: lmrl config --stage eval prompts.<name>" in capsys.readouterr().out


def test_the_listing_works_when_plugins_are_broken(tmp_path, capsys, monkeypatch):
    broken, conflicting = tmp_path / "broken.py", tmp_path / "conflicting.py"
    broken.write_text("import no_such_module_anywhere\n")
    conflicting.write_text(CONFLICT)
    monkeypatch.setenv("LMRL_STRICT_PLUGINS", "1")
    files = ["--plugin", str(broken), "--plugin", str(conflicting)]
    assert main(["plugins", *files]) == 1
    out = capsys.readouterr().out
    assert "failed" in out and "no_such_module_anywhere" in out and "conflict: 2 plugins offer the command" in out
    assert main(["plugins", "--json", *files]) == 1
    listing = json.loads(capsys.readouterr().out)
    assert listing["plugins"][0]["name"] == "lmrl" and len(listing["conflicts"]) == 1
    assert main(["config", *files[2:]]) == 2
    assert "2 plugins offer the command 'plugins'" in capsys.readouterr().err


def test_a_wrong_name_in_the_disabled_list_is_a_plain_warning():
    done = process("plugins", LMRL_DISABLE_PLUGINS="popo")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: no installed plugin is called 'popo'") and done.stderr.count("\n") == 1


def test_the_command_in_a_process_of_its_own():
    done = process("plugins")
    assert done.returncode == 0 and "reinforce" in done.stdout and not done.stderr
    done = process("config", "optimizer.ppo", LMRL_DISABLE_PLUGINS="ppo")
    assert done.returncode == 2 and "Disabled plugins: ppo (lmrl" in done.stderr


def test_a_reader_that_leaves_is_no_error():
    done = subprocess.run(
        f'"{sys.executable}" -m lmrl.cli.main config train | head -c 1', shell=True, capture_output=True, text=True
    )
    assert done.stderr == ""


def test_import_registers_the_environment_once_and_loads_no_torch():
    code = """
import importlib, sys, warnings
warnings.simplefilter("error")
import lmrl, gymnasium
spec = gymnasium.spec("TextGen-v0")
assert spec.entry_point == "lmrl.envs.text_generation:TextGenEnv", spec
assert spec.vector_entry_point == "lmrl.envs.vector:TextGenVectorEnv" and spec.max_episode_steps is None
importlib.reload(lmrl)
assert lmrl.hookimpl and lmrl.PluginManager and "torch" not in sys.modules and "transformers" not in sys.modules
assert all(getattr(lmrl, name) is not None for name in lmrl.__all__) and set(lmrl.__all__) <= set(dir(lmrl))
try:
    lmrl.nothing
except AttributeError as error:
    assert "nothing" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
