"""Supervised fine-tuning: a language model learns to answer as the examples do."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lmrl.data.examples import ExampleSet, load_examples
from lmrl.data.notes import log_notes
from lmrl.data.records import ChatExample
from lmrl.engines.texts import sampling_spec
from lmrl.errors import SettingsError
from lmrl.models import LanguageModel, load
from lmrl.models.adapters import add_adapter
from lmrl.models.loading import require_trainable
from lmrl.models.saving import saved_dtype
from lmrl.plugins import PluginManager
from lmrl.seeds import PromptOrder, derive_seed
from lmrl.stages.sft.batches import can_pack
from lmrl.stages.sft.config import SFTConfig
from lmrl.stages.sft.rows import EncodedSet, Question, encode_examples, question_of
from lmrl.stages.sft.task import SampleText, SFTTask
from lmrl.text.chat_setup import ChatSetup, add_token_rows, set_up_chat
from lmrl.text.turns import end_turns
from lmrl.training.devices import make_accelerator
from lmrl.training.plugin_files import plugins_of
from lmrl.training.settings import note_unread
from lmrl.training.supervised import FitResult, fit

logger = logging.getLogger(__name__)
STAGE = "sft"
REPORT_FILE = "data.json"
CPU_BUDGET, DEVICE_BUDGET = 1024, 16384
CPU_WIDTH, DEVICE_WIDTH = 256, 1024
"""Positions of a packed row: the attention's cost grows with it, the padding shrinks. Measured on a CPU alone."""


@dataclass(frozen=True)
class SFTResult:
    """Result of a run: its folder and newest checkpoint, held-out numbers and answers before and after.

    ``before`` and ``after`` hold ``loss`` in nats per trained token with ``loss_low`` and ``loss_high``, ``perplexity``
    and ``accuracy``; they are empty where nothing was held out. ``skipped`` counts the rows and examples left out by
    reason, ``notes`` says how the data, the template and the batches were read.
    """

    folder: Path
    checkpoint: Path
    steps: int
    examples: int
    held_out: int
    before: dict[str, float]
    after: dict[str, float]
    samples_before: list[SampleText]
    samples: list[SampleText]
    skipped: dict[str, int]
    notes: tuple[str, ...]
    trained_parameters: int
    parameters: int
    interrupted: bool


def sft(
    config: SFTConfig,
    *,
    examples: ExampleSet | Sequence[Mapping[str, Any]] | None = None,
    plugins: PluginManager | None = None,
    resume: bool = False,
    progress: bool = True,
) -> SFTResult:
    """Fine-tune a model on examples and write a run folder.

    ``examples`` (rows of any known shape) take the place of ``config.data.path``. Everything is checked before the
    folder is made. With ``resume`` the run in ``config.run.folder`` continues from its newest checkpoint, bit for bit
    on a CPU.
    """
    plugins = plugins or plugins_of(config.run.folder, resume)
    if not resume:  # a resumed run's configuration holds the steps that its epochs come to, which nobody set
        note_unread(config, plugins)
    accelerator = make_accelerator(config.run)
    if config.train.examples_per_step % accelerator.num_processes:
        raise SettingsError(
            f"train.examples_per_step is {config.train.examples_per_step}; expected a multiple of the "
            f"{accelerator.num_processes} processes"
        )
    training, held_out = _examples(config, examples)
    prepared = prepare(config, training, held_out, accelerator, progress)
    log_notes(logger, prepared.notes if accelerator.is_main_process else ())
    if config.train.epochs:
        steps = math.ceil(config.train.epochs * prepared.order.count / prepared.order.batch)
        config = replace(config, train=replace(config.train, steps=steps))
    done = fit(
        prepared.task,
        stage=STAGE,
        config=config,
        accelerator=accelerator,
        plugins=plugins,
        fingerprint=prepared.fingerprint,
        resume=resume,
        progress=progress,
    )
    result = _result(done, prepared)
    if accelerator.is_main_process:
        content = {
            "examples": result.examples,
            "held_out": result.held_out,
            "skipped": result.skipped,
            "notes": result.notes,
        }
        (done.folder / REPORT_FILE).write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return result


@dataclass(frozen=True)
class Prepared:
    """Everything that a run depends on, checked."""

    task: SFTTask
    order: PromptOrder
    fingerprint: str
    skipped: dict[str, int]
    notes: tuple[str, ...]


def prepare(
    config: SFTConfig, training: ExampleSet, held_out: ExampleSet, accelerator: Any, progress: bool = False
) -> Prepared:
    """Load the model, give it what a conversation needs, and encode the examples."""
    trust = config.trust_remote_code
    start = load(
        config.model or _embedded_model(), device=accelerator.device, dtype=torch.float32, trust_remote_code=trust
    )
    require_trainable(start.model, start.card.path)
    has_chat = any(isinstance(example, ChatExample) for example in training.examples + held_out.examples)
    keeps = TemporaryDirectory(prefix="lmrl-sft-")
    source = str(start.card.files)
    setup = ChatSetup(source, start.card.codec)
    if has_chat or config.template.name != "auto":
        setup = set_up_chat(source, start.card.codec, config.template, Path(keeps.name), trust)
    model = _with_setup(start, setup)
    encoded = _encode(training, model, config, "training", progress)
    held = _encode(held_out, model, config, "held-out", progress) if len(held_out) else None
    spec = sampling_spec(config.sampling, model.card)
    questions = _questions(held, model, config)

    torch.manual_seed(derive_seed(config.run.seed, "adapter"))
    adapted = None
    if config.adapter.method != "none":
        adapted = add_adapter(model.model, config.adapter, setup.new_ids)
    packed, packing_note = _packing(config, model.model, accelerator)
    order = PromptOrder(len(encoded.rows), config.train.examples_per_step, derive_seed(config.run.seed, "examples"))
    on_cpu = accelerator.device.type == "cpu"
    task = SFTTask(
        language_model=model,
        adapted=adapted,
        tokenizer_folder=setup.folder,
        keeps=keeps,
        rows=encoded.rows,
        held_out=held.rows if held else [],
        questions=questions,
        order=order,
        budget=config.train.microbatch_tokens or (CPU_BUDGET if on_cpu else DEVICE_BUDGET),
        packed=packed,
        width=CPU_WIDTH if on_cpu else DEVICE_WIDTH,
        spec=spec,
        seed=config.run.seed,
        dtype=saved_dtype(config.checkpoint.dtype, start.stored_dtype),
    )
    data = "\n".join([training.fingerprint(), held_out.fingerprint(), setup.codec.chat_template or ""])
    skipped = dict(training.skipped)
    for part in (encoded, held):
        for reason, count in part.skipped.items() if part else ():
            skipped[reason] = skipped.get(reason, 0) + count
    notes = (*training.notes, *(note for note in held_out.notes if note not in training.notes), *encoded.notes)
    notes += (*(held.notes if held else ()), *([setup.note] if setup.note else []), packing_note)
    return Prepared(task, order, hashlib.sha256(data.encode()).hexdigest(), skipped, notes)


def _examples(
    config: SFTConfig, examples: ExampleSet | Sequence[Mapping[str, Any]] | None
) -> tuple[ExampleSet, ExampleSet]:
    """Return (training, held-out) examples."""
    data = config.data
    found = examples if isinstance(examples, ExampleSet) else load_examples(examples, data)
    if data.held_out_path:
        return found, load_examples(data.held_out_path, replace(data, limit=0))
    try:
        return found.split(data.held_out, config.run.seed)
    except SettingsError as error:
        raise SettingsError(f"data.{error} Set data.held_out=0 to evaluate on none, or bring more examples.") from error


def _with_setup(start: LanguageModel, setup: ChatSetup) -> LanguageModel:
    """Return the model with rows for the new tokens, and with the template's end of a turn among those that end it."""
    add_token_rows(start.model, setup.new_ids)
    vocabulary = int(start.model.get_input_embeddings().weight.shape[0])
    card = replace(start.card, codec=setup.codec, vocab_size=max(start.card.vocab_size, vocabulary))
    return end_turns(LanguageModel(start.model, card))


def _encode(examples: ExampleSet, model: LanguageModel, config: SFTConfig, where: str, progress: bool) -> EncodedSet:
    card = model.card
    rows = int(model.model.get_input_embeddings().weight.shape[0])
    return encode_examples(examples, card.codec, card.eos_ids, config.data, card.context_length, rows, where, progress)


def _questions(held: EncodedSet | None, model: LanguageModel, config: SFTConfig) -> list[Question]:
    """Return the held-out prompts that are answered along the way: the first ones that leave room for an answer."""
    questions: list[Question] = []
    for example in held.examples if held else []:
        if len(questions) == config.samples.prompts:
            break
        question = question_of(example, model.card.codec)
        if 0 < len(question.ids) < model.card.context_length:
            questions.append(question)
    return questions


def _packing(config: SFTConfig, model: Any, accelerator: Any) -> tuple[bool, str]:
    wanted = config.train.packing
    if wanted == "off" or (wanted == "auto" and accelerator.device.type == "cpu"):
        return False, "rows are sorted by length and padded"
    if can_pack(model):
        return True, "short examples share rows, kept apart by the attention mask"
    family = model.config.model_type
    return False, f"the family {family} cannot keep examples in one row apart; rows are sorted by length and padded"


def _result(done: FitResult, prepared: Prepared) -> SFTResult:
    task = prepared.task
    parameters = list((task.adapted or task.model).parameters())
    return SFTResult(
        folder=done.folder,
        checkpoint=done.checkpoint,
        steps=done.steps,
        examples=len(task.rows),
        held_out=len(task.held_out),
        before=done.first_evaluation,
        after=done.evaluation,
        samples_before=task.first_samples,
        samples=task.samples,
        skipped=prepared.skipped,
        notes=prepared.notes,
        trained_parameters=sum(one.numel() for one in parameters if one.requires_grad),
        parameters=sum(one.numel() for one in parameters),
        interrupted=done.interrupted,
    )


def _embedded_model() -> str:
    from lmrl.stories import MODEL_PATH

    return str(MODEL_PATH)
