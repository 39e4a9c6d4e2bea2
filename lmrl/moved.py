"""New homes of the modules of version 0.1: importing one at its old place is an error that names the new one."""

from __future__ import annotations

import importlib.machinery as machinery
import os
import sys
from types import ModuleType

HOMES: dict[str, str] = {
    "lmrl": "lmrl.specs",
    "lmrl.algorithms": "lmrl.actor_critic lmrl.experience lmrl.kl lmrl.ops lmrl.optimizer lmrl.rollout",
    "lmrl.algorithms.preference_losses": "lmrl.preference_losses",
    "lmrl.annotators and lmrl.judges": "lmrl.preferences",
    "lmrl.bench.suite_kind": "lmrl.bench.kinds.base",
    "lmrl.corpus": "lmrl.data.text",
    "lmrl.data": "lmrl.data.chat lmrl.data.columns lmrl.data.comparisons lmrl.data.compressed lmrl.data.conversations "
    "lmrl.data.files lmrl.data.readers lmrl.data.reading lmrl.data.rows lmrl.data.shapes lmrl.data.trees",
    "lmrl.engines": "lmrl.sampling",
    "lmrl.envs": "lmrl.env",
    "lmrl.models.ranking_losses": "lmrl.ranking_losses",
    "lmrl.plugins.hookspecs": "lmrl.hookspecs",
    "lmrl.reporting.pages": "lmrl.html",
    "lmrl.reporting.plots": "lmrl.stages.plots",
    "lmrl.rewards.answers.pattern": "lmrl.rewards.pattern",
    "lmrl.rewards.stories": "lmrl.rewards.good_story lmrl.rewards.happy_end",
    "lmrl.stages.asking": "lmrl.stages.chat_prompts",
    "lmrl.stages.chat": "lmrl.stages.chat_loop lmrl.stages.chat_stream",
    "lmrl.stages.evaluate": "lmrl.stages.compare lmrl.stages.compare_pages lmrl.stages.evaluate_answers "
    "lmrl.stages.evaluate_config lmrl.stages.evaluate_measures lmrl.stages.evaluate_plan lmrl.stages.evaluate_prompts "
    "lmrl.stages.evaluate_report lmrl.stages.evaluate_scores lmrl.stages.evaluate_texts lmrl.stages.evaluate_wins",
    "lmrl.stages.prefer": "lmrl.stages.prefer_config lmrl.stages.prefer_drawing lmrl.stages.prefer_report "
    "lmrl.stages.prefer_samples lmrl.stages.prefer_setup",
    "lmrl.stages.pretrain": "lmrl.stages.pretrain_config lmrl.stages.pretrain_evaluation lmrl.stages.pretrain_model "
    "lmrl.stages.pretrain_speed lmrl.stages.pretrain_task",
    "lmrl.stages.quickstart": "lmrl.stages.quickstart_page lmrl.stages.quickstart_recipes",
    "lmrl.stages.reward": "lmrl.stages.reward_config lmrl.stages.reward_data lmrl.stages.reward_measures "
    "lmrl.stages.reward_plots lmrl.stages.reward_reference lmrl.stages.reward_task",
    "lmrl.stages.rl": "lmrl.stages.early_scores lmrl.stages.evaluation lmrl.stages.resampling lmrl.stages.rl_checks "
    "lmrl.stages.rl_config lmrl.stages.rl_offline lmrl.stages.rl_session lmrl.stages.rl_setup lmrl.stages.rollouts",
    "lmrl.stages.sft": "lmrl.stages.sft_batches lmrl.stages.sft_config lmrl.stages.sft_rows lmrl.stages.sft_task",
    "lmrl.statistics": "lmrl.measures",
    "lmrl.statistics.aggregates": "lmrl.bench.statistics",
    "lmrl.text": "lmrl.models.card lmrl.models.reward_card",
    "lmrl.text.chat_rendering": "lmrl.models.chat_rendering",
    "lmrl.text.chat_setup": "lmrl.models.chat_setup",
    "lmrl.text.chat_template": "lmrl.models.chat_template",
    "lmrl.text.codec": "lmrl.models.codec",
    "lmrl.text.folders": "lmrl.models.folders",
    "lmrl.training": "lmrl.stages.checkpoint lmrl.stages.devices lmrl.stages.memory lmrl.stages.minibatch "
    "lmrl.stages.run lmrl.stages.schedule lmrl.stages.settings lmrl.stages.stopping lmrl.stages.supervised "
    "lmrl.stages.tracking lmrl.stages.update",
    "lmrl_control": "lmrl.control",
    "lmrl_suites": "lmrl.bench.bag_of_words lmrl.bench.exact_best_of lmrl.bench.models lmrl.bench.offline "
    "lmrl.bench.rankings lmrl.bench.shipped",
    "lmrl_suites.kinds": "lmrl.bench.kinds.exact lmrl.bench.kinds.overoptimization lmrl.bench.kinds.reward "
    "lmrl.bench.kinds.rl lmrl.bench.kinds.throughput",
    "lmrl_suites.story_model": "lmrl.stories.report lmrl.stories.tokenizer lmrl.stories.train",
    "lmrl_suites.tasks": "lmrl.bench.tasks",
    "lmrl_suites.throughput": "lmrl.bench.throughput",
}
"""Modules of version 0.1 by the package or module that their content is in; modules inside them have moved too."""
MOVED = {old: home for home, modules in HOMES.items() for old in modules.split()}

NAME_HOMES: dict[tuple[str, str], str] = {
    ("lmrl.data", "lmrl.seeds"): "PromptOrder",
    ("lmrl.models", "lmrl.text"): "ModelCard load_card response_texts",
    ("lmrl.rewards.answers", "lmrl.rewards.answers.exact_match"): "ExactMatch ExactMatchSettings",
    ("lmrl.rewards.answers", "lmrl.rewards.answers.numeric_answer"): "NumericAnswer NumericAnswerSettings",
    ("lmrl.statistics", "lmrl.statistics.intervals"): "Interval RewardScale bootstrap_interval bounded_interval "
    "group_means mean_interval paired_difference wilson_interval",
}
"""Names that have left a module that still exists, by that module and their new one."""
NAMES = {(module, name): home for (module, home), names in NAME_HOMES.items() for name in names.split()}

ADVICE = "docs/migration.md lists what moved in version 0.2"


def moved_hint(error: BaseException) -> str:
    """Return where to import from instead, for an import that worked in version 0.1; empty if the error says it.

    It is empty for any other error, too.
    """
    if not isinstance(error, ImportError) or not error.name or ADVICE in str(error):
        return ""
    for (module, name), home in NAMES.items():
        if f"cannot import name {name!r} from {module!r}" in str(error):  # Python 3.11 keeps no other trace of the name
            return f"{name} is in {home} now; {ADVICE}"
    return f"{error.name} is {MOVED[error.name]} now; {ADVICE}" if error.name in MOVED else ""


class _Finder(machinery.FileFinder):
    """Raises for modules that have moved, also where a folder of compiled files is left of one."""

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> machinery.ModuleSpec | None:
        if fullname in MOVED:
            message = f"No module named {fullname!r}: {fullname} is {MOVED[fullname]} now; {ADVICE}"
            raise ModuleNotFoundError(message, name=fullname)
        return super().find_spec(fullname, target)


def explain_moved_modules() -> None:
    """Give every import of a moved module, in plugins and in programs, an error that names the new place.

    A path hook for the folders of this package alone: no other import passes through it.
    """
    if not any(getattr(hook, "__name__", "") == _find_in_package.__name__ for hook in sys.path_hooks):
        sys.path_hooks.insert(0, _find_in_package)
        sys.path_importer_cache.pop(PACKAGE, None)


PACKAGE = os.path.dirname(__file__)


def _find_in_package(folder: str) -> _Finder:
    if folder != PACKAGE and not folder.startswith(PACKAGE + os.sep):
        raise ImportError(f"{folder} is not a folder of {PACKAGE}")
    return _Finder(
        folder,
        (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
        (machinery.SourceFileLoader, machinery.SOURCE_SUFFIXES),
        (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES),
    )
