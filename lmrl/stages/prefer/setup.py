"""Putting a preference run together: annotators, samples and run folder, all checked before anything is sampled."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lmrl.annotators import Annotator, AnnotatorSettings, build_annotator
from lmrl.annotators.annotators import DEFAULT_REWARD
from lmrl.config import build, read_toml, resolved, to_toml
from lmrl.errors import ResumeError, SettingsError, unknown
from lmrl.locks import folder_lock
from lmrl.plugins import PluginManager
from lmrl.seeds import derive_seed
from lmrl.stages.prefer.config import GOLD, PreferConfig
from lmrl.stories.recognise import note_story_reward, refuse_story_defaults
from lmrl.training.run import CONFIG_FILE, create_folder, next_free_folder, refuse_taken, write_versions

logger = logging.getLogger(__name__)
STAGE = "prefer"
ANSWERS_FOLDER = "answers"
FREE_JUDGE_SETTINGS = (
    "device",
    "concurrency",
    "timeout",
    "retries",
    "backoff",
    "give_up_after",
    "max_calls",
    "max_tokens",
    "max_cost",
    "prompt_price",
    "reply_price",
    "cache",
)
"""Settings of a judge that change none of its answers, so that a resumed run may change them."""


def make_annotators(
    config: PreferConfig, plugins: PluginManager, given: Mapping[str, Annotator] | None
) -> dict[str, Annotator]:
    """Return the annotators by name, the gold reward among them where there is one."""
    if given is None:
        found = {
            name: build_annotator(settings, plugins, name, derive_seed(config.run.seed, "annotator"))
            for name, settings in config.annotators.items()
        }
    else:
        found = dict(given)
        for name in found:
            dataclasses.replace(config, annotators={name: AnnotatorSettings()})  # the name is checked
    for name in config.output.annotators:
        if name not in found:
            raise SettingsError(f"output.annotators: {unknown('annotator', name, found)}")
    if config.gold.reward:
        settings = AnnotatorSettings(
            reward=config.gold.reward, settings=config.gold.settings, tolerance=config.gold.tolerance
        )
        found[GOLD] = build_annotator(settings, plugins, GOLD)
    return found


def refuse_defaults(config: PreferConfig, with_prompts: bool, with_annotators: bool) -> None:
    """Raise ``SettingsError`` if responses of another model would get the stories' prompts or reward by default.

    ``with_prompts``, ``with_annotators``: the caller brings them instead of the configuration.
    """
    unnamed = [
        name
        for name, one in config.annotators.items()
        if one.kind == "reward" and not one.reward and not with_annotators
    ]
    if config.completions_from.path and unnamed:
        logger.warning(
            "annotators.%s.reward is missing, so the responses of %s are scored by %s, the reward of the embedded "
            "stories; set it to the reward that you mean",
            unnamed[0],
            config.completions_from.path,
            DEFAULT_REWARD,
        )
    if config.completions_from.path or not config.model:
        return
    missing = {f"annotators.{name}.reward": f"annotators.{name}.reward=NAME or .kind=judge" for name in unnamed}
    if not with_prompts and config.prompts.is_default:
        missing = {"prompts.name": "prompts.name=file with prompts.file.path=FILE", **missing}
    if missing:
        from lmrl.stages.asking import model_path
        from lmrl.text.card import load_card  # not before it is needed: a run that only asks loads no torch

        card = load_card(model_path(config.model), trust_remote_code=config.trust_remote_code)
        if with_prompts:
            note_story_reward(card, next(iter(missing)))
        else:
            refuse_story_defaults(card, missing)


def refuse_ranks() -> None:
    """Refuse to be run by several processes, which would all ask the same questions."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError("`lmrl prefer` runs in one process; start it without accelerate launch or torchrun")


def name_folder(config: PreferConfig, resume: bool) -> PreferConfig:
    """Return the configuration with the run's folder: a new one, or the one to resume. Nothing is written."""
    folder = Path(config.run.folder or next_free_folder(Path("runs"), STAGE))
    if not resume:
        refuse_taken(folder, STAGE)
    elif not (folder / CONFIG_FILE).exists():
        raise ResumeError(f"{folder} holds no {CONFIG_FILE}; expected the folder of a run")
    return dataclasses.replace(config, run=dataclasses.replace(config.run, folder=str(folder)))


def hold_folder(folder: Path) -> AbstractContextManager[None]:
    """Hold the run's folder: two processes would ask everything twice. Raises ``ResumeError`` if another one has it."""

    def refuse(holder: str) -> None:
        raise ResumeError(
            f"{holder} is at work on {folder}; wait until it has ended and continue with `lmrl {STAGE} --resume "
            f"{folder}`, or choose another run.folder"
        )

    return folder_lock(folder, refuse)


def open_folder(config: PreferConfig, plugins: PluginManager, resume: bool) -> None:
    """Begin the run's folder, or take up the one to resume.

    Raises ``ResumeError`` when an annotator that has answered already has other settings now.
    """
    folder, settings = Path(config.run.folder), to_toml(resolved(config, plugins))
    if resume:
        _refuse_changes(folder, config)
        write_versions(folder, plugins, STAGE)
        partial = folder / f"{CONFIG_FILE}.partial"
        partial.write_text(settings, encoding="utf-8")
        partial.replace(folder / CONFIG_FILE)
    else:
        create_folder(folder, settings, plugins, STAGE)
    (folder / ANSWERS_FOLDER).mkdir(exist_ok=True)


def journal_path(folder: Path, name: str) -> Path:
    """Return where an annotator's answers are kept."""
    return folder / ANSWERS_FOLDER / f"{name}.jsonl"


def _refuse_changes(folder: Path, config: PreferConfig) -> None:
    before = build(PreferConfig, read_toml(folder / CONFIG_FILE))
    old: dict[str, Any] = {name: _identity(settings) for name, settings in before.annotators.items()}
    new: dict[str, Any] = {name: _identity(settings) for name, settings in config.annotators.items()}
    old[GOLD], new[GOLD] = dataclasses.asdict(before.gold), dataclasses.asdict(config.gold)
    for name in sorted(set(old) & set(new)):
        changed = _difference(old[name], new[name])
        if changed and journal_path(folder, name).exists():
            where = GOLD if name == GOLD else f"annotators.{name}"
            raise ResumeError(
                f"{where}.{changed} has changed since {name} answered in {folder}, so the answers would not be one "
                "annotator's. Bring back the old value, or give the new annotator another name."
            )


def _identity(settings: AnnotatorSettings) -> dict[str, Any]:
    """Return the settings that an annotator's answers depend on."""
    identity = dataclasses.asdict(settings)
    for name in FREE_JUDGE_SETTINGS:
        del identity["judge"][name]
    return identity


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], keys: Sequence[str] = ()) -> str:
    """Return the dotted name of the first setting that differs, or the empty string."""
    for key in sorted({*old, *new}):
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            inner = _difference(one, other)
            if inner:
                return f"{key}.{inner}"
        elif one != other:
            return key
    return ""
