"""The reward ``learned`` and reward models named by their path, alone and as an ensemble."""

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from lmrl.cli.main import main
from lmrl.errors import ModelError, SettingsError
from lmrl.rewards import resolve
from lmrl.rewards.learned import aggregate
from lmrl.testing import write_tiny_model
from lmrl.text.reward_card import Normalisation

PROMPTS = ["the cat", "a", "the dog ran"]
RESPONSES = ["sat home", "dog", "far . happy ! sad the cat"]


def write_reward_model(base, folder, seed=0, normalisation=None):
    from lmrl.models.reward_model import start_reward_model

    model = start_reward_model(base, seed)
    model.normalisation = normalisation or Normalisation(0.5, 2.0, 10, "test")
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    return write_reward_model(base, tmp_path_factory.mktemp("runs") / "reward")


@pytest.fixture(scope="module")
def ensemble(base, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "ensemble"
    for number in (1, 2, 3):
        write_reward_model(base, run / f"member-{number}", number, Normalisation(0.1 * number, number, 10, "test"))
    return run


def test_aggregation_by_hand():
    scores = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    assert aggregate(scores).tolist() == [3.0, 2.0]
    assert aggregate(scores, "worst").tolist() == [1.0, 2.0]
    assert aggregate(scores, "uncertainty", 0.5).tolist() == pytest.approx([3.0 - 0.5 * 8 / 3, 2.0])


def test_scores_are_the_models_own(folder):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    result = resolve("learned", {"path": str(folder)})(PROMPTS, RESPONSES)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        ids = [*tokenizer(f"{prompt} {response}")["input_ids"], 1]
        expected.append(plain(torch.tensor([ids])).logits.item())
    assert result.parts["raw"] == pytest.approx(expected, abs=1e-5)
    assert result.scores == pytest.approx((np.array(expected) - 0.5) / 2, abs=1e-5)
    raw = resolve("learned", {"path": str(folder), "normalise": False})(PROMPTS, RESPONSES)
    assert raw.scores.tolist() == result.parts["raw"].tolist()


def test_a_path_stands_for_the_reward(folder, monkeypatch):
    named = resolve("learned", {"path": str(folder)})(PROMPTS, RESPONSES)
    monkeypatch.chdir(folder.parent)
    for path in (str(folder), "./reward", "reward"):
        reward = resolve(path)
        assert reward(PROMPTS, RESPONSES).scores.tolist() == named.scores.tolist()
        assert resolve(json.loads(json.dumps(reward.description))["name"]).name == path
    halved = resolve({str(folder): 0.5})(PROMPTS, RESPONSES)
    assert halved.scores == pytest.approx(named.scores / 2)
    assert resolve(str(folder), {"normalise": False})(PROMPTS, RESPONSES).scores.tolist() == named.parts["raw"].tolist()


def test_a_registered_name_comes_before_a_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "happy_end").symlink_to(folder, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("happy_end")(["p"], [" She smiled."]).scores.tolist() == [1.0]
    assert "raw" in resolve("./happy_end")(["the"], ["cat"]).parts


def test_an_ensemble_is_taken_whole(ensemble):
    result = resolve(str(ensemble))(PROMPTS, RESPONSES)
    members = np.stack([resolve(str(ensemble / f"member-{i}"))(PROMPTS, RESPONSES).scores for i in (1, 2, 3)])
    assert np.stack([result.parts[f"member_{i}"] for i in (1, 2, 3)]) == pytest.approx(members)
    assert result.scores == pytest.approx(members.mean(0)) and result.parts["std"] == pytest.approx(members.std(0))
    for how in ("worst", "uncertainty"):
        found = resolve(str(ensemble), {"aggregation": how, "coefficient": 0.3})(PROMPTS, RESPONSES).scores
        assert found == pytest.approx(aggregate(members, how, 0.3))
    by_hand = {"paths": [str(ensemble / f"member-{i}") for i in (3, 1, 2)]}
    assert resolve("learned", by_hand)(PROMPTS, RESPONSES).scores == pytest.approx(result.scores)


def test_trap_05_scores_do_not_depend_on_the_batch(folder):
    reward = resolve(str(folder), {"token_budget": 7})
    together = reward(PROMPTS, RESPONSES).scores
    alone = [reward([p], [r]).scores[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert reward(PROMPTS[::-1], RESPONSES[::-1]).scores[::-1] == pytest.approx(together, abs=1e-5)


def test_it_pickles_as_its_settings_and_copies_share_it(folder):
    reward = resolve(str(folder))
    before = len(pickle.dumps(reward))
    scores = reward(PROMPTS, RESPONSES).scores
    learned = reward.members[0].function
    assert copy.deepcopy(reward) is reward and copy.deepcopy(learned) is learned
    sent = pickle.dumps(reward)
    assert len(sent) == before, "the weights travel with the pickle"
    assert pickle.loads(sent)(PROMPTS, RESPONSES).scores.tolist() == scores.tolist()


def test_messages_are_rendered_by_the_models_own_template(base, tmp_path):
    folder = write_reward_model(base, tmp_path / "reward")
    reward = resolve(str(folder))
    asked = [[{"role": "user", "content": "the cat"}], [{"role": "user", "content": "a"}]]
    columns = {"prompt_messages": asked}
    with pytest.raises(Exception, match="chat template"):
        reward(["ignored", "ignored"], ["ran", "sat"], columns)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ 'dog ' ~ m['content'] }}{% if m['role'] == 'assistant' %} <eos>{% endif %} "
        "{% endfor %}{% if add_generation_prompt %}dog {% endif %}"
    )
    chatting = resolve(str(folder))
    rendered = reward(["dog the cat dog", "dog a dog"], ["ran", "sat"]).scores
    assert chatting(["ignored", "ignored"], ["ran", "sat"], columns).scores == pytest.approx(rendered)
    mixed = chatting(["ignored", "dog a dog"], ["ran", "sat"], {"prompt_messages": [asked[0], None]})
    assert mixed.scores == pytest.approx(rendered)


def test_what_exceeds_the_context_is_cut_and_counted(folder):
    result = resolve(str(folder))(["the cat", "the " * 30], ["sat", "cat " * 20])
    assert result.parts["cut"].tolist() == [0.0, 30 + 20 + 1 - 48]


def test_a_run_with_it_logs_its_parts(base, ensemble, tmp_path):
    """A real `lmrl rl`: an ensemble by its run's folder, as the command line names it."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ["the cat", "a dog", "the", "a", "cat"]))
    settings = [f"model={base}", "prompts.name=file", f"prompts.file.path={prompts}", "reward.name=learned"]
    settings += [
        f"reward.learned.path={ensemble}",
        "reward.learned.aggregation=worst",
        f"run.folder={tmp_path / 'run'}",
    ]
    settings += ["train.updates=2", "train.prompts_per_update=4", "evaluation.prompts=1", "sampling.max_new_tokens=6"]
    assert main(["rl", "--quiet", *settings]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for record in lines[1:]:
        members = [record[f"rollout/reward_member_{i}"] for i in (1, 2, 3)]
        assert record["rollout/reward"] <= min(members) + 1e-5 and record["rollout/reward_std"] > 0
        assert record["rollout/reward_cut"] == 0


def test_the_environment_takes_a_path(base, folder):
    import gymnasium as gym

    import lmrl  # noqa: F401 - registers

    env = gym.make("lmrl:TextGen-v0", model=str(base), prompts=["the cat"], reward=str(folder), max_new_tokens=3)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    for one in (env, again):
        one.reset(seed=0)
        for action in (7, 9, 1):
            *_, info = one.step(action)
        assert info["score"] == pytest.approx(resolve(str(folder))(["the cat"], ["ran home"]).scores[0], abs=1e-6)
        assert "reward_raw" in info
    vector = gym.make_vec("lmrl:TextGen-v0", num_envs=2, model=str(base), prompts=["the"], reward=str(folder))
    vector.reset(seed=0)
    vector.close()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, SettingsError, "path is '' and its paths are .*expected one of"),
        ({"path": "a", "paths": ["b"]}, SettingsError, "expected one of"),
        ({"path": "x", "coefficient": -1}, SettingsError, "coefficient is -1"),
        ({"path": "x", "aggregation": "median"}, SettingsError, "aggregation"),
        ({"path": "./nowhere/model"}, ModelError, "there is no model folder"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        resolve("learned", settings)


def test_paths_that_lead_nowhere(base, folder, ensemble, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"is no reward model: its config.json names LlamaForCausalLM"):
        resolve(str(base))
    with pytest.raises(ModelError, match=r"Did you mean .*reward"):
        resolve(str(folder.parent / "rewrd"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no config.json"):
        resolve(str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="neither a folder here nor a model on the hub"):
        resolve("nobody/no-such-reward-model")
    with pytest.raises(ModelError, match="holds an ensemble of 3"):
        from lmrl.models.reward_model import load_reward_model

        load_reward_model(ensemble)
    bare = write_reward_model(base, tmp_path / "bare", 5, Normalisation())
    with pytest.raises(SettingsError, match="never normalised"):
        resolve("learned", {"paths": [str(folder), str(bare)], "aggregation": "worst"})


def test_a_recipe_may_name_a_path(folder):
    from lmrl.config import build, resolved, to_toml
    from lmrl.plugins import PluginManager
    from lmrl.stages.rl import RLConfig

    config = build(RLConfig, {"reward": {"name": str(folder)}})
    assert f'name = "{folder}"' in to_toml(resolved(config, PluginManager()))


def test_importing_rewards_is_cheap():
    code = "import lmrl.rewards, sys; print([n for n in ('torch', 'transformers', 'datasets') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
