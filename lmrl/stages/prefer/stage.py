"""The preference stage: responses are sampled, annotators rank them, and rankings and pairs become files.

Samples are on the disk before anyone is asked, and each answer before the next question: a run that is stopped, killed
or out of budget continues exactly there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmrl.annotators import Annotator, Comparison, Judgement
from lmrl.annotators.annotators import StreamingAnnotator, Unanswered
from lmrl.annotators.journal import Journal
from lmrl.annotators.person import PersonAnnotator
from lmrl.annotators.reward import RewardAnnotator
from lmrl.annotators.writing import pair_rows, ranking_rows, write_rows
from lmrl.errors import AnnotatorError
from lmrl.plugins import PluginManager
from lmrl.rewards.function import RewardFunction
from lmrl.stages.prefer.config import GOLD, PreferConfig
from lmrl.stages.prefer.report import PreferReport, make_report, plot_report, write_report
from lmrl.stages.prefer.samples import (
    SAMPLES_FILE,
    Candidates,
    CandidateSet,
    load_samples,
    read_completions,
    scorable_samples,
    write_samples,
)
from lmrl.stages.prefer.setup import (
    hold_folder,
    journal_path,
    make_annotators,
    name_folder,
    open_folder,
    refuse_defaults,
    refuse_ranks,
)
from lmrl.training.plugin_files import plugins_of
from lmrl.training.run import Run
from lmrl.training.settings import note_unread
from lmrl.training.stopping import stop_requests

logger = logging.getLogger(__name__)
COMPARISONS_AT_ONCE = 64
"""Comparisons that an annotator without answers of its own pace is handed together."""


@dataclass(frozen=True)
class PreferResult:
    """Result of a run: its files, and what they say.

    ``rankings`` and ``pairs`` are None while nothing has been ranked. ``stopped`` says why an annotator ended before it
    had answered everything, by name.
    """

    folder: Path
    rankings: Path | None
    pairs: Path | None
    report: PreferReport
    stopped: dict[str, str]
    interrupted: bool


def prefer(
    config: PreferConfig,
    *,
    annotators: Mapping[str, Annotator] | None = None,
    prompts: Sequence[Any] | None = None,
    plugins: PluginManager | None = None,
    resume: bool = False,
    progress: bool = True,
) -> PreferResult:
    """Sample responses, have them ranked, and write rankings and pairs into a run folder.

    ``annotators`` (by name) and ``prompts`` (texts, rows, a path, a table of pandas or ``datasets``; read with the
    settings of ``[prompts.file]``) take the place of the configuration's. With ``resume`` the run in
    ``config.run.folder`` continues: nothing is sampled or asked twice. Raises ``AnnotatorError`` when an annotator
    cannot be asked any more, after what it answered has been written.
    """
    refuse_ranks()
    plugins = plugins or plugins_of(config.run.folder, resume)
    note_unread(config, plugins)
    if not resume:
        refuse_defaults(config, prompts is not None, annotators is not None)
    found = make_annotators(config, plugins, annotators)
    sampled = resume and (Path(config.run.folder) / SAMPLES_FILE).exists()
    source = None if sampled else _source(config, plugins, prompts, _rewards(found))
    config = name_folder(config, resume)
    run = Run(Path(config.run.folder), config)
    with hold_folder(run.folder):
        open_folder(config, plugins, resume)
        error: BaseException | None = None
        try:
            plugins.observe("lmrl_run_start", run=run)
            return _prefer(config, found, source, progress)
        except BaseException as caught:
            error = caught
            raise
        finally:
            plugins.observe("lmrl_run_end", run=run, error=error)


def _rewards(annotators: Mapping[str, Annotator]) -> list[RewardFunction]:
    rewards = [one.reward for one in annotators.values() if isinstance(one, RewardAnnotator)]
    return [reward for reward in rewards if isinstance(reward, RewardFunction)]


def _source(
    config: PreferConfig, plugins: PluginManager, prompts: Sequence[Any] | None, rewards: Sequence[RewardFunction]
) -> Any:
    """Return the samples that are there already, or what is needed to draw them: engine and prompts."""
    if config.completions_from.path:
        return scorable_samples(read_completions(config.completions_from), rewards, config)
    from lmrl.engines.opening import open_engine  # torch is loaded where something is sampled
    from lmrl.stages.prefer.drawing import prepare_prompts

    return open_engine(*config.engine.resolve(plugins)), prepare_prompts(config, plugins, prompts, rewards)


def _prefer(config: PreferConfig, annotators: Mapping[str, Annotator], source: Any, progress: bool) -> PreferResult:
    folder = Path(config.run.folder)
    if isinstance(source, CandidateSet):
        write_samples(folder, source)
    elif source is not None:
        from lmrl.stages.prefer.drawing import draw_samples

        engine, prompts = source
        with closing(engine), stop_requests("batch") as should_stop:
            if not draw_samples(config, engine, prompts, folder, should_stop, progress, _rewards(annotators)):
                empty = make_report([], {}, {}, {}, config.run.seed)
                return PreferResult(folder, None, None, empty, {}, interrupted=True)
    samples, skipped = load_samples(folder)
    judgements, stopped, interrupted, failure = _ask_all(config, annotators, samples, folder, progress)
    written = _write(config, samples, judgements, folder)
    report = make_report(samples, judgements.answers, judgements.counts, skipped, config.run.seed)
    write_report(folder, report)
    plot_report(folder, report)
    if failure is not None:
        raise AnnotatorError(f"{failure} Continue with: lmrl prefer --resume {folder}") from failure
    return PreferResult(folder, *written, report, stopped, interrupted)


@dataclass
class _Answers:
    """Judgements of annotators, and the cost of each of them, by their names."""

    answers: dict[str, dict[int, Judgement | Unanswered]]
    counts: dict[str, dict[str, int]]

    def judgements(self, name: str) -> dict[int, Judgement]:
        return {i: answer for i, answer in self.answers.get(name, {}).items() if isinstance(answer, Judgement)}


def _ask_all(
    config: PreferConfig,
    annotators: Mapping[str, Annotator],
    samples: Sequence[Candidates],
    folder: Path,
    progress: bool,
) -> tuple[_Answers, dict[str, str], bool, AnnotatorError | None]:
    found, stopped = _Answers({}, {}), {}
    interrupted, failure = False, None
    comparisons = [sample.comparison for sample in samples]
    rankable = [index for index, sample in enumerate(samples) if sample.rankable]
    digest = hashlib.sha256((folder / SAMPLES_FILE).read_bytes()).hexdigest()
    # Who answers by themselves comes first: a person should not sit and wait for them.
    for name in sorted(annotators, key=lambda name: isinstance(annotators[name], PersonAnnotator)):
        annotator = annotators[name]
        journal = Journal(journal_path(folder, name), {"annotator": name, "samples": digest})
        try:
            if not interrupted and failure is None:
                left = [index for index in rankable if index not in journal.settled]
                reason, interrupted = _ask(annotator, comparisons, left, journal, name, progress)
                if reason:
                    stopped[name] = reason
        except AnnotatorError as error:
            failure = error
        finally:
            journal.close_session(getattr(annotator, "counts", {}))
        found.answers[name], found.counts[name] = journal.answers, journal.counts
    if GOLD not in annotators:
        gold = {i: Judgement(sample.gold_ranks) for i, sample in enumerate(samples) if sample.gold_ranks}
        if gold:
            found.answers[GOLD], found.counts[GOLD] = dict(gold), {}
    return found, stopped, interrupted, failure


def _ask(
    annotator: Annotator,
    comparisons: Sequence[Comparison],
    left: Sequence[int],
    journal: Journal,
    name: str,
    progress: bool,
) -> tuple[str, bool]:
    """Ask about what is left; return why not all of it was answered, and whether somebody interrupted."""
    if not left:
        return "", False
    asked = [comparisons[index] for index in left]
    if isinstance(annotator, PersonAnnotator):  # it shows what it asks and listens to Ctrl-C itself
        for place, answer in annotator.stream(asked):
            journal.append(left[place], answer)
        return annotator.stopped, bool(annotator.stopped)
    bar = tqdm(total=len(asked), desc=name, unit="prompt", disable=not progress)
    with bar, stop_requests("answer") as should_stop:
        if isinstance(annotator, StreamingAnnotator):
            for place, answer in annotator.stream(asked, should_stop):
                journal.append(left[place], answer)
                bar.update()
            reason = annotator.stopped
        else:
            reason = ""
            for start in range(0, len(asked), COMPARISONS_AT_ONCE):
                if should_stop():
                    break
                part = asked[start : start + COMPARISONS_AT_ONCE]
                answers = [answer or Unanswered("failed") for answer in annotator.judge(part)]
                journal.append_all(zip(left[start : start + len(part)], answers, strict=True))
                bar.update(len(part))
        if should_stop():
            return "interrupted", True
    return reason, False


def _write(
    config: PreferConfig, samples: Sequence[Candidates], answers: _Answers, folder: Path
) -> tuple[Path | None, Path | None]:
    """Write the rankings and pairs of the annotators that the output names, and return the files."""
    suffix = config.output.format
    files = folder / f"rankings.{suffix}", folder / f"pairs.{suffix}"
    own = [name for name in answers.answers if name != GOLD]
    names = config.output.annotators or [name for name in [*config.annotators, *own] if name in own][:1]
    comparisons = [sample.comparison for sample in samples]
    rankings, pairs = [], []
    for name in names:
        judged = answers.judgements(name)
        rankings += list(ranking_rows(comparisons, judged, name))
        pairs += list(pair_rows(comparisons, judged, config.output.pairs))
    as_text = write_rows(files[0], rankings, suffix) if rankings else []
    if pairs:
        write_rows(files[1], pairs, suffix)
    for name in as_text:
        logger.warning(f"{files[0]}: the column {name!r} holds values of kinds that no table takes, so it is JSON text")
    return files[0] if rankings else None, files[1] if pairs else None
