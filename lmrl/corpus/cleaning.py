"""From raw to clean documents: repair, language, quality, duplicates, one document at a time, each loss counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from lmrl.corpus.documents import Document, extra
from lmrl.corpus.duplicates import ExactDuplicates, NearDuplicates
from lmrl.corpus.quality import broken_rule, filter_lines
from lmrl.corpus.report import CorpusReport
from lmrl.corpus.settings import CleanSettings
from lmrl.errors import SettingsError, unknown

Step = Callable[[Document, CorpusReport], Document | None]
"""Returns the document, changed or not, or None when it is left out and counted."""
LANGUAGE_CHARACTERS = 20_000
"""Characters that a document's language is told from."""


class Cleaner:
    """The steps that settings ask for. What they remember lives as long as this object.

    Raises ``DataError`` when a step's library is missing and ``SettingsError`` for a language that nobody knows.
    """

    def __init__(self, settings: CleanSettings) -> None:
        self.settings = settings
        self.steps: list[Step] = []
        if settings.fix_encoding:
            self.steps.append(_repair())
        if settings.languages:
            self.steps.append(_languages(settings))
        if settings.quality:
            self.steps.append(self._quality)
        if settings.exact_duplicates:
            self.steps.append(_unseen("exact duplicates", "equal to an earlier document", ExactDuplicates()))
        if settings.near_duplicates:
            memory = NearDuplicates(settings.near_threshold, settings.permutations, settings.shingle_words)
            reason = f"similarity of at least {settings.near_threshold} to an earlier document"
            self.steps.append(_unseen("near duplicates", reason, memory))

    def clean(self, documents: Iterable[Document], report: CorpusReport) -> Iterator[Document]:
        """Yield the documents that come through, in their order."""
        for document in documents:
            kept: Document | None = document
            for step in self.steps:
                kept = step(kept, report) if kept is not None else None
            if kept is not None:
                report.keep(kept)
                yield kept

    def _quality(self, document: Document, report: CorpusReport) -> Document | None:
        text, removed = filter_lines(document.text, self.settings.rules)
        for what, characters in removed.items():
            report.change("quality", what, document, characters)
        reason = broken_rule(text, self.settings.rules)
        if not reason and not text.strip():
            reason = "no line left"
        if reason:
            report.drop("quality", reason, document)
            return None
        return document if text is document.text else replace(document, text=text.strip())


def _repair() -> Step:
    ftfy = extra("ftfy", "clean.fix_encoding")

    def step(document: Document, report: CorpusReport) -> Document:
        # Letters alone: quotes and ligatures are as their author wrote them.
        fixed = ftfy.fix_text(document.text, uncurl_quotes=False, fix_latin_ligatures=False)
        if fixed == document.text:
            return document
        report.change("repair", "encoding repaired", document, 0)
        return replace(document, text=fixed)

    return step


def _languages(settings: CleanSettings) -> Step:
    langid = extra("py3langid.langid", "clean.languages")
    identifier: Any = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    known = [str(name) for name in identifier.nb_classes]
    for name in settings.languages:
        if name not in known:
            raise SettingsError(f"clean.languages: {unknown('language', name, known)}")
    wanted = set(settings.languages)

    def step(document: Document, report: CorpusReport) -> Document | None:
        language, probability = identifier.classify(document.text[:LANGUAGE_CHARACTERS])
        if language not in wanted:
            report.drop("language", f"language {language}", document)
            return None
        if probability < settings.min_language_probability:
            report.drop("language", "language uncertain", document)
            return None
        return document

    return step


def _unseen(step_name: str, reason: str, memory: ExactDuplicates | NearDuplicates) -> Step:
    def step(document: Document, report: CorpusReport) -> Document | None:
        if memory.seen_before(document.text):
            report.drop(step_name, reason, document)
            return None
        return document

    return step
