"""Training on a plain Gymnasium task: what shows that nothing in an optimizer's contract is about text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from lmrl import OptimizerSpec, PluginManager, SettingsError
from lmrl.algorithms import KLSettings
from lmrl.config import PluginChoice, choice
from lmrl.seeds import derive_seed
from lmrl.training import Drawn, Trainer, TrainSettings, Updater
from lmrl_control.collect import Collector, make_rollout
from lmrl_control.policy import ActorCritic, ControlPolicy


@dataclass
class ControlConfig:
    """A task, an optimizer, and how much to play."""

    environment: str = "CartPole-v1"
    """A Gymnasium id with a discrete action space and observations that are vectors."""
    optimizer: PluginChoice = choice("optimizer", "ppo")
    copies: int = 8
    """Copies of the task that are played side by side."""
    steps: int = 128
    """Steps of every copy per update."""
    hidden: list[int] = field(default_factory=lambda: [64, 64])
    """Widths of the networks' tanh layers."""
    seed: int = 0
    """Everything random derives from it."""
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            updates=120, learning_rate=2.5e-3, value_learning_rate=2.5e-3, max_gradient_norm=0.5, schedule="linear"
        )
    )


@dataclass(frozen=True)
class ControlResult:
    """The trained networks, the metrics of every update, and the returns of the episodes played, in order."""

    module: ActorCritic
    metrics: list[dict[str, float]]
    returns: list[float]


class ControlSource:
    """The source of experience: each update plays ``steps`` steps of every copy of the task."""

    def __init__(self, module: ActorCritic, collector: Collector, steps: int, with_values: bool) -> None:
        self.module, self.collector, self.steps, self.with_values = module, collector, steps, with_values

    def next(self, updates: int) -> Drawn:
        """Play, and return the pieces of episodes as a rollout."""
        pieces = self.collector.collect(self.module, self.steps)
        recent = self.collector.returns[-100:]
        metrics = {"episodes/return": sum(recent) / max(len(recent), 1)}
        return Drawn(make_rollout(self.module, pieces, self.with_values), metrics)


def train_control(
    config: ControlConfig, *, plugins: PluginManager | None = None, progress: bool = True
) -> ControlResult:
    """Train an actor and a critic on a Gymnasium task with a registered optimizer.

    Raises ``SettingsError`` for a task or an optimizer that this cannot serve, before anything is played.
    """
    import gymnasium

    plugins = plugins or PluginManager()
    spec, settings = config.optimizer.resolve(plugins)
    _check_needs(spec, settings)
    environments = [gymnasium.make(config.environment) for _ in range(config.copies)]
    observations, actions = _sizes(environments[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "networks"))
        module = ActorCritic(observations, actions, config.hidden)
    collector = Collector(environments, derive_seed(config.seed, "episodes"))
    updater = Updater(
        spec.build(settings),
        ControlPolicy(module),
        config.train,
        kl=KLSettings(beta=0.0),
        needs=spec.needs,
        torch_optimizer=_adamw(module, config.train, spec.needs.values),
        seed=config.seed,
    )
    trainer = Trainer(ControlSource(module, collector, config.steps, bool(spec.needs.values)), updater)
    history: list[dict[str, float]] = []
    with tqdm(total=config.train.updates, desc=f"{spec.name} on {config.environment}", disable=not progress) as bar:
        for metrics in trainer.steps(config.train.updates):
            history.append(metrics)
            bar.set_postfix_str(f"return {metrics['episodes/return']:.1f}")
            bar.update()
    for environment in environments:
        environment.close()
    return ControlResult(module, history, collector.returns)


def _adamw(module: ActorCritic, train: TrainSettings, with_values: bool) -> torch.optim.AdamW:
    """Return AdamW with the epsilon that PPO's implementations take (Huang et al. 2022, detail 3)."""
    groups: list[dict[str, Any]] = [
        {"params": list(module.actor.parameters()), "lr": train.learning_rate, "role": "policy"}
    ]
    if with_values:
        groups.append({"params": list(module.critic.parameters()), "lr": train.value_learning_rate, "role": "value"})
    betas = (train.adam_beta1, train.adam_beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=1e-5, weight_decay=train.weight_decay)


def evaluate_control(module: ActorCritic, environment: str, episodes: int, seed: int) -> list[float]:
    """Return the returns of whole episodes of the policy's likeliest actions."""
    import gymnasium

    task = gymnasium.make(environment)
    returns = []
    for episode in range(episodes):
        observation, _ = task.reset(seed=seed + episode)
        total, done = 0.0, False
        while not done:
            with torch.no_grad():
                action = int(module(torch.as_tensor(observation, dtype=torch.float32)).argmax())
            observation, reward, terminated, truncated, _ = task.step(action)
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    task.close()
    return returns


def _check_needs(spec: OptimizerSpec, settings: Any) -> None:
    needs, optimizer = spec.needs, spec.build(settings)
    lacking = {
        f"learns from {needs.experience}": needs.experience != "rollouts",
        "needs a reference policy": needs.reference,
        f"compares at least {needs.minimum_group_size} answers to one prompt": needs.minimum_group_size > 1,
        "restricts the tokens that are drawn": optimizer.defines("processor"),
        "adds heads to a language model": optimizer.defines("heads"),
        "makes further requests": optimizer.defines("further_requests"),
        "names models beside the policy": optimizer.defines("models"),
    }
    for what, is_so in lacking.items():
        if is_so:
            raise SettingsError(
                f"optimizer {spec.name!r} {what}, which a Gymnasium task does not have; choose one that learns from "
                "single episodes, such as ppo, a2c, trpo or reinforce"
            )


def _sizes(environment: Any) -> tuple[int, int]:
    from gymnasium.spaces import Box, Discrete

    seen, done = environment.observation_space, environment.action_space
    if not isinstance(done, Discrete) or not isinstance(seen, Box) or len(seen.shape) != 1:
        raise SettingsError(
            f"{environment.spec.id} has observations {seen} and actions {done}; expected a vector (Box of one "
            "dimension) and Discrete"
        )
    return int(seen.shape[0]), int(done.n)
