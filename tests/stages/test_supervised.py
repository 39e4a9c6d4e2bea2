"""The loop that supervised stages share: exact means over microbatches, resume bit for bit, nothing lost."""

import itertools
import json
import os
import shutil
import signal
from dataclasses import dataclass, field, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmrl
from lmrl.errors import NonFiniteError, ResumeError, SettingsError
from lmrl.reporting.metrics import read_metrics
from lmrl.training.adamw import ParameterGroup, make_adamw
from lmrl.training.devices import make_accelerator
from lmrl.training.run import stage_of
from lmrl.training.schedule import schedule_factor
from lmrl.training.settings import CheckpointSettings, RunSettings, SupervisedSettings
from lmrl.training.supervised import fit


@dataclass
class ToyConfig:
    run: RunSettings = field(default_factory=RunSettings)
    train: SupervisedSettings = field(default_factory=SupervisedSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])


class Regression:
    """A linear model on noisy data with dropout; ``parts`` microbatches of uneven sizes per step."""

    unit = "row"

    def __init__(self, parts=1, dropout=0.0, rows=12, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = torch.nn.Sequential(torch.nn.Dropout(dropout), torch.nn.Linear(4, 1))
        self.parts, self.rows = parts, rows
        self.after_step = lambda step: None

    def data(self, step):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(self.rows, 4, generator=generator)
        return inputs, inputs.sum(1, keepdim=True) + 0.1 * torch.randn(self.rows, 1, generator=generator)

    def microbatches(self, step, rank, ranks):
        self.after_step(step)
        inputs, targets = self.data(step)
        cuts = [0, *torch.linspace(1, self.rows, self.parts).long().tolist()] if self.parts > 1 else [0, self.rows]
        return [(inputs[a:b], targets[a:b]) for a, b in itertools.pairwise(cuts) if b > a]

    def count(self, part):
        return len(part[0])

    def tokens(self, part):
        return part[0].numel()

    def loss(self, module, part):
        errors = (module(part[0]) - part[1]).squeeze(1)
        return errors.square().sum(), {"absolute": errors.abs().sum()}

    def evaluate(self, module):
        assert not module.training
        inputs, targets = self.data(10_000)
        return {"loss": float((module(inputs) - targets).square().mean())}

    def texts(self):
        return ["a sample"]

    def speed(self, tokens_per_second):
        return {"doubled": 2 * tokens_per_second}

    def save(self, folder):
        save_file(
            {name: tensor.contiguous() for name, tensor in self.module.state_dict().items()}, folder / "w.safetensors"
        )

    def load(self, folder):
        self.module.load_state_dict(load_file(folder / "w.safetensors"))


def config_of(folder, steps=12, **changes):
    settings = {"steps": steps, "learning_rate": 0.05, "warmup_steps": 2, "evaluate_every": 4} | changes
    return ToyConfig(
        RunSettings(folder=str(folder), device="cpu"),
        SupervisedSettings(**settings),
        CheckpointSettings(every=3, keep=9),
    )


def run(task, config, **kwargs):
    accelerator = make_accelerator(config.run)
    return fit(task, stage="toy", config=config, accelerator=accelerator, fingerprint="f", progress=False, **kwargs)


def weights(result):
    return load_file(result.checkpoint / "w.safetensors")


def numbers(folder):
    return [{k: v for k, v in record.items() if not k.startswith("time/")} for record in read_metrics(folder)]


def test_a_run_learns_and_leaves_everything_that_the_next_person_needs(tmp_path):
    folder = tmp_path / "run"
    result = run(Regression(), config_of(folder, steps=60))
    assert result.evaluation["loss"] < 0.1 < result.first_evaluation["loss"]
    records = read_metrics(folder)
    assert [record["step"] for record in records] == list(range(61))
    assert [r["step"] for r in records if "evaluation/loss" in r] == list(range(0, 61, 4))
    assert records[5]["time/doubled"] == 2 * records[5]["time/tokens_per_second"]
    assert stage_of(folder) == "toy" and (folder / "curves.png").exists()
    assert (folder / "checkpoint").resolve() == result.checkpoint.resolve()
    assert (folder / "samples" / "samples-000060.txt").read_text() == "a sample\n"
    assert list((folder / "tensorboard").glob("events*"))


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_microbatches_change_no_gradient(tmp_path, parts):
    one = run(Regression(), config_of(tmp_path / "one", steps=5))
    many = run(Regression(parts=parts), config_of(tmp_path / "many", steps=5))
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(many)[name], tensor, rtol=1e-5, atol=1e-6)
    pairs = zip(numbers(one.folder), numbers(many.folder), strict=True)
    for mine, other in pairs:
        assert mine == pytest.approx(other, rel=1e-4), "metrics are means over the whole step"


def test_the_loss_is_the_mean_over_the_whole_step(tmp_path):
    task = Regression(parts=3)
    with torch.no_grad():
        inputs, targets = task.data(1)
        errors = task.module(inputs) - targets
    record = read_metrics(run(task, config_of(tmp_path / "run", steps=1)).folder)[1]
    assert record["train/loss"] == pytest.approx(float(errors.square().mean()), rel=1e-5)
    assert record["train/absolute"] == pytest.approx(float(errors.abs().mean()), rel=1e-5)
    assert record["train/rows"] == 12


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path):
    whole = run(Regression(dropout=0.3), config_of(tmp_path / "whole"))
    task = Regression(dropout=0.3)
    task.after_step = lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 7 else None
    stopped = run(task, config_of(tmp_path / "part"))
    assert stopped.interrupted and stopped.steps == 7
    resumed = run(Regression(dropout=0.3, seed=5), config_of(tmp_path / "part"), resume=True)
    assert not resumed.interrupted and resumed.steps == 12
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(resumed).items())
    assert numbers(whole.folder) == numbers(resumed.folder)


def test_a_run_killed_after_its_checkpoint_goes_on_from_it(tmp_path):
    whole = run(Regression(), config_of(tmp_path / "run"))
    expected, records = weights(whole), numbers(whole.folder)
    for number in (9, 12):
        shutil.rmtree(whole.folder / f"checkpoint-{number:06d}")
    with (whole.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "train/lo')
    resumed = run(Regression(), config_of(tmp_path / "run"), resume=True)
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(resumed).items())
    assert numbers(resumed.folder) == records


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    whole = run(Regression(), config_of(tmp_path / "whole"))
    killed = run(Regression(), config_of(tmp_path / "killed"))
    for path in killed.folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    resumed = run(Regression(), config_of(tmp_path / "killed"), resume=True)
    assert numbers(resumed.folder) == numbers(whole.folder)


def test_a_finished_run_resumes_to_the_same_result(tmp_path):
    first = run(Regression(), config_of(tmp_path / "run"))
    again = run(Regression(), config_of(tmp_path / "run"), resume=True)
    assert replace(again, interrupted=False) == first


def test_a_resume_refuses_other_data_and_other_stages(tmp_path):
    config = config_of(tmp_path / "run")
    run(Regression(), config)
    accelerator = make_accelerator(config.run)
    with pytest.raises(ResumeError, match="data have changed"):
        fit(Regression(), stage="toy", config=config, accelerator=accelerator, fingerprint="other", resume=True)
    with pytest.raises(ResumeError, match="lmrl toy --resume"):
        fit(Regression(), stage="sft", config=config, accelerator=accelerator, fingerprint="f", resume=True)
    with pytest.raises(SettingsError, match="lmrl toy --resume"):
        run(Regression(), config)


def test_a_loss_that_is_not_finite_stops_before_a_checkpoint_is_overwritten(tmp_path):
    task = Regression()
    usual = task.data
    task.data = lambda step: usual(step) if step != 5 else (torch.full((12, 4), float("nan")), torch.zeros(12, 1))
    with pytest.raises(NonFiniteError, match="step 5"):
        run(task, config_of(tmp_path / "run"))
    assert [path.name for path in sorted((tmp_path / "run").glob("checkpoint-*"))] == ["checkpoint-000003"]


def test_an_unknown_tracker_leaves_no_folder(tmp_path):
    config = replace(config_of(tmp_path / "run"), trackers=["tensorbord"])
    with pytest.raises(SettingsError, match="tensorboard"):
        run(Regression(), config)
    assert not (tmp_path / "run").exists()


def test_only_matrices_decay():
    groups = make_adamw(
        [ParameterGroup(list(torch.nn.Linear(3, 2).parameters()), 0.1)], SupervisedSettings(weight_decay=0.5)
    ).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.5, 1), (0.0, 1)]


def test_the_schedule_by_hand():
    cosine = [schedule_factor(done, 6, 2, "cosine", 0.1) for done in range(7)]
    assert cosine == pytest.approx(
        [0.5, 1.0, 1.0, 0.1 + 0.9 * (2 + 2**0.5) / 4, 0.55, 0.1 + 0.9 * (2 - 2**0.5) / 4, 0.1]
    )
    assert [schedule_factor(done, 4, 0, "linear") for done in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert [schedule_factor(done, 4, 0, "linear", 0.5) for done in (0, 4)] == [1, 0.5]
    assert schedule_factor(3, 4, 1, "constant", 0.5) == 1


def test_a_run_folder_tells_its_stage(tmp_path):
    run(Regression(), config_of(tmp_path / "run", steps=1))
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert versions["stage"] == "toy" and versions["plugin_api"] == lmrl.PLUGIN_API
    assert versions["libraries"]["lmrl"] == lmrl.__version__
