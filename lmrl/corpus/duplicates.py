"""Finding documents that occurred before: equal ones by a hash, near ones by MinHash."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

import numpy as np

from lmrl.corpus.documents import extra

_WORD = re.compile(r"\w+")
HASH_BYTES = 16


def normal_form(text: str) -> str:
    """Return what two equal documents agree in: NFC, without case, white space as single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def text_hash(text: str) -> bytes:
    """Return 16 bytes that stand for a document's normal form."""
    return hashlib.blake2b(normal_form(text).encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()


class ExactDuplicates:
    """Remembers a hash of every document: about 100 bytes of memory each."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def seen_before(self, text: str) -> bool:
        """Return whether an equal document was asked about before, and remember this one."""
        key = text_hash(text)
        if key in self._seen:
            return True
        self._seen.add(key)
        return False


class NearDuplicates:
    """Remembers MinHash signatures (Broder 1997) in locality-sensitive hash tables, by datasketch.

    A document is a near duplicate when a remembered one has at least ``threshold`` estimated Jaccard similarity of word
    shingles. The estimate's standard error is sqrt(s (1 - s) / permutations), and the tables find a pair at the
    threshold about every second time, more similar ones nearly always. About 1.5 KB of memory per document.
    """

    def __init__(self, threshold: float = 0.8, permutations: int = 128, shingle_words: int = 5) -> None:
        library = extra("datasketch", "finding near duplicates")
        self.threshold, self.shingle_words = threshold, shingle_words
        # Copied for every document: making a table of hash functions takes longer than using it.
        self._empty = library.MinHash(num_perm=permutations, hashfunc=int)
        self._tables = library.MinHashLSH(threshold=threshold, num_perm=permutations)
        self._signatures: list[Any] = []

    def seen_before(self, text: str) -> bool:
        """Return whether a document like this one is remembered; remember it if none is.

        A document without words is like no other.
        """
        signature = self.signature(text)
        if signature.is_empty():
            return False
        for key in self._tables.query(signature):
            if self._signatures[key].jaccard(signature) >= self.threshold:
                return True
        self._tables.insert(len(self._signatures), signature)
        self._signatures.append(signature)
        return False

    def signature(self, text: str) -> Any:
        """Return the MinHash of a document's shingles."""
        sketch = self._empty.copy()
        sketch.update_batch(shingle_hashes(text, self.shingle_words))
        return sketch


def shingle_hashes(text: str, words: int) -> Any:
    """Return a 32-bit hash of every run of so many words; of all words where there are fewer.

    Words are hashed once each, and runs from their hashes: the same run gives the same number in every document.
    """
    found = _WORD.findall(normal_form(text))
    if not found:
        return np.zeros(0, np.uint64)
    cache: dict[str, int] = {}
    for word in found:
        if word not in cache:
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            cache[word] = int.from_bytes(digest, "little")
    hashes = np.array([cache[word] for word in found], np.uint64)
    count = min(words, len(hashes))
    runs = np.lib.stride_tricks.sliding_window_view(hashes, count)
    mixed = np.zeros(len(runs), np.uint64)
    for column in range(count):  # a polynomial over the words, mixed after each one (SplitMix64's steps)
        mixed = (mixed ^ runs[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed >> np.uint64(32))
