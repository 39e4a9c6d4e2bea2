import json
import pickle
import sys
from dataclasses import dataclass

import pytest

from lmrl.errors import LmrlError, SettingsError, unknown
from lmrl.plugins.specs import RewardSpec
from lmrl.rewards import resolve

MODULE = """
from dataclasses import dataclass

def brevity(prompts, responses, scale=1.0):
    return [-scale * len(response) for response in responses]

class Counter:
    def __init__(self, letter="e"):
        self.letter = letter
    def __call__(self, prompts, responses):
        return [response.count(self.letter) for response in responses]
    class Inner:
        pass

@dataclass
class Loud:
    bonus: float = 1.0
    def __call__(self, prompts, responses):
        return [self.bonus * response.isupper() for response in responses]

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the current folder, importable as from an installed command."""
    (tmp_path / "house_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("import no_such_dependency")
    (tmp_path / "failing_rewards.py").write_text("raise RuntimeError('not today')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield "house_rewards"
    for name in ("house_rewards", "broken_rewards", "failing_rewards"):
        sys.modules.pop(name, None)


@dataclass
class Settings:
    """Settings of the test's reward."""

    value: float = 1.0
    """What every response scores."""


class Constant:
    def __init__(self, settings):
        self.value = settings.value

    def __call__(self, prompts, responses, **columns):
        return [self.value] * len(responses)


SPEC = RewardSpec("constant", Constant, Settings)


class Plugins:
    def get(self, kind, name):
        assert kind == "reward"
        if name != "constant":
            raise SettingsError(unknown("reward", name, ["constant"]))
        return SPEC


def score(reward, *arguments):
    return resolve(reward, *arguments)(["p"], ["three"]).scores.tolist()


def test_module_and_function(module):
    assert score(f"{module}:brevity") == [-5.0]
    assert score(f"{module}:brevity", {"scale": 2.0}) == [-10.0]


def test_a_class_is_built_from_its_settings(module):
    assert score(f"{module}:Counter") == [2.0]
    assert score(f"{module}:Counter", {"letter": "t"}) == [1.0]


def test_a_dataclass_is_built_from_its_settings(module):
    reward = resolve(f"{module}:Loud", {"bonus": 3})
    assert reward(["p"], ["LOUD"]).scores.tolist() == [3.0]
    with pytest.raises(SettingsError, match="bonus"):
        resolve(f"{module}:Loud", {"bonuss": 3})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("house_rewards:brevty", "house_rewards has no 'brevty'; did you mean 'house_rewards:brevity'"),
        ("house_rewards:zzz", "has no 'zzz'. It defines .*brevity"),
        ("house_rewards:number", r"is 3 \(int\), which cannot be called"),
        ("house_rewards:Counter.Inner", "cannot be called"),
        ("house_reward:brevity", "no module 'house_reward'; did you mean 'house_rewards'"),
        ("house_rewards.sub:brevity", "no module 'house_rewards.sub'"),
        ("broken_rewards:brevity", "importing broken_rewards failed.*no_such_dependency"),
        ("failing_rewards:brevity", "importing failing_rewards failed with RuntimeError: not today"),
        (":brevity", "incomplete; expected 'module:function'"),
        ("house_rewards:", "incomplete"),
    ],
)
def test_names_that_lead_nowhere(module, name, message):
    with pytest.raises(SettingsError, match=message):
        resolve(name)


def test_settings_that_do_not_exist(module):
    with pytest.raises(SettingsError, match="'scal'; did you mean 'scale'"):
        resolve(f"{module}:brevity", {"scal": 1})
    with pytest.raises(SettingsError, match="'lettre'; did you mean 'letter'"):
        resolve(f"{module}:Counter", {"lettre": "x"})
    with pytest.raises(SettingsError, match="takes no settings"):
        resolve(resolve(f"{module}:brevity"), {"scale": 1})


def test_registered_names_and_specs():
    assert score("constant", {"value": 2.5}, Plugins()) == [2.5]
    assert score(SPEC, {"value": 2.5}) == [2.5]
    assert score("constant", None, Plugins()) == [1.0]


def test_a_live_callable_with_settings():
    def scaled(prompts, responses, scale):
        return [scale]

    assert score(scaled, {"scale": 4}) == [4.0]


@pytest.mark.parametrize("reward", [3, None, ["constant"], object()])
def test_what_cannot_be_called(reward):
    with pytest.raises(SettingsError, match="cannot be called"):
        resolve(reward)


def test_several_with_weights(module):
    reward = resolve({"constant": 2.0, f"{module}:brevity": 0.5}, {"constant": {"value": 3.0}}, Plugins())
    result = reward(["p"], ["four"])
    assert result.scores.tolist() == [2.0 * 3.0 - 0.5 * 4]
    assert {name: part.tolist() for name, part in result.parts.items()} == {
        "constant": [3.0],
        "house_rewards:brevity": [-4.0],
    }


def test_settings_of_unused_rewards_are_no_error(module):
    reward = resolve({f"{module}:brevity": 1.0}, {"constant": {"value": 3.0}, "other:thing": {}}, Plugins())
    assert reward(["p"], ["four"]).scores.tolist() == [-4.0]
    assert resolve({"happy_end": 1.0}, {"length": {}})(["p"], [" He smiled."]).scores.tolist() == [1.0]


@pytest.mark.parametrize(
    ("weights", "settings", "message"),
    [
        ({}, {}, "weights is empty"),
        ({"constant": float("nan")}, {}, "weight of reward 'constant' is nan; expected a finite number"),
        ({"constant": float("inf")}, {}, "finite"),
        ({"constant": "1"}, {}, "is '1'"),
        ({"constant": True}, {}, "is True"),
        ({3: 1.0}, {}, "named by 3"),
        ({"constant": 1.0}, {"constnt": {}}, "'constnt'; did you mean 'constant'"),
        ({"constant": 1.0}, {"constant": 3}, "expected a table"),
    ],
)
def test_bad_weights_and_settings(weights, settings, message):
    with pytest.raises(SettingsError, match=message):
        resolve(weights, settings, Plugins())


def test_descriptions_are_json(module):
    single = resolve("constant", {"value": 2.0}, Plugins())
    assert json.loads(json.dumps(single.description)) == {"name": "constant", "settings": {"value": 2.0}}
    several = resolve({"constant": 1.0, f"{module}:brevity": 2}, None, Plugins())
    assert json.loads(json.dumps(several.description)) == {
        "weights": {"constant": 1.0, "house_rewards:brevity": 2.0},
        "settings": {"constant": {}, "house_rewards:brevity": {}},
    }
    assert several.name == "constant + house_rewards:brevity"
    assert resolve(lambda prompts, responses: [0]).description is None


def test_rewards_built_by_name_pickle(module):
    reward = resolve({"constant": 1.0, f"{module}:Counter": 1.0}, {f"{module}:Counter": {"letter": "o"}}, Plugins())
    assert pickle.loads(pickle.dumps(reward))(["p"], ["foo"]).scores.tolist() == [3.0]


def test_the_core_registers_its_rewards():
    assert resolve("happy_end")(["p", "p"], [" she smiled.", " she cried."]).scores.tolist() == [1.0, -1.0]
    with pytest.raises(LmrlError, match="did you mean 'happy_end'"):
        resolve("hapy_end")
