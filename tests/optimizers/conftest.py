"""A tiny model, whole runs on it, single updates whose steps can be compared, and rows written down by hand."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from lmrl.algorithms.kl import KLSettings
from lmrl.algorithms.rollout import Batch, Rollout
from lmrl.config import build
from lmrl.engines import SamplingSpec
from lmrl.models import PolicyModel, freeze_copy, load
from lmrl.models.text_policy import TextPolicy, score_logprobs
from lmrl.plugins import PluginManager
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl
from lmrl.stages.rl.config import LearningData
from lmrl.stages.rl.offline import load_offline
from lmrl.testing import write_tiny_model
from lmrl.training.policy import LocalPolicy
from lmrl.training.update import Updater
from lmrl.training.update_settings import TrainSettings

PROMPTS = ["the cat", "a dog", "the dog sat", "a cat ran"]
PAIRS = [
    {"prompt": "the cat", "chosen": " happy home .", "rejected": " sad far"},
    {"prompt": "a dog", "chosen": " happy", "rejected": " sad far far ."},
    {"prompt": "the dog", "chosen": " ran home happy .", "rejected": " sad ."},
    {"prompt": "a cat", "chosen": " happy .", "rejected": " ran far sad ."},
]
LABELLED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in PAIRS
    for side in ("chosen", "rejected")
]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def pairs():
    return PAIRS


@pytest.fixture
def labelled():
    return LABELLED


@pytest.fixture
def train(tiny_folder, tmp_path):
    """Run an optimizer on the tiny model and return the logged metrics, from before the first update on."""

    def run(
        name, data=None, reward=lambda prompts, responses: [0.0] * len(prompts), settings=None, folder="run", **train
    ):
        config = {
            "model": str(tiny_folder),
            "run": {"folder": str(tmp_path / folder), "device": "cpu"},
            "sampling": {"max_new_tokens": 4},
            "train": {"updates": 6, "prompts_per_update": 4, "learning_rate": 0.01, **train},
            "optimizer": {"name": name, name: settings or {}},
            "evaluation": {"every": 0, "prompts": 2},
        }
        prompts = [*PROMPTS, "the", "a"]
        rl(build(RLConfig, config), reward=reward, prompts=prompts, data=data, progress=False)
        return read_metrics(tmp_path / folder)

    return run


@pytest.fixture
def one_update(tiny_folder):
    """Take one update from data by plain SGD, and return how the parameters changed, and the metrics."""

    def update(name, data, microbatch_tokens, **settings):
        spec = PluginManager().get("optimizer", name)
        language_model = load(tiny_folder)
        reference = PolicyModel(freeze_copy(language_model.model))
        policy = PolicyModel(language_model.model)
        with torch.no_grad():  # away from the reference, where losses are curved
            generator = torch.Generator().manual_seed(1)
            for parameter in policy.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        sampling = SamplingSpec()
        offline = load_offline(
            LearningData(),
            data,
            language_model.card,
            spec.needs,
            torch.device("cpu"),
        )
        if spec.needs.reference:
            offline.scorer = lambda inputs: score_logprobs(reference, inputs, sampling, 4096)
        updater = Updater(
            spec.build(spec.settings(**settings)),
            TextPolicy(policy, sampling, False),
            TrainSettings(max_gradient_norm=0.0, microbatch_tokens=microbatch_tokens),
            torch_optimizer=torch.optim.SGD(policy.parameters(), lr=1.0),
        )
        before = torch.nn.utils.parameters_to_vector(policy.parameters()).detach().clone()
        metrics = updater.learn(offline.batch(range(len(offline))), update=1, seed=0)
        return torch.nn.utils.parameters_to_vector(policy.parameters()).detach() - before, metrics

    return update


@dataclass
class Rows:
    """Inputs that are nothing but the rows' numbers."""

    rows: torch.Tensor

    @property
    def row_lengths(self):
        return torch.ones_like(self.rows)

    def select(self, rows):
        return Rows(self.rows[rows])


class Table(LocalPolicy):
    """A policy whose log-probabilities, and values and entropies if there are any, are parameters: (B, T) each."""

    def __init__(self, logprobs, **columns):
        self.columns = {
            name: torch.tensor(column, requires_grad=True) for name, column in {"logprobs": logprobs, **columns}.items()
        }

    def __getattr__(self, name):
        if name not in self.columns:
            raise AttributeError(name)
        return self.columns[name]

    def evaluate(self, batch):
        masked = {
            name: column[batch.inputs.rows].masked_fill(~batch.action_mask, 0) for name, column in self.columns.items()
        }
        return SimpleNamespace(**masked)


class ByHand:
    """Optimizers by name, and everything around them in numbers that a test writes down."""

    def make(self, name, **settings):
        spec = PluginManager().get("optimizer", name)
        return spec.build(build(spec.settings, settings))

    def needs(self, name):
        return PluginManager().get("optimizer", name).needs

    def rollout(self, rewards, mask=None, scores=None, group=None, truncated=None, behavior=None, **declared):
        rewards = torch.tensor(rewards)
        count = len(rewards)
        truncated = torch.zeros(count, dtype=torch.bool) if truncated is None else torch.tensor(truncated)
        return Rollout(
            Rows(torch.arange(count)),
            torch.ones_like(rewards, dtype=torch.bool) if mask is None else torch.tensor(mask).bool(),
            torch.zeros_like(rewards) if behavior is None else torch.tensor(behavior),
            rewards,
            rewards.sum(1) if scores is None else torch.tensor(scores),
            ~truncated,
            truncated,
            torch.arange(count) if group is None else torch.tensor(group),
            {name: torch.tensor(column) for name, column in declared.items()},
        )

    def batch(self, optimizer, rollout):
        return Batch.from_rollout(rollout, optimizer.advantages(rollout))

    def table(self, logprobs, **columns):
        return Table(logprobs, **columns)

    def gradient(self, optimizer, rollout, table, column="logprobs", microbatch_tokens=1000):
        """Let the trainer take one update by plain SGD, and return the gradient that it took for this column."""
        parameters = list(table.columns.values())
        before = table.columns[column].detach().clone()
        updater = Updater(
            optimizer,
            table,
            TrainSettings(max_gradient_norm=0.0, microbatch_tokens=microbatch_tokens, warmup_updates=0),
            kl=KLSettings(beta=0.0),
            torch_optimizer=torch.optim.SGD(parameters, lr=1.0),
        )
        self.metrics = updater.learn(rollout, beta=0.0, update=1, seed=0)
        return before - table.columns[column].detach()


@pytest.fixture
def by_hand():
    return ByHand()
