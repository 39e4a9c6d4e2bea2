"""Token ids of responses as texts, and the stop strings in them. Needs neither torch nor transformers.

Special tokens are not part of a text, but a stop string may name them: it is searched for in the text with them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmrl.text.codec import TextCodec

Ids = Sequence[int]


def response_texts(
    codec: TextCodec,
    prompt_rows: Sequence[Ids],
    response_rows: Sequence[Ids],
    eos_ids: Ids = (),
    stop_strings: Sequence[str] = (),
) -> list[str]:
    """Return the text of each response, as it continues its prompt.

    A trailing EOS is left out, and so is everything from the first stop string on. Decoding prompt and response
    together keeps the space between them, which tokenizers that strip a leading space would lose.
    """
    ended = set(eos_ids)
    bare = [list(row[:-1]) if len(row) and row[-1] in ended else list(row) for row in response_rows]
    texts = continuations(codec, prompt_rows, bare)
    texts = [text[: _first(text, stop_strings)] for text in texts]
    marked = stops_with_tokens(codec, stop_strings)
    if not marked:
        return texts
    shown = continuations(codec, prompt_rows, response_rows, special=True)
    for place, whole in enumerate(shown):
        at = _first(whole, marked)
        if at is not None:
            before = text_before(codec, prompt_rows[place], response_rows[place], at)
            texts[place] = min(texts[place], before, key=len)
    return texts


def contains_stop(codec: TextCodec, prompt: Ids, response: Ids, stop_strings: Sequence[str]) -> bool:
    """Return whether the response's text holds a stop string; one that names special tokens may match these."""
    if not stop_strings:
        return False
    if _first(continuations(codec, [prompt], [response])[0], stop_strings) is not None:
        return True
    marked = stops_with_tokens(codec, stop_strings)
    return bool(marked) and _first(continuations(codec, [prompt], [response], special=True)[0], marked) is not None


def certain_text(codec: TextCodec, prompt: Ids, response: Ids, stop_strings: Sequence[str]) -> str:
    """Return the beginning of a response's text that no further token can change or turn into a stop string."""
    text = continuations(codec, [prompt], [response])[0]
    text = text[: _certain(text, stop_strings)]
    marked = stops_with_tokens(codec, stop_strings)
    if not marked:
        return text
    shown = continuations(codec, [prompt], [response], special=True)[0]
    return min(text, text_before(codec, prompt, response, _certain(shown, marked)), key=len)


def continuations(
    codec: TextCodec, prompt_rows: Sequence[Ids], rows: Sequence[Ids], special: bool = False
) -> list[str]:
    """Return the text of each row behind its prompt, with special tokens if ``special``."""
    distinct = list({tuple(row): None for row in prompt_rows})
    prompt_text = dict(zip(distinct, codec.decode_batch(distinct, special), strict=True))
    joined = codec.decode_batch([[*prompt, *row] for prompt, row in zip(prompt_rows, rows, strict=True)], special)
    texts = []
    for prompt, row, whole in zip(prompt_rows, rows, joined, strict=True):
        prefix = prompt_text[tuple(prompt)]
        texts.append(whole[len(prefix) :] if whole.startswith(prefix) else codec.decode_batch([row], special)[0])
    return texts


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


def _first(text: str, stops: Sequence[str]) -> int | None:
    return min((at for at in map(text.find, stops) if at >= 0), default=None)


def _certain(text: str, stops: Sequence[str]) -> int:
    """Return how many characters of a text cannot change or vanish with the tokens to come."""
    end = len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    for stop in stops:
        for size in range(min(len(stop) - 1, end), 0, -1):
            if text[:end].endswith(stop[:size]):
                end -= size
                break
    return end
