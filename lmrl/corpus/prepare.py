"""From sources to a packed corpus: clean documents, a tokenizer, token files, each step finished or not there at all.

A step writes under another name and renames its folder when it is done, so a kill leaves no half corpus; what was done
before it is found again, and the step itself starts anew. Leaves out doing a step on several processes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from lmrl.corpus.cleaning import Cleaner
from lmrl.corpus.documents import Document
from lmrl.corpus.duplicates import text_hash
from lmrl.corpus.report import CorpusReport
from lmrl.corpus.settings import CleanSettings, CorpusSettings, TokenizerSettings
from lmrl.corpus.sources import Source, find_sources, read_documents
from lmrl.corpus.tokenizer import DocumentEncoder, bring_tokenizer, train_tokenizer
from lmrl.corpus.tokens import SPLITS, TokenFiles, TokenWriter
from lmrl.errors import DataError
from lmrl.locks import LOCK_FILE, folder_lock

CORPUS_FILE = "corpus.json"
REPORT_FILE = "report.json"
DOCUMENTS, TOKENIZER, TOKENS = "documents", "tokenizer", "tokens"
DEFAULT_PARENT = Path("runs") / "corpora"
FEW_TEXT_FILES = 100
"""Fewer whole .txt files than this, and the held-out part is the end of each: too few to choose some by hash."""
BATCH_CHARACTERS = 1_000_000
BATCH_DOCUMENTS = 2000
LEFT_OUT_OF_FINGERPRINT = ("folder", "keep_text")


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus ready for training: where it is, what became of the documents, its tokens and its tokenizer."""

    folder: Path
    report: CorpusReport
    tokens: TokenFiles

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer, in the transformers layout."""
        return self.folder / TOKENIZER


def prepare_corpus(
    corpus: CorpusSettings,
    clean: CleanSettings | None = None,
    tokenizer: TokenizerSettings | None = None,
    *,
    progress: bool = True,
) -> PreparedCorpus:
    """Clean, tokenise and pack a corpus, or find it where an earlier call has left it.

    Raises ``SettingsError`` and ``DataError`` for settings and sources that cannot be used, and ``DataError`` when
    ``corpus.folder`` holds a corpus made of other sources or with other settings.
    """
    clean, tokenizer = clean or CleanSettings(), tokenizer or TokenizerSettings()
    sources = find_sources(corpus.paths)
    held_out = find_sources(corpus.held_out_paths) if corpus.held_out_paths else []
    fingerprint = _fingerprint(corpus, clean, tokenizer, sources, held_out)
    folder = Path(corpus.folder) if corpus.folder else DEFAULT_PARENT / fingerprint[:12]
    cleaner = Cleaner(clean)  # before anything is written: a missing library or an unknown language
    if tokenizer.path and not (folder / TOKENIZER).exists():
        with TemporaryDirectory(prefix="lmrl-tokenizer-") as trial:  # documents may take long to read
            _make_tokenizer(folder, Path(trial), tokenizer, progress)
    with folder_lock(folder, _tell_of_waiting(folder)), _nothing_left_of_a_failure(folder):
        _claim(folder, fingerprint)
        with _step(folder / DOCUMENTS) as partial:
            if partial is not None:
                report = _write_documents(partial, corpus, cleaner, sources, held_out, progress)
                _write_json(partial / REPORT_FILE, report.to_json())
        with _step(folder / TOKENIZER) as partial:
            if partial is not None:
                _make_tokenizer(folder, partial, tokenizer, progress)
        with _step(folder / TOKENS) as partial:
            if partial is not None:
                _pack(folder, partial, corpus.shard_tokens, progress, tokenizer.trust_remote_code)
        if not corpus.keep_text:
            for split in SPLITS:
                (folder / DOCUMENTS / f"{split}.jsonl").unlink(missing_ok=True)
    return open_corpus(folder)


def open_corpus(folder: str | Path) -> PreparedCorpus:
    """Open a corpus that ``prepare_corpus`` has finished; raises ``DataError`` when there is none."""
    path = Path(folder)
    if not (path / TOKENS).is_dir():
        raise DataError(f"{path} holds no finished corpus; prepare it with lmrl pretrain corpus.folder={path}")
    report = CorpusReport.from_json(json.loads((path / DOCUMENTS / REPORT_FILE).read_text(encoding="utf-8")))
    tokens = TokenFiles.open(path / TOKENS)
    report.notes += [note for note in tokens.manifest.get("notes", []) if note not in report.notes]
    return PreparedCorpus(path, report, tokens)


def _fingerprint(
    corpus: CorpusSettings,
    clean: CleanSettings,
    tokenizer: TokenizerSettings,
    sources: Sequence[Source],
    held_out: Sequence[Source],
) -> str:
    settings = {name: value for name, value in asdict(corpus).items() if name not in LEFT_OUT_OF_FINGERPRINT}
    settings |= {"paths": [], "held_out_paths": []}  # what the files hold counts, not where they are
    parts: list[Any] = [
        settings,
        asdict(clean),
        {key: value for key, value in asdict(tokenizer).items() if key != "trust_remote_code"},
    ]
    parts += [[source.fingerprint(corpus) for source in group] for group in (sources, held_out)]
    if tokenizer.path and Path(tokenizer.path).expanduser().exists():
        parts += [source.fingerprint(corpus) for source in _tokenizer_files(tokenizer.path)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _tokenizer_files(path: str) -> list[Source]:
    from lmrl.corpus.tokenizer import FILES
    from lmrl.text.folders import model_folder

    folder = model_folder(path)
    return [Source(name, folder / name) for name in FILES if (folder / name).exists()]


def _tell_of_waiting(folder: Path) -> Callable[[str], None]:
    """Two runs on one corpus share the work of the first."""
    return lambda holder: tqdm.write(f"Waiting for {holder}, which prepares {folder}.")


@contextmanager
def _nothing_left_of_a_failure(folder: Path) -> Iterator[None]:
    """Remove the folder if an error left it without any finished step."""
    try:
        yield
    except BaseException:
        if not any((folder / step).exists() for step in (DOCUMENTS, TOKENIZER, TOKENS)):
            shutil.rmtree(folder / f"{DOCUMENTS}.partial", ignore_errors=True)
            for name in (CORPUS_FILE, LOCK_FILE):
                (folder / name).unlink(missing_ok=True)
            _remove_empty(folder)
        raise


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
        if folder.parent == DEFAULT_PARENT:
            folder.parent.rmdir()
            folder.parent.parent.rmdir()
    except OSError:
        pass  # something of the user's, or another corpus, is in it


def _claim(folder: Path, fingerprint: str) -> None:
    """Say whose folder this is; what another corpus began there and never finished is given up."""
    file = folder / CORPUS_FILE
    if file.exists() and any((folder / step).exists() for step in (DOCUMENTS, TOKENIZER, TOKENS)):
        found = json.loads(file.read_text(encoding="utf-8"))["fingerprint"]
        if found != fingerprint:
            raise DataError(
                f"{folder} holds a corpus made of other sources or with other settings; choose another corpus.folder, "
                "leave it empty, or remove that one."
            )
        return
    _write_json(file, {"fingerprint": fingerprint})


@contextmanager
def _step(final: Path) -> Iterator[Path | None]:
    """Yield a folder to write into, renamed to ``final`` afterwards; None when that is there already."""
    if final.exists():
        yield None
        return
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(final)


def _write_json(path: Path, content: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _write_documents(
    folder: Path,
    corpus: CorpusSettings,
    cleaner: Cleaner,
    sources: Sequence[Source],
    held_out: Sequence[Source],
    progress: bool,
) -> CorpusReport:
    """Write the clean documents of both splits. Held-out files come first: what they hold leaves the training set."""
    report = CorpusReport()
    tails = not corpus.separator and len(sources) < FEW_TEXT_FILES and all(source.is_whole_text for source in sources)
    counts = dict.fromkeys(SPLITS, 0)
    files = {split: (folder / f"{split}.jsonl").open("w", encoding="utf-8") for split in SPLITS}
    try:
        with tqdm(desc="reading and cleaning", unit="document", disable=not progress, mininterval=0.5) as bar:
            for group, split_of in ((held_out, _all_held_out), (sources, _splitter(corpus, tails, bool(held_out)))):
                for document in cleaner.clean(read_documents(group, corpus, report), report):
                    for split, text in split_of(document):
                        row = {"text": text, "source": document.source, "number": document.number}
                        if document.address:
                            row["url"] = document.address
                        files[split].write(json.dumps(row, ensure_ascii=False) + "\n")
                        counts[split] += 1
                    bar.update()
    finally:
        for file in files.values():
            file.close()
    _require_both(counts, corpus, report)
    return report


def _all_held_out(document: Document) -> list[tuple[str, str]]:
    return [("held_out", document.text)]


def _splitter(corpus: CorpusSettings, tails: bool, others_are_held_out: bool) -> Any:
    share = 0.0 if others_are_held_out else corpus.held_out

    def split(document: Document) -> list[tuple[str, str]]:
        if tails and share:
            cut = int(len(document.text) * (1 - share))
            parts = [("train", document.text[:cut]), ("held_out", document.text[cut:])]
            return [part for part in parts if part[1]]
        # By its hash: a document stays on its side whatever is added to the corpus, and equal ones stay together.
        place = int.from_bytes(text_hash(document.text)[:8], "big") / 2**64
        return [("held_out" if place < share else "train", document.text)]

    return split


def _require_both(counts: dict[str, int], corpus: CorpusSettings, report: CorpusReport) -> None:
    if not counts["train"]:
        reasons = "; ".join(f"{step}, {reason}: {count}" for step, reason, count, _, _ in report.rows())
        raise DataError(
            f"no document is left to train on, of {report.documents_in} read"
            + (f" ({reasons})" if reasons else "")
            + "; loosen [clean] or bring more text."
        )
    if not counts["held_out"] and (corpus.held_out or corpus.held_out_paths):
        raise DataError(
            f"corpus.held_out is {corpus.held_out}, and none of {counts['train']} documents falls into it; raise it, "
            "name corpus.held_out_paths, or set it to 0 to train without held-out numbers."
        )


def _texts(folder: Path, split: str) -> Iterator[str]:
    file = folder / DOCUMENTS / f"{split}.jsonl"
    if not file.exists():
        raise DataError(f"{file} is missing, and tokens cannot be packed without it; remove {folder} to start anew.")
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def _make_tokenizer(folder: Path, partial: Path, settings: TokenizerSettings, progress: bool) -> None:
    if settings.path:
        bring_tokenizer(settings.path, settings, partial)
    else:
        texts = tqdm(
            _texts(folder, "train"), desc="training the tokenizer", unit="document", disable=not progress, leave=False
        )
        train_tokenizer(texts, settings, partial)
    DocumentEncoder(
        partial, settings.trust_remote_code
    )  # one that cannot close a document is refused before it has a name


def _pack(folder: Path, partial: Path, shard_tokens: int, progress: bool, trust_remote_code: bool) -> None:
    encoder = DocumentEncoder(folder / TOKENIZER, trust_remote_code)
    writer = TokenWriter(partial, encoder.vocabulary_size, shard_tokens)
    unknown = dict.fromkeys(SPLITS, 0)
    changed = 0
    with tqdm(desc="packing", unit="token", unit_scale=True, disable=not progress, leave=False) as bar:
        for split in SPLITS:
            for texts in _batches(_texts(folder, split)):
                rows = encoder.encode(texts)
                writer.add(split, rows, [len(text.encode("utf-8", "surrogatepass")) for text in texts])
                unknown[split] += sum(row.count(encoder.unknown_id) for row in rows)
                if split == "held_out":
                    changed += sum(encoder.decode(row) != text for row, text in zip(rows, texts, strict=True))
                bar.update(sum(map(len, rows)))
    notes = []
    if unknown["train"] or unknown["held_out"]:
        notes.append(f"{unknown['train'] + unknown['held_out']} tokens are the unknown token")
    if changed:
        notes.append(f"the tokenizer does not give {changed} held-out documents back as they were: no bits per byte")
    writer.finish(
        {
            "tokenizer": encoder.fingerprint(),
            "eos_id": encoder.eos_id,
            "pad_id": encoder.pad_id,
            "prefix": encoder.prefix,
            "lossless": not changed,
            "notes": notes,
        }
    )


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size > BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
