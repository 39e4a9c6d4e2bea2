"""Text to token ids and back, and conversations to text.

A folder's ``tokenizer.json`` is read with ``tokenizers`` alone; every other tokenizer goes through transformers.
Importing this module needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from lmrl.errors import DataError, ModelError
from lmrl.text.chat_rendering import ChatRenderer, default_template, template_errors
from lmrl.text.conversation import variables_of
from lmrl.text.files import read_json

TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Names under which a chat template finds the special tokens, as in transformers."""

Ids = Sequence[int]
TEMPLATE_FILE = "chat_template.jinja"


class TextCodec(Protocol):
    """Text to token ids and back; hashed by its identity."""

    def __hash__(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, with the special tokens that the tokenizer's own post-processor adds.

        Stages encode by ``lmrl.text.encoding.text_ids`` instead: this may double a BOS and append an EOS.
        """
        ...

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of ``text`` and nothing else; special tokens written in it are recognised."""
        ...

    def encode_pair(self, first: str, second: str) -> list[int]:
        """Return the ids of two texts in the tokenizer's own form for a pair, as encoders read them."""
        ...

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return ``encode_plain(text)`` and the (start, end) characters that each id stands for."""
        ...

    def decode_batch(self, rows: Sequence[Sequence[int]], special: bool = False) -> list[str]:
        """Return the text of each row, with its special tokens if ``special`` and without them otherwise."""
        ...

    def vocabulary(self) -> dict[str, int]:
        """Return all tokens with their ids, added ones too."""
        ...

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """The tokens that stand outside the vocabulary's rules, special or not, by their text."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's chat template, in jinja2; None where it has none."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The tokens with a name that a template may use: ``eos_token`` and the like."""
        ...

    @property
    def renderer(self) -> ChatRenderer:
        """The compiled chat template; raises ``DataError`` where there is none."""
        ...

    def render_chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        """Return the text of a conversation, by the chat template.

        The variables of a ``Conversation`` (tools and others) reach the template. Raises ``DataError`` when there is no
        template, or when it cannot render a role.
        """
        ...

    def render_continued(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text of a conversation whose last message the model continues, by the chat template."""
        ...


class Placeholders:
    """Tokens for images and audio that a text-only model has no embedding for; no text may contain them."""

    placeholders: tuple[str, ...] = ()

    def refuse_placeholders(self, *texts: str) -> None:
        """Raise ``DataError`` for a text with one of these tokens."""
        for token in self.placeholders:
            if any(token in text for text in texts):
                raise DataError(
                    f"a text contains {token}, a placeholder for images or audio that the model has no embedding "
                    "for; expected text. Remove it."
                )


class FastCodec(Placeholders):
    """A ``tokenizer.json`` read by ``tokenizers``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tokenizer = read_tokenizer(path)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # transformers treats every token that the configuration names as special, also one that the file does not mark.
        settings = read_json(path.with_name("tokenizer_config.json"), required=False)
        named = [_token_text(value) for key, value in settings.items() if key.endswith("_token")]
        known = [token for token in named if token is not None and self._tokenizer.token_to_id(token) is not None]
        self._tokenizer.add_special_tokens(known)
        contents = {key: _token_text(settings.get(key)) for key in TOKEN_KEYS}
        self.special_tokens = {key: text for key, text in contents.items() if text is not None}
        added = self._tokenizer.get_added_tokens_decoder()
        self.added_tokens: Mapping[str, int] = {token.content: id_ for id_, token in added.items()}
        file = path.with_name(TEMPLATE_FILE)
        try:
            self.chat_template: str | None = (
                file.read_text(encoding="utf-8") if file.exists() else default_template(settings.get("chat_template"))
            )
        except UnicodeDecodeError as error:
            raise ModelError(f"{file} is not UTF-8: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``."""
        self.refuse_placeholders(text)
        return list(self._tokenizer.encode(text).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of ``text``, without those that the post-processor adds."""
        self.refuse_placeholders(text)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_pair(self, first: str, second: str) -> list[int]:
        """Return the ids of a pair of texts."""
        self.refuse_placeholders(first, second)
        return list(self._tokenizer.encode(first, second).ids)

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the plain ids and the characters that each stands for."""
        self.refuse_placeholders(text)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return list(encoding.ids), [(int(start), int(end)) for start, end in encoding.offsets]

    def decode_batch(self, rows: Sequence[Sequence[int]], special: bool = False) -> list[str]:
        """Return the text of each row."""
        return list(self._tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=not special))

    def vocabulary(self) -> dict[str, int]:
        """Return all tokens with their ids."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    @cached_property
    def renderer(self) -> ChatRenderer:
        """The compiled chat template."""
        return make_renderer(self.chat_template, self.special_tokens)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        """Return the text of a conversation."""
        return self.renderer.render(messages, add_generation_prompt)

    def render_continued(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text of a conversation whose last message is continued."""
        return self.renderer.render_continued(messages)

    def __reduce__(self) -> tuple[type[FastCodec], tuple[Path], dict[str, Any]]:
        return (FastCodec, (self.path,), {"placeholders": self.placeholders})


class TransformersCodec(Placeholders):
    """Any tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """The tokens outside the vocabulary's rules."""
        return {token.content: id_ for id_, token in self.tokenizer.added_tokens_decoder.items()}

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's chat template."""
        return default_template(getattr(self.tokenizer, "chat_template", None))

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The tokens with a name."""
        return {key: text for key, text in self.tokenizer.special_tokens_map.items() if isinstance(text, str)}

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``."""
        self.refuse_placeholders(text)
        return list(self.tokenizer(text)["input_ids"])

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of ``text``, without those that the post-processor adds."""
        self.refuse_placeholders(text)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_pair(self, first: str, second: str) -> list[int]:
        """Return the ids of a pair of texts."""
        self.refuse_placeholders(first, second)
        return list(self.tokenizer(first, second)["input_ids"])

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the plain ids and the characters that each stands for; only fast tokenizers know them."""
        self.refuse_placeholders(text)
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(self.tokenizer).__name__} does not say which characters a token stands for; use a tokenizer "
                "that is stored as tokenizer.json."
            )
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoding["input_ids"]), [(int(start), int(end)) for start, end in encoding["offset_mapping"]]

    def decode_batch(self, rows: Sequence[Sequence[int]], special: bool = False) -> list[str]:
        """Return the text of each row."""
        return list(
            self.tokenizer.batch_decode(
                [list(row) for row in rows], skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
        )

    def vocabulary(self) -> dict[str, int]:
        """Return all tokens with their ids."""
        return dict(self.tokenizer.get_vocab())

    @property
    def renderer(self) -> ChatRenderer:
        """The compiled chat template."""
        return make_renderer(self.chat_template, self.special_tokens)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        """Return the text of a conversation, by the tokenizer's own method, which a class may have changed."""
        return self._applied(messages, add_generation_prompt=add_generation_prompt)

    def render_continued(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text of a conversation whose last message is continued."""
        return self._applied(messages, continue_final_message=True)

    def _applied(self, messages: Sequence[Mapping[str, Any]], **how: bool) -> str:
        template = self.renderer.template
        with template_errors(messages):
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    **{**variables_of(messages), "chat_template": template, "tokenize": False, **how},
                )
            )


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
    if not stop_strings:
        return texts
    from lmrl.text.responses import first_stop, stops_with_tokens, text_before

    texts = [text[: first_stop(text, stop_strings)] for text in texts]
    marked = stops_with_tokens(codec, stop_strings)
    if not marked:
        return texts
    shown = continuations(codec, prompt_rows, response_rows, special=True)
    for place, whole in enumerate(shown):
        at = first_stop(whole, marked)
        if at is not None:
            before = text_before(codec, prompt_rows[place], response_rows[place], at)
            texts[place] = min(texts[place], before, key=len)
    return texts


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


def read_tokenizer(path: Path) -> Any:
    """Return the ``tokenizers.Tokenizer`` in a ``tokenizer.json``; raises ``ModelError`` for a broken file."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises its own bare exceptions
        raise ModelError(f"{path} cannot be read ({error})") from error


def make_renderer(template: str | None, special_tokens: Mapping[str, str]) -> ChatRenderer:
    """Return the renderer of a tokenizer's template; raises ``DataError`` where it has none."""
    if template is None:
        raise DataError(
            "messages need a chat template, and the model's tokenizer has none; use a model with one, let `lmrl sft` "
            'give it one, or make the prompt of text columns: template = "Q: {question}\\nA:".'
        )
    return ChatRenderer(template, special_tokens)


def _token_text(value: Any) -> str | None:
    """Return a special token's text as a configuration keeps it: bare, or an object with its ``content``."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None
