"""Pretraining: a corpus is prepared or found, and a language model trained on its tokens by maximum likelihood."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from lmrl.corpus import CorpusReport, DocumentEncoder, PreparedCorpus, open_corpus, prepare_corpus
from lmrl.errors import ModelError, SettingsError
from lmrl.plugins import PluginManager
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.pretrain.config import PretrainConfig
from lmrl.stages.pretrain.model import (
    SpecialIds,
    continued_model,
    count_parameters,
    new_model,
    require_context,
    require_model,
)
from lmrl.stages.pretrain.task import PretrainTask
from lmrl.training.devices import make_accelerator
from lmrl.training.plugin_files import plugins_of
from lmrl.training.run import refuse_taken
from lmrl.training.settings import note_unread
from lmrl.training.supervised import FitResult, fit
from lmrl.training.tracking import check_trackers

STAGE = "pretrain"
REPORT_FILE = "corpus_report.json"


@dataclass(frozen=True)
class PretrainResult:
    """Result of a run: its folder and newest checkpoint, held-out numbers before and after, what became of the
    documents, and whether it was interrupted.

    ``evaluation`` holds ``loss`` (nats per token) and, where the tokenizer gives text back as it was,
    ``bits_per_byte``. ``tokens`` is what training has seen; ``tokens_per_second`` and ``mfu`` are medians over the
    steps, and ``peak`` says what the latter is relative to.
    """

    folder: Path
    checkpoint: Path
    steps: int
    first_evaluation: dict[str, float]
    evaluation: dict[str, float]
    interrupted: bool
    report: CorpusReport
    corpus: PreparedCorpus
    parameters: int
    tokens: int
    tokens_per_second: float
    mfu: float
    peak: str
    samples: list[str]


def pretrain(
    config: PretrainConfig, *, plugins: PluginManager | None = None, resume: bool = False, progress: bool = True
) -> PretrainResult:
    """Prepare a corpus, train a language model on it from scratch or from a checkpoint, and write a run folder.

    With ``resume`` the run in ``config.run.folder`` continues from its newest checkpoint on the corpus that it has
    packed, bit for bit on a CPU. The preparation has a folder of its own (``corpus.folder``): stopped there, the same
    call goes on with what is finished. Everything that can be is checked before either folder is made.
    """
    plugins = plugins or plugins_of(config.run.folder, resume)
    note_unread(config, plugins)
    _check(config, plugins, resume)
    accelerator = make_accelerator(config.run)
    if config.train.rows % accelerator.num_processes:
        raise SettingsError(
            f"train.rows is {config.train.rows}; expected a multiple of the {accelerator.num_processes} processes"
        )
    corpus = _corpus(config, accelerator, resume, progress)
    config = replace(config, corpus=replace(config.corpus, folder=str(corpus.folder)))
    model = _model(config, corpus, accelerator)
    task = PretrainTask(model, corpus, config, accelerator)
    task.require_room()
    parameters = count_parameters(model)
    training = corpus.tokens.split("train")
    if progress and accelerator.is_main_process:
        seen = config.train.steps * config.train.rows * config.model.context_length
        tqdm.write(
            f"{model.config.model_type}, {parameters:,} parameters; {training.documents:,} documents, "
            f"{len(training):,} tokens in {corpus.folder}; {seen:,} tokens to train on, "
            f"{seen / len(training):.1f} epochs"
        )
    done = fit(
        task,
        stage=STAGE,
        config=config,
        accelerator=accelerator,
        plugins=plugins,
        fingerprint=corpus.tokens.fingerprint(),
        resume=resume,
        progress=progress,
    )
    if accelerator.is_main_process:
        report = json.dumps(corpus.report.to_json(), indent=2, ensure_ascii=False) + "\n"
        (done.folder / REPORT_FILE).write_text(report, encoding="utf-8")
    return _result(done, task, corpus, parameters, config)


def _result(
    done: FitResult, task: PretrainTask, corpus: PreparedCorpus, parameters: int, config: PretrainConfig
) -> PretrainResult:
    records = read_metrics(done.folder)
    return PretrainResult(
        folder=done.folder,
        checkpoint=done.checkpoint,
        steps=done.steps,
        first_evaluation=done.first_evaluation,
        evaluation=done.evaluation,
        interrupted=done.interrupted,
        report=corpus.report,
        corpus=corpus,
        parameters=parameters,
        tokens=done.steps * config.train.rows * config.model.context_length,
        tokens_per_second=_median(records, "time/tokens_per_second"),
        mfu=_median(records, "time/mfu"),
        peak=task.peak_source,
        samples=task.texts() if task.accelerator.is_main_process else [],
    )


def _median(records: Sequence[Mapping[str, float]], name: str) -> float:
    return median([record[name] for record in records if name in record] or [math.nan])


def _check(config: PretrainConfig, plugins: PluginManager, resume: bool) -> None:
    """Refuse what can be refused before the corpus is prepared, which may take long."""
    check_trackers(plugins, config)
    if not resume and config.run.folder:
        refuse_taken(Path(config.run.folder), STAGE)
    if config.model.continue_from:
        require_context(config.model)
    else:
        require_model(config.model, max(config.tokenizer.vocabulary_size, 300))


def _corpus(config: PretrainConfig, accelerator: Any, resume: bool, progress: bool) -> PreparedCorpus:
    """Prepare the corpus on the main process and open it on all."""
    from accelerate.utils import broadcast_object_list

    if resume:
        return open_corpus(config.corpus.folder)
    tokenizer = config.tokenizer
    if config.model.continue_from and not tokenizer.path:
        trust = config.model.trust_remote_code
        tokenizer = replace(tokenizer, path=config.model.continue_from, trust_remote_code=trust)
    folder = [""]
    if accelerator.is_main_process:
        prepared = prepare_corpus(config.corpus, config.clean, tokenizer, progress=progress)
        folder = [str(prepared.folder)]
    broadcast_object_list(folder)
    return open_corpus(folder[0])


def _model(config: PretrainConfig, corpus: PreparedCorpus, accelerator: Any) -> Any:
    trust = config.model.trust_remote_code or config.tokenizer.trust_remote_code
    encoder = DocumentEncoder(corpus.tokenizer_folder, trust)
    if config.model.continue_from:
        model = continued_model(config.model, encoder, accelerator.device)
    else:
        ids = SpecialIds.of(encoder)
        model = new_model(config.model, encoder.vocabulary_size, ids, config.run.seed).to(accelerator.device)
    if not config.train.cross_documents:
        from lmrl.stages.sft.batches import can_pack

        if not can_pack(model):
            raise ModelError(
                f"{model.config.model_type} does not keep the documents of a block apart, so train.cross_documents "
                "cannot be false; leave it true, or choose a family such as llama."
            )
    return model
