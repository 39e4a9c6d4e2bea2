"""Giving a base model what a conversation needs: a chat template beside its tokenizer, and tokens for it.

The changed tokenizer stands in a folder of its own, from which training encodes and every checkpoint is copied, so
what is trained is what is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmrl.errors import DataError, ModelError, SettingsError
from lmrl.text.card import load_codec
from lmrl.text.chat_rendering import ChatRenderer
from lmrl.text.chat_template import DEFAULT_TEMPLATE, DEFAULT_TOKENS, PLAIN_TEMPLATE
from lmrl.text.codec import TEMPLATE_FILE, TextCodec
from lmrl.text.folders import copy_tokenizer


@dataclass
class TemplateSettings:
    """Choice of the chat template."""

    name: Literal["auto", "own", "default", "plain", "file"] = "auto"
    """own: the tokenizer's; default: one with a new token per role; plain: roles as words, no new tokens; file: that
    of template.file. auto: own where there is one, else default; data without messages leave the tokenizer alone."""
    file: str = ""
    """A chat template in jinja2, as transformers takes it."""
    tokens: list[str] = field(default_factory=list)
    """Special tokens of that file which the tokenizer does not have yet."""

    def __post_init__(self) -> None:
        if bool(self.file) != (self.name == "file"):
            raise SettingsError(
                f'template.name is "{self.name}" and template.file is "{self.file}"; expected a file with the name '
                '"file", and none with any other'
            )
        if self.tokens and not self.file:
            raise SettingsError("template.tokens holds tokens for template.file, which is empty")


@dataclass(frozen=True)
class ChatSetup:
    """A tokenizer ready for conversations: its files' ``folder``, its codec, and the ids it has gained."""

    folder: str
    codec: TextCodec
    new_ids: tuple[int, ...] = ()
    note: str = ""


def set_up_chat(
    source: str, codec: TextCodec, settings: TemplateSettings, folder: Path, trust_remote_code: bool = False
) -> ChatSetup:
    """Return the tokenizer in the folder ``source`` with the chosen chat template; ``folder`` gets a changed one.

    Raises ``DataError`` for a template that is missing or broken, ``ModelError`` for a tokenizer that cannot grow.
    """
    name = settings.name
    if name == "auto":
        name = "own" if codec.chat_template else "default"
    if name == "own":
        if codec.chat_template is None:
            raise DataError(
                f'template.name is "own", and the tokenizer of {source} has no chat template; choose "default" (a new '
                'token per role), "plain" (no new tokens) or "file".'
            )
        return ChatSetup(source, codec, note="the tokenizer's own chat template")
    template, tokens = _chosen(name, settings)
    ChatRenderer(template, {})  # a template with a mistake leaves no folder behind
    copy_tokenizer(source, folder)
    (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    new = [token for token in tokens if not _is_token(codec, token)]
    if new:
        _add_tokens(folder, new, trust_remote_code)
    changed = load_codec(folder, trust_remote_code)
    ids = tuple(_single_id(changed, token) for token in new)
    return ChatSetup(
        str(folder), changed, ids, f"the template {name!r}" + (f", new tokens {', '.join(new)}" * bool(new))
    )


def add_token_rows(model: Any, new_ids: Sequence[int]) -> None:
    """Give new tokens a row in the model's embeddings: the mean of the old rows, in the output layer as well.

    ``new_ids`` are the tokenizer's newest. Raises ``ModelError`` when the tokenizer was larger than the table already.
    """
    import torch

    if not new_ids:
        return
    rows = model.get_input_embeddings().weight.shape[0]
    first = min(new_ids)
    if first > rows:
        raise ModelError(
            f"the tokenizer holds {first} tokens and the embedding table {rows} rows; the tokenizer does not belong to "
            "this model."
        )
    if max(new_ids) >= rows:
        model.resize_token_embeddings(max(new_ids) + 1, mean_resizing=False)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for layer in layers:
            for weight in (layer.weight, getattr(layer, "bias", None)) if layer is not None else ():
                if weight is not None:
                    weight[list(new_ids)] = weight[:first].mean(0)


def _chosen(name: str, settings: TemplateSettings) -> tuple[str, Sequence[str]]:
    if name == "default":
        return DEFAULT_TEMPLATE, DEFAULT_TOKENS
    if name == "plain":
        return PLAIN_TEMPLATE, ()
    file = Path(settings.file)
    try:
        return file.read_text(encoding="utf-8"), settings.tokens
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"template.file {file} cannot be read: {error}") from error


def _add_tokens(folder: Path, tokens: Sequence[str], trust_remote_code: bool) -> None:
    from transformers import AddedToken, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        tokenizer.add_tokens(
            [AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True
        )
        tokenizer.save_pretrained(folder)
    except Exception as error:  # transformers raises many kinds; each means that this tokenizer cannot grow
        raise ModelError(
            f"the tokens {', '.join(tokens)} could not be added to the tokenizer ({type(error).__name__}: {error}); "
            'choose template.name = "plain", which needs none.'
        ) from error


def _is_token(codec: TextCodec, token: str) -> bool:
    """Say whether a special token is one already: it is one id, which leaves no trace in decoded text."""
    ids = codec.encode_plain(token)
    unknown = codec.encode_plain(codec.special_tokens.get("unk_token", ""))
    return len(ids) == 1 and ids != unknown and codec.decode_batch([ids]) == [""]


def _single_id(codec: TextCodec, token: str) -> int:
    ids = codec.encode_plain(token)
    if len(ids) != 1:
        raise ModelError(
            f'the tokenizer reads its new token {token} as {len(ids)} tokens; choose template.name = "plain".'
        )
    return ids[0]
