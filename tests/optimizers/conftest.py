"""A tiny model, whole runs on it, and single updates whose steps can be compared."""

import pytest
import torch
from accelerate import Accelerator

from lmrl.config import build
from lmrl.kl import KLSettings
from lmrl.models import PolicyModel, freeze_copy, load
from lmrl.models.policy import TextPolicy
from lmrl.models.scoring import score_logprobs
from lmrl.plugins import PluginManager
from lmrl.sampling import SamplingSpec
from lmrl.stages.rl import rl
from lmrl.stages.rl_config import LearningData, RLConfig, TrainSettings
from lmrl.stages.rl_offline import load_offline
from lmrl.stages.run import read_metrics
from lmrl.stages.update import Updater
from lmrl.testing import write_tiny_model

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
            lambda inputs: score_logprobs(reference, inputs, sampling, 4096),
            torch.device("cpu"),
        )
        updater = Updater(
            spec.build(spec.settings(**settings)),
            TextPolicy(policy, sampling, False),
            torch.optim.SGD(policy.parameters(), lr=1.0),
            Accelerator(cpu=True),
            TrainSettings(max_gradient_norm=0.0, microbatch_tokens=microbatch_tokens),
            KLSettings(),
        )
        before = torch.nn.utils.parameters_to_vector(policy.parameters()).detach().clone()
        metrics = updater.learn(offline.batch(range(len(offline))), 0.0, 1, seed=0)
        return torch.nn.utils.parameters_to_vector(policy.parameters()).detach() - before, metrics

    return update
