"""`lmrl new-plugin` writes sound files and refuses what could not work."""

import ast
import tomllib

import pytest

from lmrl.cli.main import main
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl.plugins.scaffold import USES, new_plugin


def project_of(path):
    return tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", USES)
def test_a_new_plugin_is_a_plugin(kind, tmp_path):
    path = new_plugin("my_own", tmp_path, kind=kind)
    assert path == tmp_path / "my_own"
    more = {"my_own.toml"} if kind == "benchmark" else set()
    names = {"README.md", "my_own.py", "pyproject.toml", "test_my_own.py"} | more
    assert {file.name for file in path.iterdir()} == names
    assert more <= set(project_of(path)["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"])
    manager = PluginManager([path / "my_own.py"], entry_points=[], strict=True)
    assert "my_own" in manager.records(kind)
    assert project_of(path)["project"]["entry-points"]["lmrl"] == {"my_own": "my_own"}
    for file in path.iterdir():
        text = file.read_text(encoding="utf-8")
        assert "{{" not in text and text.endswith("\n") and max(map(len, text.splitlines())) <= 170
        if file.suffix == ".py":
            assert ast.get_docstring(ast.parse(text)) and max(map(len, text.splitlines())) <= 120


def test_a_new_optimizer_is_short(tmp_path):
    path = new_plugin("my_own", tmp_path)
    assert len((path / "my_own.py").read_text(encoding="utf-8").splitlines()) < 50


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-own", "cannot be that of a module; expected lower-case letters.*did you mean 'my_own'"),
        ("MyOwn", "did you mean 'myown'"),
        ("2fast", "cannot be that of a module"),
        ("class", "no word of Python's own"),
        ("../escape", "did you mean 'escape'"),
        ("", "the name '' cannot be"),
        ("json", "a module 'json' is installed already"),
        ("torch", "a module 'torch' is installed already"),
        ("ours", "the optimizer 'ours' is installed already"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name, message, tmp_path):
    with pytest.raises(SettingsError, match=message):
        new_plugin(name, tmp_path, taken=["ours"])
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    new_plugin("my_own", tmp_path)
    (tmp_path / "my_own" / "my_own.py").write_text("mine")
    with pytest.raises(SettingsError, match="my_own exists and is left as it is; choose another name"):
        new_plugin("my_own", tmp_path)
    assert (tmp_path / "my_own" / "my_own.py").read_text() == "mine"


def test_an_unknown_kind_names_the_nearest(tmp_path):
    with pytest.raises(SettingsError, match="unknown kind of plugin to write 'rewards'; did you mean 'reward'"):
        new_plugin("my_own", tmp_path, kind="rewards")


def test_the_command_says_how_to_go_on(tmp_path, capsys):
    assert main(["new-plugin", "my_own", "--kind", "dataset", "--folder", str(tmp_path / "deep" / "er")]) == 0
    said = capsys.readouterr().out
    assert f"cd {tmp_path / 'deep' / 'er' / 'my_own'}" in said and "prompts.name=my_own" in said


@pytest.mark.parametrize("kind", USES)
def test_the_printed_commands_are_those_of_the_readme_and_install_what_the_tests_need(kind, tmp_path, capsys):
    assert main(["new-plugin", "my_own", "--kind", kind, "--folder", str(tmp_path)]) == 0
    printed = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    readme = (tmp_path / "my_own" / "README.md").read_text(encoding="utf-8")
    block = readme.partition("```sh\n")[2].partition("```")[0]
    written = [line.partition("#")[0].strip() for line in block.splitlines()]
    assert printed[0] == f"cd {tmp_path / 'my_own'}" and set(printed[1:]) <= set(written)
    extra = printed[1].partition("[")[2].partition("]")[0]
    assert "pytest" in project_of(tmp_path / "my_own")["project"]["optional-dependencies"][extra]
    assert printed[2] == "python -m pytest"


def test_an_installed_optimizers_name_is_refused(tmp_path, capsys):
    assert main(["new-plugin", "reinforce", "--folder", str(tmp_path)]) == 2
    assert "the optimizer 'reinforce' is installed already (see `lmrl plugins`)" in capsys.readouterr().err
