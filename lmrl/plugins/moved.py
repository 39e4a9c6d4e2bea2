"""New homes of the modules that plugins of version 0.1 import, for the error of a plugin that still does."""

from __future__ import annotations

MOVED = {
    "lmrl.actor_critic": "lmrl.algorithms",
    "lmrl.bench.tasks": "lmrl_suites.tasks",
    "lmrl.bench.throughput": "lmrl_suites.throughput",
    "lmrl.control": "lmrl_control",
    "lmrl.data.text": "lmrl.corpus",
    "lmrl.env": "lmrl.envs",
    "lmrl.experience": "lmrl.algorithms",
    "lmrl.hookspecs": "lmrl.plugins.hookspecs",
    "lmrl.html": "lmrl.reporting.pages",
    "lmrl.kl": "lmrl.algorithms",
    "lmrl.measures": "lmrl.statistics",
    "lmrl.ops": "lmrl.algorithms",
    "lmrl.optimizer": "lmrl.algorithms",
    "lmrl.preference_losses": "lmrl.algorithms.preference_losses",
    "lmrl.preferences": "lmrl.annotators and lmrl.judges",
    "lmrl.ranking_losses": "lmrl.models.ranking_losses",
    "lmrl.rollout": "lmrl.algorithms",
    "lmrl.sampling": "lmrl.engines",
    "lmrl.specs": "lmrl",
    "lmrl.models.card": "lmrl.text",
    "lmrl.models.chat_template": "lmrl.text.chat_template",
    "lmrl.models.codec": "lmrl.text.codec",
    "lmrl.stages.checkpoint": "lmrl.training.checkpoint",
    "lmrl.stages.compare": "lmrl.stages.evaluate",
    "lmrl.stages.devices": "lmrl.training.devices",
    "lmrl.stages.evaluate_config": "lmrl.stages.evaluate",
    "lmrl.stages.memory": "lmrl.training.memory",
    "lmrl.stages.minibatch": "lmrl.training.minibatch",
    "lmrl.stages.prefer_config": "lmrl.stages.prefer",
    "lmrl.stages.pretrain_config": "lmrl.stages.pretrain",
    "lmrl.stages.reward_config": "lmrl.stages.reward",
    "lmrl.stages.rl_config": "lmrl.stages.rl",
    "lmrl.stages.run": "lmrl.training.run",
    "lmrl.stages.schedule": "lmrl.training.schedule",
    "lmrl.stages.settings": "lmrl.training.settings",
    "lmrl.stages.sft_config": "lmrl.stages.sft",
    "lmrl.stages.stopping": "lmrl.training.stopping",
    "lmrl.stages.supervised": "lmrl.training.supervised",
    "lmrl.stages.tracking": "lmrl.training.tracking",
    "lmrl.stages.update": "lmrl.training.update",
}
NAMES = {
    ("lmrl.models", "ModelCard"): "lmrl.text",
    ("lmrl.models", "load_card"): "lmrl.text",
    ("lmrl.models", "response_texts"): "lmrl.text",
}
ADVICE = "docs/migration.md lists what moved in version 0.2"


def moved_hint(error: BaseException) -> str:
    """Return where to import from instead, for an import that worked in version 0.1; empty for any other error."""
    if not isinstance(error, ImportError) or not error.name:
        return ""
    for (module, name), home in NAMES.items():
        if f"cannot import name {name!r} from {module!r}" in str(error):  # Python 3.11 keeps no other trace of the name
            return f"{name} is in {home} now; {ADVICE}"
    parts = error.name.split(".")
    for end in range(len(parts), 1, -1):
        old = ".".join(parts[:end])
        if old in MOVED:
            return f"{old} is {MOVED[old]} now; {ADVICE}"
    return ""
