"""Stop strings in the texts of responses. Needs neither torch nor transformers.

Special tokens are not part of a text, but a stop string may name them: it is searched for in the text with them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from lmrl.text.codec import Ids, TextCodec, continuations


def contains_stop(codec: TextCodec, prompt: Ids, response: Ids, stop_strings: Sequence[str]) -> bool:
    """Return whether the response's text holds a stop string; one that names special tokens may match these."""
    if not stop_strings:
        return False
    if first_stop(continuations(codec, [prompt], [response])[0], stop_strings) is not None:
        return True
    marked = stops_with_tokens(codec, stop_strings)
    return bool(marked) and first_stop(continuations(codec, [prompt], [response], special=True)[0], marked) is not None


def certain_text(codec: TextCodec, prompt: Ids, response: Ids, stop_strings: Sequence[str]) -> str:
    """Return the beginning of a response's text that no further token can change or turn into a stop string."""
    text = continuations(codec, [prompt], [response])[0]
    text = text[: _certain(text, stop_strings)]
    marked = stops_with_tokens(codec, stop_strings)
    if not marked:
        return text
    shown = continuations(codec, [prompt], [response], special=True)[0]
    return min(text, text_before(codec, prompt, response, _certain(shown, marked)), key=len)


def text_before(codec: TextCodec, prompt: Ids, row: Ids, end: int) -> str:
    """Return a response's text without special tokens, up to character ``end`` of its text with them."""

    def shown(count: int) -> str:
        return continuations(codec, [prompt], [row[:count]], special=True)[0]

    # The first tokens whose text with special tokens ends at or before ``end``.
    count = bisect_right(range(len(row) + 1), end, key=lambda size: len(shown(size))) - 1
    text, following = continuations(codec, [prompt] * 2, [row[:count], row[: count + 1]])
    return text if following == text else text + shown(count + 1)[len(shown(count)) : end]


def stops_with_tokens(codec: TextCodec, stop_strings: Sequence[str]) -> list[str]:
    """Return the stop strings that name one of the tokenizer's added tokens."""
    if not stop_strings:
        return []
    tokens = [token for token in codec.added_tokens if token.strip()]
    return [stop for stop in stop_strings if any(token in stop for token in tokens)]


def _certain(text: str, stops: Sequence[str]) -> int:
    """Return how many characters of a text cannot change or vanish with the tokens to come."""
    end = len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    for stop in stops:
        for size in range(min(len(stop) - 1, end), 0, -1):
            if text[:end].endswith(stop[:size]):
                end -= size
                break
    return end


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the first stop string begins, or None."""
    return min((at for at in map(text.find, stops) if at >= 0), default=None)
