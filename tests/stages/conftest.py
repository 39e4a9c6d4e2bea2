"""A toy policy, its rollouts, and an updater over them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from lmrl.algorithms.kl import KLSettings
from lmrl.algorithms.optimizer import Loss, OptimizerSettings, PolicyOptimizer
from lmrl.algorithms.rollout import Advantages
from lmrl.engines import SamplingSpec
from lmrl.engines.local.engine import TransformersEngine
from lmrl.models import PolicyModel, load
from lmrl.models.text_policy import FrozenReference, TextPolicy
from lmrl.plugins.specs import Needs
from lmrl.stages.rl.rollouts import PromptBatch, RolloutMaker
from lmrl.testing import write_tiny_model
from lmrl.training.adamw import policy_adamw
from lmrl.training.memory import microbatch_budget
from lmrl.training.schedule import GroupRates
from lmrl.training.update import Updater
from lmrl.training.update_settings import TrainSettings

PROMPTS = ["the cat", "a", "the dog sat home"]


def count_cats(prompts, responses, columns):
    return SimpleNamespace(scores=np.array([r.count("cat") - 0.1 * len(r.split()) for r in responses]), parts={})


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny model; beside it lies ``teacher``, another one of its vocabulary."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder / "teacher", seed=7)
    return write_tiny_model(folder / "model")


class Sees(PolicyOptimizer):
    """Hands the minibatch to a function in place of a step; its loss moves the policy and the value function."""

    def __init__(self, look, **settings):
        super().__init__(OptimizerSettings(**settings))
        self.look = look

    def advantages(self, rollout):
        return Advantages(rollout.rewards.sum(1, keepdim=True) * rollout.action_mask)

    def loss(self, policy, batch):
        now = policy.evaluate(batch)
        return Loss(-batch.advantages * now.logprobs + (now.values - 1) ** 2)

    def step(self, minibatch):
        return self.look(minibatch) or {}


class Toy:
    """A fresh policy on the toy model with everything around it; rows are cheap, so tests make their own."""

    def __init__(self, folder, kl=None, spec=None, values=True, reward=count_cats):
        self.language_model = load(folder)
        card = self.language_model.card
        self.kl = kl or KLSettings(beta=0.1)
        self.spec = spec or SamplingSpec(max_new_tokens=8, eos_ids=card.eos_ids, context_length=card.context_length)
        frozen = FrozenReference(self.language_model.model)
        self.reference = frozen.policy
        self.policy = PolicyModel(self.language_model.model, with_values=values)
        self.needs = Needs(values=values, reference=True)
        self.maker = RolloutMaker(
            TransformersEngine(), self.policy, frozen, reward, card, self.spec, self.kl, self.needs, 40
        )
        self.maker.publish(0)
        self.accelerator = Accelerator(cpu=True)

    def prompts(self, rows, group_size=1):
        texts = [PROMPTS[row // group_size % len(PROMPTS)] for row in range(rows)]
        ids = [self.language_model.card.codec.encode(text) for text in texts]
        return PromptBatch(ids, texts, {}, [row // group_size for row in range(rows)])

    def rollout(self, rows=12, seed=0, group_size=1):
        scored = self.maker.sample(self.prompts(rows, group_size), seed)
        return self.maker.complete(scored, self.maker.reference_logprobs(scored.samples), self.kl.beta)

    def updater(self, optimizer, learning_rate=0.1, **train):
        """An updater with plain SGD, whose step shows the gradient."""
        torch_optimizer = torch.optim.SGD(self.policy.parameters(), lr=learning_rate)
        settings = TrainSettings(max_gradient_norm=0.0, **train)
        face = TextPolicy(self.policy, self.spec, self.needs.values)
        return Updater(
            optimizer,
            face,
            settings,
            kl=self.kl,
            accelerator=self.accelerator,
            torch_optimizer=torch_optimizer,
            token_budget=microbatch_budget(settings, self.accelerator.device, self.policy),
        )

    def watched(self, look, tokens=10_000, **settings):
        """An updater of a policy with its own critic, whose step shows ``look`` the minibatch and moves nothing else.

        Its AdamW has groups that say which parameters are the value function's.
        """
        self.policy = self.maker.policy = PolicyModel(self.language_model.model, with_values=True, separate_critic=True)
        updater = self.updater(Sees(look, **settings), microbatch_tokens=tokens)
        updater.torch_optimizer = policy_adamw(self.policy.trainable(), TrainSettings(value_learning_rate=0.1))
        updater.rates = GroupRates(updater.torch_optimizer, updater.settings)
        return updater

    def parameters(self):
        return torch.cat([p.detach().flatten() for p in self.policy.parameters()])


@pytest.fixture
def toy(tiny_folder):
    return lambda **kwargs: Toy(tiny_folder, **kwargs)


CHAT_WORDS = ("the", "a", "cat", "dog", "ran", "sat", "home", "far", ".", "!", "user", "assistant", "system", ":")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- message['role'] ~ ' : ' ~ message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- ' <eos>' -}}{%- endif -%}{{- ' ' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'assistant :' -}}{%- endif -%}"
)


def write_chat_model(folder, **settings):
    """Write the tiny model with a chat template made of words that it knows, and return its folder."""
    write_tiny_model(folder, words=CHAT_WORDS, **settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory):
    """A tiny model that can be chatted with, and has a context of 64 tokens."""
    return write_chat_model(tmp_path_factory.mktemp("chat") / "chatter", context=64)
