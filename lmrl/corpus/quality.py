"""Rules that tell prose from menus, code and spam, as pure functions; their sources are in ``QualityRules``.

They count words as runs between white space, which needs no language's own word splitter. Leaves out classifiers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lmrl.corpus.settings import QualityRules

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "-", "*", "‣", "·")
ELLIPSES = ("...", "…")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
SENTENCE_ENDS = (".", "!", "?", '"', "\u201d", "'", "\u2019")
_EDGES = re.compile(r"^\W+|\W+$")


def filter_lines(text: str, rules: QualityRules) -> tuple[str, dict[str, int]]:
    """Return the text without the lines that the rules remove, and the characters removed by each rule."""
    kept: list[str] = []
    removed: dict[str, int] = {}
    for line in text.split("\n"):
        reason = _line_reason(line, rules)
        if reason:
            removed[reason] = removed.get(reason, 0) + len(line) + 1
        else:
            kept.append(line)
    return ("\n".join(kept) if removed else text), removed


def _line_reason(line: str, rules: QualityRules) -> str:
    stripped = line.strip()
    if not stripped:
        return ""
    lowered = stripped.lower()
    if rules.script_lines and "javascript" in lowered:
        return "lines with javascript removed"
    if rules.policy_lines and any(phrase in lowered for phrase in POLICIES):
        return "lines on policies and cookies removed"
    if rules.punctuated_lines and (not stripped.endswith(SENTENCE_ENDS) or stripped.endswith(ELLIPSES)):
        return "lines without an end of sentence removed"
    if rules.max_word_length and len(stripped) > rules.max_word_length:
        longest = max(map(len, stripped.split()))
        if longest > rules.max_word_length:
            return "lines with an overlong word removed"
    return ""


def broken_rule(text: str, rules: QualityRules) -> str:
    """Return the first rule that a document breaks, as the reason in the report, or the empty string."""
    lowered = text.lower()
    if rules.lorem_ipsum and "lorem ipsum" in lowered:
        return "lorem ipsum"
    if rules.curly_brackets and ("{" in text or "}" in text):
        return "curly bracket"
    words = text.split()
    return _word_rule(text, lowered, words, rules) or _line_rule(text, rules)


def _word_rule(text: str, lowered: str, words: Sequence[str], rules: QualityRules) -> str:
    count = len(words)
    if rules.min_words and count < rules.min_words:
        return "too few words"
    if rules.max_words and count > rules.max_words:
        return "too many words"
    if not count:
        return ""
    mean = sum(map(len, words)) / count
    if rules.min_mean_word_length and mean < rules.min_mean_word_length:
        return "words too short"
    if rules.max_mean_word_length and mean > rules.max_mean_word_length:
        return "words too long"
    symbols = max(text.count("#"), sum(text.count(mark) for mark in ELLIPSES))
    if rules.max_symbol_ratio and symbols > rules.max_symbol_ratio * count:
        return "too many symbols"
    alphabetic = sum(any(map(str.isalpha, word)) for word in words)
    if rules.min_alphabetic_words and alphabetic < rules.min_alphabetic_words * count:
        return "too few words with letters"
    if rules.min_stop_words:
        bare = {_EDGES.sub("", word) for word in lowered.split()}
        if len(STOP_WORDS & bare) < rules.min_stop_words:
            return "too few stop words"
    return ""


def _line_rule(text: str, rules: QualityRules) -> str:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return ""
    if rules.max_bullet_lines and sum(line.startswith(BULLETS) for line in lines) > rules.max_bullet_lines * len(lines):
        return "too many bullet points"
    if rules.max_ellipsis_lines:
        ending = sum(line.endswith(ELLIPSES) for line in lines)
        if ending > rules.max_ellipsis_lines * len(lines):
            return "too many lines end in an ellipsis"
    lines_again, characters_again = repeated(lines)
    if rules.max_repeated_lines and lines_again > rules.max_repeated_lines:
        return "too many repeated lines"
    if rules.max_repeated_line_characters and characters_again > rules.max_repeated_line_characters:
        return "too many characters in repeated lines"
    return ""


def repeated(lines: Sequence[str]) -> tuple[float, float]:
    """Return the share of lines that occurred before, and of characters in them.

    >>> repeated(["a", "bb", "a", "a"])
    (0.5, 0.4)
    """
    seen: set[str] = set()
    count = characters = 0
    for line in lines:
        if line in seen:
            count += 1
            characters += len(line)
        seen.add(line)
    total = sum(map(len, lines))
    return (count / len(lines), characters / total) if total else (0.0, 0.0)
