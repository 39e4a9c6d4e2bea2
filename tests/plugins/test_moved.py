"""A plugin of version 0.1 stops with an error that says where its imports are now."""

import contextlib
import importlib
import re
import sys
from importlib.util import find_spec

import pytest

from lmrl import Batch, Needs, Rollout, Samples
from lmrl.errors import LmrlError, PluginError, RenamedError, SettingsError
from lmrl.moved import MOVED, NAMES
from lmrl.plugins import PluginManager
from lmrl.plugins.specs import MOVED_NEEDS

IMPORTS = {
    "import lmrl.ops": "lmrl.algorithms",
    "from lmrl.optimizer import Loss, PolicyOptimizer": "lmrl.algorithms",
    "from lmrl.specs import Needs, OptimizerSpec": "lmrl",
    "from lmrl.env.text_generation import TextGenEnv": "lmrl.envs",
    "from lmrl.models import response_texts": "lmrl.text",
    "from lmrl.bench.tasks.sums import texts": "lmrl_suites.tasks",
}


@pytest.mark.parametrize("statement", IMPORTS)
def test_the_error_names_the_new_place(statement, tmp_path):
    file = tmp_path / "old.py"
    file.write_text(f"from lmrl import hookimpl\n{statement}\n", encoding="utf-8")
    with pytest.raises(PluginError, match=rf"is (in )?{re.escape(IMPORTS[statement])} now; docs/migration.md lists"):
        PluginManager([file], entry_points=[], strict=True)


@pytest.mark.parametrize("old", MOVED)
def test_the_old_place_is_gone_and_the_new_one_is_there(old):
    # A checkout that was updated may keep an empty folder with compiled files.
    with contextlib.suppress(ModuleNotFoundError):
        assert importlib.import_module(old).__file__ is None
    for new in MOVED[old].split(" and "):
        importlib.import_module(new)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_name_is_where_the_advice_says(module, name):
    assert not hasattr(importlib.import_module(module), name)
    assert hasattr(importlib.import_module(NAMES[module, name]), name)


def test_other_import_errors_get_no_advice(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import nowhere_at_all\n", encoding="utf-8")
    with pytest.raises(PluginError) as caught:
        PluginManager([file], entry_points=[], strict=True)
    assert "migration" not in str(caught.value)


@pytest.mark.parametrize("record", [Batch, Rollout, Samples])
def test_a_renamed_column_says_what_it_is_now(record):
    with pytest.raises(AttributeError, match=r"proximal_logprobs.*now; docs/migration.md"):
        _ = record.__new__(record).behavior_logprobs


@pytest.mark.parametrize("record", [Batch, Rollout, Samples])
def test_so_does_a_record_that_is_made_with_one(record):
    with pytest.raises(LmrlError, match=r"behavior_logprobs is sampler_logprobs.*now; docs/migration.md"):
        record(behavior_logprobs=None)


def test_a_program_gets_the_advice_without_the_plugin_manager():
    with pytest.raises(ModuleNotFoundError, match=r"lmrl\.stages\.rl_config is lmrl\.stages\.rl now; docs/migration"):
        importlib.import_module("lmrl.stages.rl_config")
    assert find_spec("lmrl.stages.no_such_stage") is None


def test_imports_of_other_packages_do_not_pass_through_the_advice():
    assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("lmrl.moved")]
    assert [hook for hook in sys.path_hooks if getattr(hook, "__module__", "") == "lmrl.moved"]


def test_an_installed_plugin_of_version_01_is_named_where_its_name_is_unknown(make_fake):
    manager = PluginManager(entry_points=[make_fake("old", "from lmrl.optimizer import PolicyOptimizer")])
    with pytest.raises(SettingsError) as caught:
        manager.get("optimizer", "old")
    assert "unknown optimizer 'old'" in str(caught.value) and "old (fake-old 1.0): " in str(caught.value)
    assert "lmrl.optimizer is lmrl.algorithms now; docs/migration.md" in str(caught.value)


@pytest.mark.parametrize("name", MOVED_NEEDS)
def test_needs_that_moved_name_their_place(name):
    with pytest.raises(RenamedError, match=rf"Needs\({name}=.*docs/migration\.md") as caught:
        Needs(values=True, **{name: True})
    assert MOVED_NEEDS[name] in str(caught.value)
