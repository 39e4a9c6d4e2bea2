"""The number of the plugin API: a plugin that declares another one is not executed, and the reason names both."""

import json

import pytest

import lmrl
from lmrl.cli.main import main
from lmrl.errors import PluginError
from lmrl.plugins import PluginManager
from lmrl.plugins.api import declared_in_file
from lmrl.plugins.scaffold import USES, new_plugin

OTHER = lmrl.PLUGIN_API + 1
REFUSED = rf"LMRL_PLUGIN_API is {OTHER}; expected {lmrl.PLUGIN_API}, the plugin API of lmrl .* docs/migration.md lists"


def written(tmp_path, reward_source, *lines):
    file = tmp_path / "mine.py"
    header = ["from dataclasses import dataclass", "from lmrl import RewardSpec, hookimpl"]
    settings = ["@dataclass", "class Settings:", "    size: int = 1"]
    file.write_text("\n".join([*header, *lines, *settings, reward_source("brief")]), encoding="utf-8")
    return file


@pytest.mark.parametrize("declaration", ["", f"LMRL_PLUGIN_API = {lmrl.PLUGIN_API}"])
def test_the_number_of_this_version_and_none_are_loaded(declaration, tmp_path, reward_source):
    manager = PluginManager([written(tmp_path, reward_source, declaration)], entry_points=[])
    [_, info] = manager.listing()
    assert info.status == "loaded" and "brief" in manager.rewards()
    assert info.api == (lmrl.PLUGIN_API if declaration else None)


@pytest.mark.parametrize("declaration", [f"LMRL_PLUGIN_API = {OTHER}", f"LMRL_PLUGIN_API: int = {OTHER}"])
def test_another_number_is_refused_before_the_file_is_executed(declaration, tmp_path, reward_source):
    file = written(tmp_path, reward_source, declaration, "from lmrl import a_name_of_another_version")
    with pytest.raises(PluginError, match=REFUSED):
        PluginManager([file], entry_points=[])
    manager = PluginManager([file], entry_points=[], strict=False)
    assert manager.listing()[1].status == "failed" and "brief" not in manager.rewards()


def test_a_number_that_only_the_loaded_module_has_is_refused(make_fake, reward_source):
    points = [make_fake("old", f"LMRL_PLUGIN_API = {OTHER}" + reward_source("brief")), make_fake("new", "x = 1")]
    found = {info.name: info for info in PluginManager(entry_points=points).listing()}
    assert found["old"].status == "failed" and f"LMRL_PLUGIN_API is {OTHER}" in found["old"].error
    assert "LMRL_PLUGIN_API" not in found["new"].error


def test_the_module_of_an_entry_point_is_read_before_it_is_loaded(make_fake, tmp_path, monkeypatch):
    (tmp_path / "of_a_later_time.py").write_text(f"LMRL_PLUGIN_API = {OTHER}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    fake = make_fake("later", "")
    point = type(fake)(fake.name, fake.source, fake.dist, value="of_a_later_time:plugin")
    [_, info] = PluginManager(entry_points=[point]).listing()
    assert f"LMRL_PLUGIN_API is {OTHER}" in info.error and not point.loads


def test_a_file_that_cannot_be_parsed_declares_nothing(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("LMRL_PLUGIN_API = (\n", encoding="utf-8")
    assert declared_in_file(file) is None
    with pytest.raises(PluginError, match="SyntaxError"):
        PluginManager([file], entry_points=[])


@pytest.mark.parametrize("kind", USES)
def test_a_new_plugin_declares_it(kind, tmp_path):
    folder = new_plugin("my_own", tmp_path, kind=kind)
    assert declared_in_file(folder / "my_own.py") == lmrl.PLUGIN_API
    minor = lmrl.__version__.rpartition(".")[0]
    assert f'dependencies = ["lmrl>={minor}"]' in (folder / "pyproject.toml").read_text(encoding="utf-8")


def test_the_listing_shows_it(tmp_path, reward_source, capsys):
    file = written(tmp_path, reward_source, f"LMRL_PLUGIN_API = {lmrl.PLUGIN_API}")
    assert main(["plugins", "--plugin", str(file)]) == 0
    assert f"lmrl {lmrl.__version__} has plugin API {lmrl.PLUGIN_API}" in capsys.readouterr().out
    assert main(["plugins", "--plugin", str(file), "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert listing["plugin_api"] == lmrl.PLUGIN_API
    assert next(one["api"] for one in listing["plugins"] if one["name"] == "mine") == lmrl.PLUGIN_API
