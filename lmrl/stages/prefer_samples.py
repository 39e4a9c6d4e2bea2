"""The completions that are compared: sampled and kept before anyone is asked, or read from a file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lmrl.data import PromptSet, PromptSettings, RowSettings, load_prompts, load_rankings
from lmrl.data.files import read_rows
from lmrl.data.readers import read_answer, read_prompt
from lmrl.data.reading import Answered, Skip, list_of
from lmrl.data.records import Answer, Prompt
from lmrl.data.rows import as_asked
from lmrl.data.shapes import Shape, column_sets, find_shape
from lmrl.errors import DataError, ResumeError
from lmrl.models import LanguageModel, load, load_card
from lmrl.plugins import PluginManager
from lmrl.preferences import Comparison
from lmrl.preferences.questions import as_text
from lmrl.preferences.ranks import compact_ranks, dense_ranks
from lmrl.sampling.engine import Engine
from lmrl.sampling.texts import sample_texts, sampling_spec
from lmrl.seeds import derive_seed
from lmrl.stages.chat_prompts import model_path
from lmrl.stages.prefer_config import PreferConfig
from lmrl.stages.rl_checks import encode_prompts, usable_prompts

logger = logging.getLogger(__name__)
SAMPLES_FILE = "samples.jsonl"
PROMPTS_FILE = "prompts.json"
"""Tells whether the prompts are still those of which some were sampled, and what was left out of a file."""
ROWS_AT_ONCE = 256
"""Responses that are sampled, and then kept, together."""
UNRANKED = ("prompt", "completions")
_TO_BE_RANKED = Shape("completions to be ranked", UNRANKED)


@dataclass(frozen=True)
class Sample:
    """A prompt and its distinct completions; ``drawn`` says how often each came, ``cut`` how many ran into a limit."""

    comparison: Comparison
    drawn: tuple[int, ...] = ()
    cut: int = 0
    gold_ranks: tuple[int, ...] = ()

    @property
    def rankable(self) -> bool:
        """Whether there is anything to compare."""
        return len(self.comparison.completions) > 1

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        asked = self.comparison
        prompt = asked.prompt if isinstance(asked.prompt, str) else [dict(message) for message in asked.prompt]
        return {
            "prompt": prompt,
            "prompt_text": asked.prompt_text,
            "completions": list(asked.completions),
            "drawn": list(self.drawn),
            "cut": self.cut,
            "gold_ranks": list(self.gold_ranks),
            "columns": dict(asked.columns),
        }


@dataclass(frozen=True)
class Samples:
    """All samples of a run, and what was left out on the way, by reason."""

    samples: list[Sample]
    skipped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def prepare_prompts(config: PreferConfig, plugins: PluginManager, prompts: Sequence[Any] | None) -> PromptSet:
    """Return the prompts that the model has room for; nothing but its card is loaded."""
    card = load_card(model_path(config.model))
    spec, settings = config.prompts.resolve(plugins)
    rows = list(spec.build(settings)) if prompts is None else prompts
    found = load_prompts(rows, PromptSettings(chat=config.chat, limit=config.samples.prompts), card.codec)
    return usable_prompts(LanguageModel(None, card), found, sampling_spec(config.sampling, card))


def draw_samples(
    config: PreferConfig,
    engine: Engine,
    prompts: PromptSet,
    folder: Path,
    should_stop: Callable[[], bool],
    progress: bool,
) -> bool:
    """Sample what is not there yet into ``samples.jsonl`` of the run's folder, and return whether all of it is.

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
    model = load(model_path(config.model), device=device)
    spec = sampling_spec(config.sampling, model.card)
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
                sample = make_sample(*_prompt_of(prompts, index), [completion.text for completion in own], cut=cut)
                file.write(json.dumps(sample.to_dict(), default=str).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(rows))
    partial.replace(final)
    return True


def make_sample(
    prompt: Prompt,
    prompt_text: str,
    columns: Mapping[str, Any],
    completions: Sequence[str],
    gold_ranks: Sequence[int] = (),
    cut: int = 0,
) -> Sample:
    """Return a sample of the distinct completions; those that differ in the white space around them are one."""
    places: dict[str, int] = {}
    drawn: list[int] = []
    kept: list[int] = []
    for index, text in enumerate(completions):
        place = places.setdefault(text.strip(), len(kept))
        if place == len(kept):
            kept.append(index)
            drawn.append(0)
        drawn[place] += 1
    gold = compact_ranks([gold_ranks[index] for index in kept]) if gold_ranks else ()
    comparison = Comparison(prompt, prompt_text, tuple(completions[index] for index in kept), columns)
    return Sample(comparison, tuple(drawn), cut, gold)


def read_completions(settings: RowSettings) -> Samples:
    """Return the completions in a file: of rows with prompt and completions, or of any shape of rankings.

    Ranks or scores in the rows, or columns ``gold_ranks`` or ``gold_scores``, become gold ranks. Raises ``DataError``.
    """
    rows = read_rows(settings.path, settings.split, settings.subset, settings.revision)
    shape = find_shape(column_sets(rows), "rankings")
    if shape is None and any(set(UNRANKED) <= row.keys() for row in rows):
        return _unranked(rows, settings)
    found = load_rankings(None, settings)
    skipped = dict(found.skipped)
    samples = []
    for ranking in found.rankings:
        texts = _texts(ranking.completions)
        if texts is None:
            skipped["answers of several turns"] = skipped.get("answers of several turns", 0) + 1
            continue
        samples.append(make_sample(ranking.prompt, as_text(ranking.prompt), ranking.columns, texts, ranking.ranks))
    return _refuse_nothing(Samples(samples, skipped, found.notes), settings.path)


def write_samples(folder: Path, samples: Samples) -> None:
    """Write ``samples.jsonl`` in one piece, and beside it what was left out."""
    for note in samples.notes:
        logger.info(note)
    (folder / PROMPTS_FILE).write_text(json.dumps({"skipped": samples.skipped}) + "\n", encoding="utf-8")
    partial = folder / f"{SAMPLES_FILE}.partial"
    with partial.open("wb") as file:
        file.writelines(json.dumps(sample.to_dict(), default=str).encode() + b"\n" for sample in samples.samples)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / SAMPLES_FILE)


def load_samples(folder: Path) -> tuple[list[Sample], dict[str, int]]:
    """Return the samples of a run and what was left out, by reason.

    Raises ``ResumeError`` for a file that has been changed by hand.
    """
    samples = []
    for number, line in enumerate((folder / SAMPLES_FILE).read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            prompt = row["prompt"] if isinstance(row["prompt"], str) else tuple(row["prompt"])
            comparison = Comparison(prompt, row["prompt_text"], tuple(row["completions"]), row["columns"])
            samples.append(Sample(comparison, tuple(row["drawn"]), row["cut"], tuple(row["gold_ranks"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ResumeError(
                f"{folder / SAMPLES_FILE}, line {number} is no sample ({error!r}); it has been changed by hand, so "
                "the answers that belong to it cannot be told any more. Start a new run."
            ) from error
    skipped = json.loads((folder / PROMPTS_FILE).read_text(encoding="utf-8")).get("skipped", {})
    return samples, skipped


def _refuse_other_prompts(file: Path, fingerprint: str) -> None:
    if not file.exists():
        file.write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
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
    return tuple(messages) if messages else prompts.prompts[index], prompts.prompts[index], columns


def _unranked(rows: Sequence[Mapping[str, Any]], settings: RowSettings) -> Samples:
    samples: list[Sample] = []
    skipped: dict[str, int] = {}
    for row in rows[: settings.limit or None]:
        try:
            asked = read_prompt(row.get("prompt"))
            given = list_of(row.get("completions"), "completions")
            answers = tuple(read_answer(item, asked, "completion") for item in given)
            prompt, answers = as_asked(Answered(asked, answers, ()), settings.chat, _TO_BE_RANKED)
            texts = _texts(answers)
            if texts is None:
                raise Skip("answers of several turns")
            gold = _gold_ranks(row, len(texts))
        except Skip as skip:
            skipped[skip.reason] = skipped.get(skip.reason, 0) + 1
            continue
        columns = {name: value for name, value in row.items() if name not in UNRANKED}
        samples.append(make_sample(prompt, as_text(prompt), columns, texts, gold))
    note = f"{settings.path}: {len(samples)} prompts with completions to be ranked"
    return _refuse_nothing(Samples(samples, skipped, (note,)), settings.path)


def _refuse_nothing(samples: Samples, where: str) -> Samples:
    if any(sample.rankable for sample in samples.samples):
        return samples
    reasons = "; ".join(f"{count}: {reason}" for reason, count in samples.skipped.items())
    raise DataError(
        f"{where}: no prompt has two different completions, so there is nothing to rank"
        + (f". Left out {reasons}." if reasons else ".")
    )


def _gold_ranks(row: Mapping[str, Any], count: int) -> tuple[int, ...]:
    for name, best_is_high in (("gold_ranks", False), ("gold_scores", True)):
        if row.get(name) is not None:
            values = [float(value) for value in list_of(row[name], name)]
            if len(values) != count:
                raise Skip(f"not as many {name} as completions")
            return dense_ranks(values if best_is_high else [-value for value in values])
    return ()


def _texts(answers: Sequence[Answer]) -> list[str] | None:
    texts = [answer for answer in answers if isinstance(answer, str)]
    return texts if len(texts) == len(answers) else None
