"""Sections of a pretraining recipe that make its corpus; importable without any of the libraries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lmrl.config.unread import only_if
from lmrl.errors import SettingsError


@dataclass
class CorpusSettings:
    """Sources of text, and the folder of the prepared corpus."""

    paths: list[str] = field(default_factory=list)
    """Files, folders, globs or ids on the hub: .txt, .html, .json, .jsonl, .csv (also with .gz and .zst), .parquet,
    .arrow, .warc and .wet (also with .gz)."""
    folder: str = ""
    """Folder of the prepared corpus; empty is runs/corpora/<fingerprint of sources and settings>, which a second
    run finds again."""
    column: str = "text"
    """Column of the text in JSON, CSV and tables."""
    separator: str = ""
    """Separator of the documents of a .txt file: "\\n\\n" is an empty line. Empty: a file is one document."""
    split: str = "train"
    """Split of a data set on the hub, or in a folder saved by datasets."""
    subset: str = ""
    """Configuration of a data set on the hub."""
    revision: str = ""
    """Branch, tag or commit on the hub."""
    limit: int = 0
    """Documents read at the most; 0 is all."""
    held_out: float = 0.01
    """Share that training never sees: of the documents, chosen by their hash; of a corpus of whole .txt files, the
    last part of each."""
    held_out_paths: list[str] = field(default_factory=list)
    """Files of held-out documents; used instead of the share."""
    shard_tokens: int = 1 << 27
    """Tokens per file of the packed corpus."""
    keep_text: bool = True
    """Keep the cleaned documents as JSON lines beside the tokens."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise SettingsError(f"corpus.held_out is {self.held_out}; expected a share from 0 to below 1")
        if self.limit < 0:
            raise SettingsError(f"corpus.limit is {self.limit}; expected 0 (all) or a number of documents")
        if self.shard_tokens < 1:
            raise SettingsError(f"corpus.shard_tokens is {self.shard_tokens}; expected at least 1")
        if not self.column:
            raise SettingsError("corpus.column is empty; expected the name of the column that holds the text")

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        return only_if(not self.held_out_paths, "held_out_paths left out", "held_out")


@dataclass
class QualityRules:
    """Rules that tell prose from what else is on the web; a document that breaks one is left out.

    [G] are the thresholds of Gopher (Rae et al. 2021, appendix A.1.1, English), [C] the rules of C4 (Raffel et al.
    2020, section 2.2). A number of 0, or false, switches a rule off.
    """

    min_words: int = 50
    """[G] Fewest words of a document."""
    max_words: int = 100_000
    """[G] Most words of a document."""
    min_mean_word_length: float = 3.0
    """[G] Lowest mean length of a word in characters."""
    max_mean_word_length: float = 10.0
    """[G] Highest mean length of a word in characters."""
    max_symbol_ratio: float = 0.1
    """[G] Most hash signs, and most ellipses, per word."""
    max_bullet_lines: float = 0.9
    """[G] Largest share of lines that start with a bullet point."""
    max_ellipsis_lines: float = 0.3
    """[G] Largest share of lines that end with an ellipsis."""
    min_alphabetic_words: float = 0.8
    """[G] Smallest share of words that hold a letter."""
    min_stop_words: int = 2
    """[G] How many of the, be, to, of, and, that, have, with must occur. Set it to 0 for other languages."""
    max_repeated_lines: float = 0.3
    """[G] Largest share of lines that occurred before in the document."""
    max_repeated_line_characters: float = 0.2
    """[G] Largest share of characters in lines that occurred before."""
    lorem_ipsum: bool = True
    """[C] Leave out documents with placeholder text."""
    curly_brackets: bool = True
    """[C] Leave out documents with a curly bracket, most of them program code."""
    script_lines: bool = True
    """[C] Remove lines with the word javascript."""
    policy_lines: bool = True
    """[C, in its code] Remove lines on terms of use, privacy policies and cookies."""
    punctuated_lines: bool = False
    """[C] Remove lines that do not end in . ! ? or a quotation mark: rigorous, it takes headings and lists as well."""
    max_word_length: int = 1000
    """[C, in its code] Remove lines with a longer word."""


@dataclass
class CleanSettings:
    """Cleaning of documents before they are packed. By default only equal documents are left out."""

    exact_duplicates: bool = True
    """Keep the first of documents that are equal up to case and white space."""
    near_duplicates: bool = False
    """Keep the first of documents whose word shingles overlap; MinHash with locality-sensitive hashing (text extra)."""
    near_threshold: float = 0.8
    """Jaccard similarity from which two documents are near duplicates."""
    permutations: int = 128
    """Hash functions of MinHash: more estimate the similarity better and take longer."""
    shingle_words: int = 5
    """Words per shingle."""
    fix_encoding: bool = False
    """Repair text that was decoded by the wrong table, by ftfy (text extra)."""
    languages: list[str] = field(default_factory=list)
    """Keep documents in these languages, as ISO 639-1 codes, by py3langid (text extra). Empty keeps all."""
    min_language_probability: float = 0.5
    """Probability from which a document is taken to be in one of the languages."""
    quality: bool = False
    """Apply the rules of [clean.rules]."""
    rules: QualityRules = field(default_factory=QualityRules)

    def __post_init__(self) -> None:
        if not 0 < self.near_threshold <= 1:
            raise SettingsError(f"clean.near_threshold is {self.near_threshold}; expected more than 0 and at most 1")
        if not 0 <= self.min_language_probability <= 1:
            raise SettingsError(f"clean.min_language_probability is {self.min_language_probability}; expected 0 to 1")
        for name, lowest in (("permutations", 2), ("shingle_words", 1)):
            if getattr(self, name) < lowest:
                raise SettingsError(f"clean.{name} is {getattr(self, name)}; expected at least {lowest}")

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        near = ("near_threshold", "permutations", "shingle_words")
        found = only_if(self.near_duplicates, "near_duplicates=true", *near)
        found |= only_if(bool(self.languages), "languages set", "min_language_probability")
        return found | only_if(self.quality, "quality=true", "rules")


@dataclass
class TokenizerSettings:
    """A tokenizer to bring, or one to train on the corpus."""

    path: str = ""
    """Folder, tokenizer.json, or id on the hub of a tokenizer to use; a folder of vocab.json and merges.txt will do.
    Empty: train one."""
    kind: Literal["bpe", "words", "bytes"] = "bpe"
    """bpe: byte-level byte-pair encoding, any text survives it; words: one token per word and punctuation mark, white
    space and rare words do not survive it; bytes: one token per byte."""
    vocabulary_size: int = 8192
    """Tokens at the most, the three special ones included."""
    min_frequency: int = 2
    """Occurrences that make a pair or a word a token."""
    max_characters: int = 500_000_000
    """Characters to train on, from the beginning of the corpus; 0 is all."""
    eos_token: str = ""
    """Token that ends a document, for a brought tokenizer that names none."""
    trust_remote_code: bool = False
    """Run Python code that a brought tokenizer comes with; read that code first."""

    def __post_init__(self) -> None:
        if self.min_frequency < 1:
            raise SettingsError(f"tokenizer.min_frequency is {self.min_frequency}; expected at least 1")
        if self.max_characters < 0:
            raise SettingsError(f"tokenizer.max_characters is {self.max_characters}; expected 0 (all) or more")
        lowest = {"bpe": 260, "words": 4, "bytes": 0}[self.kind]  # 256 bytes and the specials; bytes ignores it
        if not self.path and self.vocabulary_size < lowest:
            raise SettingsError(
                f"tokenizer.vocabulary_size is {self.vocabulary_size}; expected at least {lowest} for {self.kind!r}"
            )

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        made = ("kind", "vocabulary_size", "min_frequency", "max_characters")
        found = only_if(not self.path, "path left out", *made)
        return found | only_if(self.kind != "bytes", "kind=bpe or words", *made[1:])
