"""Sampling the completions that are compared; they are on the disk before anyone is asked."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lmrl.data import PromptSet, PromptSettings, load_prompts
from lmrl.data.builtin import prompt_settings
from lmrl.data.layouts.parts import template_variables
from lmrl.data.notes import is_loss_of_data, log_notes
from lmrl.data.records import Prompt
from lmrl.engines.protocol import Engine
from lmrl.engines.texts import sample_texts, sampling_spec
from lmrl.errors import ResumeError
from lmrl.models import LanguageModel, load
from lmrl.plugins import PluginManager
from lmrl.rewards.binding import sampled_columns
from lmrl.rewards.function import RewardFunction
from lmrl.rewards.scorable import scorable_rows
from lmrl.seeds import derive_seed
from lmrl.stages.asking import model_path
from lmrl.stages.prefer.config import PreferConfig
from lmrl.stages.prefer.samples import PROMPTS_FILE, SAMPLES_FILE, make_candidates, write_whole
from lmrl.stages.rl.checks import encode_prompts, in_turns, usable_prompts
from lmrl.text.card import load_card
from lmrl.text.conversation import with_variables
from lmrl.training.devices import weights_dtype

logger = logging.getLogger(__name__)
ROWS_AT_ONCE = 256
"""Responses that are sampled, and then kept, together."""


def prepare_prompts(
    config: PreferConfig,
    plugins: PluginManager,
    prompts: Sequence[Any] | None,
    rewards: Sequence[RewardFunction] = (),
) -> PromptSet:
    """Return the prompts that rewards can score and the model has room for; only the model's card is loaded."""
    card = load_card(model_path(config.model), trust_remote_code=config.trust_remote_code)
    spec, settings = config.prompts.resolve(plugins)
    rows = list(spec.build(settings)) if prompts is None else prompts
    reading = PromptSettings() if prompts is None else prompt_settings(config.prompts)
    found = load_prompts(rows, replace(reading, chat=config.chat, limit=config.samples.prompts), card.codec)
    log_notes(logger, [note for note in found.notes if prompts is not None or is_loss_of_data(note)])
    found = found.select(scorable_rows(rewards, found.columns, found.origins, config.on_unreadable))
    return usable_prompts(LanguageModel(None, card), found, sampling_spec(config.sampling, card))


def draw_samples(
    config: PreferConfig,
    engine: Engine,
    prompts: PromptSet,
    folder: Path,
    should_stop: Callable[[], bool],
    progress: bool,
    rewards: Sequence[RewardFunction] = (),
) -> bool:
    """Sample what is not there yet into ``samples.jsonl`` of the run's folder, and return whether all of it is.

    ``rewards`` decide which columns about the sampling are kept.

    Batch by batch, each with a seed of its own: a run that is continued draws what it would have drawn.
    """
    final = folder / SAMPLES_FILE
    if final.exists():
        return True
    partial = final.with_name(final.name + ".partial")
    _refuse_other_prompts(folder / PROMPTS_FILE, prompts.fingerprint())
    each = config.samples.per_prompt
    batch = max(1, ROWS_AT_ONCE // each)
    done = _kept(partial, batch)
    device = "cuda" if config.run.device == "auto" and torch.cuda.is_available() else "cpu"
    model = load(
        model_path(config.model),
        device=device,
        dtype=weights_dtype(config.run.precision),
        trust_remote_code=config.trust_remote_code,
    )
    spec = sampling_spec(config.sampling, model.card, in_turns(model, prompts))
    ids = encode_prompts(model, prompts)
    bar = tqdm(total=len(prompts) * each, initial=done * each, desc="sample", unit="response", disable=not progress)
    with bar, partial.open("ab") as file:
        for start in range(done, len(prompts), batch):
            if should_stop():
                return False
            indices = range(start, min(start + batch, len(prompts)))
            rows = [ids[index] for index in indices for _ in range(each)]
            drawn = sample_texts(model, rows, spec, derive_seed(config.run.seed, "prefer", start), engine)
            for place, index in enumerate(indices):
                own = drawn[place * each : (place + 1) * each]
                cut = sum(not completion.ended for completion in own)
                texts, sampled = [one.text for one in own], [one.ids for one in own]
                columns: dict[str, list[Any]] = {}
                for reward in rewards:
                    reasons = [one.finish for one in own]
                    columns |= sampled_columns(reward, model.card.codec, [ids[index]] * each, sampled, reasons)
                sample = make_candidates(*_prompt_of(prompts, index), texts, cut=cut, sampled=columns)
                file.write(json.dumps(sample.to_dict(), default=str).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(rows))
    partial.replace(final)
    return True


def _refuse_other_prompts(file: Path, fingerprint: str) -> None:
    if not file.exists():
        write_whole(file, [{"fingerprint": fingerprint}])
    elif json.loads(file.read_text(encoding="utf-8"))["fingerprint"] != fingerprint:
        raise ResumeError(
            f"the prompts have changed since {file.parent} was begun, so its samples would not be those of one run; "
            "bring back the old prompts, or start a new run"
        )


def _kept(partial: Path, batch: int) -> int:
    """Return how many prompts were sampled before, and cut off what a kill left of an unfinished batch."""
    lines = partial.read_bytes().splitlines(keepends=True) if partial.exists() else []
    whole = len([line for line in lines if line.endswith(b"\n")]) // batch * batch
    if lines:
        os.truncate(partial, sum(map(len, lines[:whole])))
    return whole


def _prompt_of(prompts: PromptSet, index: int) -> tuple[Prompt, str, dict[str, Any]]:
    columns = {name: values[index] for name, values in prompts.columns.items()}
    messages = columns.pop("prompt_messages", None)
    prompt = with_variables(messages, template_variables(columns)) if messages else prompts.prompts[index]
    return prompt, prompts.prompts[index], columns
