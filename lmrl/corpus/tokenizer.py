"""Training a tokenizer, or bringing one, and encoding whole documents with it.

What is written is a folder in the transformers layout (``tokenizer.json``, ``tokenizer_config.json``) that
``AutoTokenizer`` and ``lmrl.text.load_card`` read. Needs ``tokenizers``, imported when first used.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmrl.corpus.settings import TokenizerSettings
from lmrl.errors import DataError, ModelError
from lmrl.text.card import PLAIN_TOKENIZER_CLASSES, load_codec
from lmrl.text.codec import TransformersCodec, read_tokenizer
from lmrl.text.files import CheckpointFiles, find_files

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
SPECIALS = (PAD, EOS, UNKNOWN)
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
"""Files that make a tokenizer in a model's folder."""
WORD = "\\w+(?:['\u2019-]\\w+)*|[^\\w\\s]"
"""A word, with the apostrophes and hyphens inside it, or one punctuation mark."""
CLOSING = (":", ";", ")", "]", "\u201d", "\u2019", "\u2026", "%")
"""Marks that stand directly after a word; the decoder's own cleaning knows . , ? ! only."""
PIECE_CHARACTERS = 100_000
_CUT = re.compile(r"(?<=[^\W\d_])(?=[ \n][^\W\d_])")
"""Between a letter and a single space before a letter: byte-level and word-level tokenizers split there anyway."""


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings, folder: Path) -> None:
    """Train a tokenizer on texts and write it into ``folder``. Raises ``DataError`` when there is no text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    specials = [AddedToken(token, special=True, normalized=False) for token in SPECIALS]
    if settings.kind == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = _word_splitter()
        # The decoder works on single tokens, so what a row of ids says does not depend on the ids that follow it.
        marks = [decoders.Replace(f" {mark}", mark) for mark in CLOSING]
        tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), *marks])
        trainer: Any = trainers.WordLevelTrainer(
            vocab_size=settings.vocabulary_size,
            min_frequency=settings.min_frequency,
            special_tokens=specials,
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=len(alphabet) + len(SPECIALS) if settings.kind == "bytes" else settings.vocabulary_size,
            min_frequency=settings.min_frequency,
            special_tokens=specials,
            initial_alphabet=alphabet,  # all 256 bytes, so that any text can be written
            show_progress=False,
        )
    tokenizer.train_from_iterator(_batches(texts, settings.max_characters), trainer=trainer)
    if tokenizer.get_vocab_size() <= len(SPECIALS):
        raise DataError("the corpus holds no word often enough to train a tokenizer on; lower tokenizer.min_frequency.")
    _write(tokenizer, folder, {"pad_token": PAD, "eos_token": EOS, "unk_token": UNKNOWN})


def bring_tokenizer(source: str, settings: TokenizerSettings, folder: Path) -> None:
    """Copy a tokenizer into ``folder``: that of a model's folder, a tokenizer.json, a vocabulary, or one on the hub.

    Raises ``ModelError`` when there is none, or when it has no token that ends a document.
    """
    path, from_hub = Path(source).expanduser(), False
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.name == "tokenizer.json":
        path = path.parent
    elif path.is_dir() or not path.exists():
        files = _find(source)
        path, from_hub = files.tokenizer, bool(files.hub_id)
    if (path / "tokenizer.json").exists():
        for name in FILES:
            if (path / name).exists():
                shutil.copy(path / name, folder / name)
        if not (folder / "tokenizer_config.json").exists():
            _write_settings(folder, {"eos_token": settings.eos_token} if settings.eos_token else {})
    elif (path / "vocab.json").exists() and (path / "merges.txt").exists():
        _byte_level(path, settings, folder)
    elif not from_hub:
        found = ", ".join(sorted(item.name for item in path.iterdir())[:8]) if path.is_dir() else path.name
        raise ModelError(
            f"{path} holds no tokenizer; found {found or 'nothing'}, expected tokenizer.json, or vocab.json with "
            "merges.txt."
        )
    else:
        _save_backend(path, folder, settings.trust_remote_code)
    if settings.eos_token:
        content = _settings(folder)
        _write_settings(folder, {**content, "eos_token": settings.eos_token})


def _byte_level(path: Path, settings: TokenizerSettings, folder: Path) -> None:
    """Build the byte-level tokenizer that GPT-2's two files describe."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    try:
        vocabulary, merges = models.BPE.read_file(str(path / "vocab.json"), str(path / "merges.txt"))
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    except Exception as error:  # the library raises its own bare exceptions
        raise ModelError(f"{path}: vocab.json and merges.txt make no tokenizer ({error})") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = settings.eos_token or ("<|endoftext|>" if "<|endoftext|>" in vocabulary else EOS)
    tokenizer.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    _write(tokenizer, folder, {"eos_token": end, "pad_token": end, "unk_token": end})


def _find(source: str) -> CheckpointFiles:
    try:
        return find_files(source)
    except ModelError as error:
        raise ModelError(
            f"{source} is neither a folder with a tokenizer nor one on the hub that can be reached ({error})"
        ) from error


def _save_backend(source: Path, folder: Path, trust_remote_code: bool) -> None:
    """Write the tokenizer of a hub id that comes without tokenizer.json, as transformers reads it."""
    codec = load_codec(source, trust_remote_code)
    assert isinstance(codec, TransformersCodec)
    codec.tokenizer.save_pretrained(folder)


def _word_splitter() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)


def _batches(texts: Iterable[str], max_characters: int) -> Iterator[list[str]]:
    batch: list[str] = []
    size = total = 0
    for text in texts:
        for piece in pieces(text):
            batch.append(piece)
            size += len(piece)
            total += len(piece)
            if size > PIECE_CHARACTERS:
                yield batch
                batch, size = [], 0
            if max_characters and total >= max_characters:
                yield batch
                return
    yield batch


def pieces(text: str) -> list[str]:
    """Cut a long text where byte-level and word-level tokenizers split anyway: their tokens stay the same."""
    if len(text) <= PIECE_CHARACTERS:
        return [text]
    found, start = [], 0
    while len(text) - start > PIECE_CHARACTERS:
        cut = _CUT.search(text, start + PIECE_CHARACTERS)
        if cut is None:
            break
        found.append(text[start : cut.start()])
        start = cut.start()
    return [*found, text[start:]]


def _write(tokenizer: Any, folder: Path, specials: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_settings(folder, specials)


def _write_settings(folder: Path, specials: dict[str, str]) -> None:
    settings = {"tokenizer_class": PLAIN_TOKENIZER_CLASSES[1], "clean_up_tokenization_spaces": False, **specials}
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return content if isinstance(content, dict) else {}


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """Return the ``tokenizers.Tokenizer`` in a folder; raises ``ModelError`` where there is none behind it."""
    if _settings(folder).get("tokenizer_class", PLAIN_TOKENIZER_CLASSES[0]) in PLAIN_TOKENIZER_CLASSES:
        return read_tokenizer(folder / "tokenizer.json")
    return _backend(folder, trust_remote_code)


class DocumentEncoder:
    """Encodes documents with the tokenizer in a folder, each closed by the end token.

    A document begins with what the tokenizer's own template puts there (a BOS, say). Special tokens that are written
    in a text are text here: nothing in a document can end it.
    """

    def __init__(self, folder: Path, trust_remote_code: bool = False) -> None:
        self.folder = folder
        settings = _settings(folder)
        self.tokenizer = load_tokenizer(folder, trust_remote_code)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.eos_id = self._special("eos_token", settings)
        self.pad_id = self._special("pad_token", settings, self.eos_id)
        unknown = self._special("unk_token", settings, -1)
        self.unknown_id = unknown if unknown != self.eos_id else -1  # GPT-2 names one token for everything
        self.vocabulary_size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        template = list(self.tokenizer.encode("").ids)
        self.prefix = [token for token in template if token != self.eos_id]
        self.tokenizer.encode_special_tokens = True
        self._cuts = self._may_cut()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each document, begun and closed."""
        if not self._cuts or max(map(len, texts), default=0) <= PIECE_CHARACTERS:
            encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [[*self.prefix, *encoding.ids, self.eos_id] for encoding in encoded]
        rows = []
        for text in texts:
            row = list(self.prefix)
            for encoding in self.tokenizer.encode_batch_fast(pieces(text), add_special_tokens=False):
                row += encoding.ids
            rows.append([*row, self.eos_id])
        return rows

    def decode(self, row: Sequence[int]) -> str:
        """Return the text of a document's ids, without what begins and closes it."""
        text: str = self.tokenizer.decode(list(row)[len(self.prefix) : -1], skip_special_tokens=False)
        return text

    def fingerprint(self) -> str:
        """Return a hash of all that the ids depend on."""
        content = self.tokenizer.to_str() + repr((self.prefix, self.eos_id))
        return hashlib.sha256(content.encode()).hexdigest()

    def _special(self, name: str, settings: dict[str, Any], default: int | None = None) -> int:
        value = settings.get(name)
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            found = self.tokenizer.token_to_id(token)
            if found is not None:
                return int(found)
        if default is not None:
            return default
        raise ModelError(
            f"{self.folder}: the tokenizer names no {name} in its vocabulary"
            + (f" (found {token!r})" if token else "")
            + "; name the token that ends a document: tokenizer.eos_token=..."
        )

    def _may_cut(self) -> bool:
        content = json.loads(self.tokenizer.to_str())
        splitter = content.get("pre_tokenizer") or {}
        byte_level = (
            splitter.get("type") == "ByteLevel" and splitter.get("use_regex") and not splitter["add_prefix_space"]
        )
        words = splitter.get("type") == "Split" and splitter.get("pattern") == {"Regex": WORD}
        return content.get("normalizer") is None and bool(byte_level or words)


def _backend(folder: Path, trust_remote_code: bool) -> Any:
    codec = load_codec(folder, trust_remote_code)
    tokenizer: Any = codec.tokenizer if isinstance(codec, TransformersCodec) else None
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{folder}: {type(tokenizer).__name__} is not backed by tokenizers, which packing needs; use a tokenizer "
            "that is stored as tokenizer.json."
        )
    return tokenizer.backend_tokenizer
