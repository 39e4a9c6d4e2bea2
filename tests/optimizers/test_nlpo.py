"""NLPO: runs within the sets of a mask policy, its refreshes and resumes, and what is refused."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmrl.config import build
from lmrl.errors import ResumeError, SettingsError
from lmrl.plugins import PluginManager
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.asking import model_path
from lmrl.stages.rl import RLConfig, rl
from lmrl.text.folders import PROCESSOR_FILE
from lmrl.training.checkpoint import list_checkpoints
from lmrl_control import ControlConfig, train_control
from lmrl_nlpo import NLPO, NLPOSettings
from lmrl_nlpo.mask import MaskPolicy

PROMPTS = ["the cat", "a dog", "the dog sat", "a cat ran", "the", "a"]


def config_of(model, folder, settings=None, **train):
    return build(
        RLConfig,
        {
            "model": str(model),
            "run": {"folder": str(folder), "device": "cpu"},
            "sampling": {"max_new_tokens": 6},
            "train": {"updates": 5, "prompts_per_update": 8, "learning_rate": 0.02, **train},
            "optimizer": {
                "name": "nlpo",
                "nlpo": {"mask_top_p": 0.8, "mask_update_every": 2, "minibatches": 2, **(settings or {})},
            },
            "evaluation": {"every": 1, "prompts": 2},
            "checkpoint": {"every": 1, "keep": 10},
        },
    )


def cats(prompts, responses):
    return [float(response.split().count("cat")) for response in responses]


def run(config, **kwargs):
    return rl(config, reward=cats, prompts=PROMPTS, progress=False, **kwargs)


def metrics_of(folder):
    return [{k: v for k, v in record.items() if not k.startswith("time/")} for record in read_metrics(folder)]


def masks(folder):
    from safetensors.torch import load_file

    return [load_file(checkpoint / PROCESSOR_FILE) for checkpoint in list_checkpoints(folder)]


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_first_ratio_is_one_and_the_sets_are_restricted(tiny_folder, tmp_path):
    run(config_of(tiny_folder, tmp_path / "run", {"epochs": 1, "minibatches": 1}))
    for record in read_metrics(tmp_path / "run")[1:]:
        assert record["optimizer/ratio"] == pytest.approx(1, abs=1e-3)
        assert record["optimizer/clip_fraction"] == 0
        assert 1 < record["optimizer/mask_size"] < 14


def test_the_kl_to_the_reference_is_that_of_the_restricted_policy(tiny_folder, tmp_path):
    """So it is above 0 from the start, in training and in evaluation: log 1 / (mass of the set) per token."""
    run(config_of(tiny_folder, tmp_path / "run", updates=1))
    before, first = read_metrics(tmp_path / "run")
    assert 0 < before["evaluation/kl"] <= 6 * -torch.log(torch.tensor(0.8))
    assert 0 < first["rollout/kl"] <= 6 * -torch.log(torch.tensor(0.8))


def test_the_mask_policy_is_refreshed_when_its_time_comes(tiny_folder, tmp_path):
    from safetensors.torch import load_file

    run(config_of(tiny_folder, tmp_path / "run"))
    written = masks(tmp_path / "run")
    policies = [load_file(checkpoint / "model.safetensors") for checkpoint in list_checkpoints(tmp_path / "run")]
    assert same(written[0], load_file(tiny_folder / "model.safetensors")), "after update 1 it is still the start"
    assert same(written[1], policies[1]) and same(written[2], policies[1]), "2 and 3: what the policy was after 2"
    assert same(written[3], policies[3]) and same(written[4], policies[3])
    assert not same(written[1], written[3])


@pytest.mark.parametrize("kept", [2, 3])
def test_a_resumed_run_is_the_same_bit_for_bit(tiny_folder, tmp_path, kept):
    """Also between two refreshes, where the mask is neither the policy nor the start."""
    config = config_of(tiny_folder, tmp_path / "run")
    run(config)
    whole = metrics_of(tmp_path / "run")
    for checkpoint in list_checkpoints(tmp_path / "run")[kept:]:
        shutil.rmtree(checkpoint)
    run(config, resume=True)
    assert metrics_of(tmp_path / "run") == whole


def test_a_checkpoint_without_its_mask_is_not_continued(tiny_folder, tmp_path):
    config = config_of(tiny_folder, tmp_path / "run", updates=2)
    run(config)
    (list_checkpoints(tmp_path / "run")[-1] / PROCESSOR_FILE).unlink()
    with pytest.raises(ResumeError, match=PROCESSOR_FILE):
        run(config, resume=True)


def test_microbatches_change_nothing(tiny_folder, tmp_path):
    logged = []
    for tokens in (1, 100_000):
        run(config_of(tiny_folder, tmp_path / str(tokens), updates=2, microbatch_tokens=tokens))
        logged.append([record["optimizer/loss"] for record in read_metrics(tmp_path / str(tokens))[1:]])
    assert logged[0] == pytest.approx(logged[1], rel=1e-3, abs=1e-5)


def test_a_run_raises_the_reward(tiny_folder, tmp_path):
    config = config_of(tiny_folder, tmp_path / "run", updates=20, prompts_per_update=32, learning_rate=0.01)
    run(config)
    records = read_metrics(tmp_path / "run")
    assert records[-1]["evaluation/reward"] > records[0]["evaluation/reward"] + 0.3


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_nlpo import *
world, updater = world_of(Path(sys.argv[2]))
rollout = world.rollout(rows=12)
accelerator = world.accelerator
share = 12 // accelerator.num_processes
first = accelerator.process_index * share
updater.policy.module = accelerator.prepare(world.policy)
before = world.parameters()
metrics = updater.learn(rollout.select(torch.arange(first, first + share)), beta=0.1, update=1, seed=0)
change = (world.parameters() - before).tolist()
if accelerator.is_main_process:
    print("RESULT" + json.dumps({"metrics": metrics, "change": change}))
if accelerator.num_processes > 1:
    torch.distributed.destroy_process_group()
"""


def fixtures_of(name):
    path = Path(__file__).parents[1] / "stages" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"stages_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def world_of(folder):
    world = fixtures_of("conftest").Toy(folder)
    world.maker.processor = MaskPolicy(world.language_model.model, world.spec, 0.8)
    world.maker.publish(0)
    updater = world.updater(NLPO(NLPOSettings(epochs=1, minibatches=1)), microbatch_tokens=40)
    updater.policy.support = world.maker.processor.support
    return world, updater


@pytest.mark.slow
def test_two_ranks_take_the_step_of_one(tiny_folder, tmp_path):
    ranks = fixtures_of("test_ranks")
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT)
    one, two = (ranks.run_ranks(count, script, [str(Path(__file__).parent), str(tiny_folder)]) for count in (1, 2))
    assert max(abs(x) for x in one["change"]) > 1e-4
    assert two["change"] == pytest.approx(one["change"], abs=2e-6)
    assert two["metrics"]["optimizer/mask_size"] == pytest.approx(one["metrics"]["optimizer/mask_size"])


@pytest.mark.parametrize("settings", [{"mask_top_p": 0.0}, {"mask_top_p": 1.1}, {"mask_update_every": 0}])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(SettingsError, match=next(iter(settings))):
        NLPOSettings(**settings)


PLAIN_ENGINE = """
from lmrl import EngineSpec, hookimpl
from lmrl.engines import Capabilities
from lmrl.engines.local.engine import TransformersEngine, TransformersEngineSettings

class Plain(TransformersEngine):
    capabilities = Capabilities(exact=True)

@hookimpl
def lmrl_engines():
    yield EngineSpec("plain", Plain, TransformersEngineSettings, "Without logits processors")
"""


def test_an_engine_without_logits_processors_is_refused(tiny_folder, tmp_path):
    (tmp_path / "plain.py").write_text(PLAIN_ENGINE)
    config = config_of(tiny_folder, tmp_path / "run")
    config = replace(config, engine=replace(config.engine, name="plain"))
    with pytest.raises(SettingsError, match="engine 'plain' has no logits processors"):
        run(config, plugins=PluginManager([tmp_path / "plain.py"]))
    assert not (tmp_path / "run").exists()


def test_what_draws_no_text_is_refused():
    config = build(ControlConfig, {"optimizer": {"name": "nlpo"}})
    with pytest.raises(SettingsError, match="restricts the tokens that are drawn"):
        train_control(config, progress=False)


def test_who_samples_a_checkpoint_without_its_mask_is_told_once(tmp_path, caplog):
    (tmp_path / "checkpoint-000001").mkdir()
    (tmp_path / "checkpoint-000001" / "config.json").write_text("{}")
    assert model_path(tmp_path) == str(tmp_path) and not caplog.records
    other = tmp_path / "checkpoint-000002"
    other.mkdir()
    for name in ("config.json", PROCESSOR_FILE):
        (other / name).write_text("{}")
    assert model_path(other) == model_path(other) == str(other)
    assert caplog.text.count("logits processor that restricts what it draws") == 1
