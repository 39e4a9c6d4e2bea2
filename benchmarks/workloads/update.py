"""One PPO update of sampled rows: lmrl's updater against a plain policy-gradient step over padded rows."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from lmrl.kl import KLSettings
from lmrl.models import PolicyModel, freeze_copy
from lmrl.models.text_policy import TextPolicy
from lmrl.plugins import PluginManager
from lmrl.rollout import Rollout
from lmrl.sampling.transformers_engine import TransformersEngine
from lmrl.stages.memory import microbatch_budget
from lmrl.stages.rl_config import TrainSettings
from lmrl.stages.rl_setup import make_torch_optimizer
from lmrl.stages.rollouts import PromptBatch, RolloutMaker
from lmrl.stages.update import Updater
from workloads.setting import Setting
from workloads.timing import Comparison, Run, compare

SIDES = 2
# So small that the model stays what it was: the last run then measures what the first one did.
TRAIN = TrainSettings(learning_rate=1e-9, value_learning_rate=1e-9)
KL = KLSettings(beta=0.05)


class Learner:
    """A policy with all that makes rollouts of it and learns from them."""

    def __init__(self, setting: Setting, varying: bool) -> None:
        spec, card = setting.spec(varying), setting.language_model.card
        ppo = PluginManager().get("optimizer", "ppo")
        self.policy = PolicyModel(setting.fresh_model(), with_values=True)
        self.maker = RolloutMaker(
            TransformersEngine(),
            self.policy,
            PolicyModel(freeze_copy(setting.language_model.model)),
            count_words,
            card,
            spec,
            KL,
            ppo.needs,
            microbatch_budget(TRAIN, torch.device("cpu")),
        )
        settings = ppo.settings(epochs=1, minibatches=1)
        face = TextPolicy(self.policy, spec, with_values=True)
        torch_optimizer = make_torch_optimizer(self.policy, TRAIN)
        self.updater = Updater(ppo.build(settings), face, torch_optimizer, Accelerator(cpu=True), TRAIN, KL)
        rows = setting.rows
        self.prompts = PromptBatch([setting.prompt_ids] * rows, [setting.prompt] * rows, {}, list(range(rows)))

    def rollout(self, seed: int) -> Rollout:
        """Sample and complete one batch."""
        scored = self.maker.sample(self.prompts, seed)
        return self.maker.complete(scored, self.maker.reference_logprobs(scored.samples), KL.beta)


def count_words(prompts: list[str], responses: list[str], columns: Any) -> Any:
    """Reward the number of words."""
    return SimpleNamespace(scores=np.array([float(len(response.split())) for response in responses]), parts={})


def measure(setting: Setting, varying: bool, tick: Callable[[], None]) -> Comparison:
    """Compare response tokens learned from per second."""
    learner = Learner(setting, varying)
    rollout = learner.rollout(seed=0)
    tokens = int(rollout.action_mask.sum())
    plain = PlainLearner(setting, rollout)

    def with_lmrl(number: int) -> int:
        learner.updater.update(rollout, KL.beta, 1, seed=number)
        return tokens

    def with_plain(number: int) -> int:
        plain.update()
        return tokens

    sides: dict[str, Run] = {"lmrl": with_lmrl, "plain step": with_plain}
    name = "update, varying length" if varying else "update, full length"
    return compare(name, "response tokens", sides, setting.runs, "plain step", tick)


class PlainLearner:
    """The least that learns from the same rows: full logits, log-softmax, one backward pass, one AdamW step."""

    def __init__(self, setting: Setting, rollout: Rollout) -> None:
        inputs = rollout.inputs
        self.model = setting.fresh_model()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=TRAIN.learning_rate, weight_decay=0.0)
        # One prompt for all rows, so prompt and response stand in the same columns of each.
        self.ids = torch.cat([inputs.prompt_ids, inputs.response_ids], dim=1)
        self.attention = torch.cat([torch.ones_like(inputs.prompt_ids), rollout.action_mask.long()], dim=1)
        self.mask: Tensor = rollout.action_mask
        self.advantages = torch.randn(self.mask.shape, generator=torch.Generator().manual_seed(0))

    def update(self) -> None:
        """Take one policy-gradient step."""
        width = self.mask.shape[1]
        logits = self.model(input_ids=self.ids, attention_mask=self.attention, use_cache=False).logits
        logprobs = logits[:, -width - 1 : -1].log_softmax(-1)
        chosen = logprobs.gather(-1, self.ids[:, -width:, None]).squeeze(-1)
        loss = -(chosen * self.advantages * self.mask).sum() / self.mask.sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
