"""From a prompt as it was found to text and token ids: chat templates, and the text of token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmrl.data.columns import Messages, RowPrompt
from lmrl.errors import DataError

if TYPE_CHECKING:
    from lmrl.models.card import TextCodec


def render(prompt: RowPrompt, codec: TextCodec | None, where: str) -> tuple[str, list[int] | None]:
    """Return a prompt's text, and its token ids when the text alone does not determine them.

    Raises ``DataError`` when messages or bare token ids come without a tokenizer that can handle them.
    """
    if not isinstance(prompt.content, str):
        return _chat(prompt.content, codec, where)
    if prompt.ids is None or prompt.content:
        return prompt.content, prompt.ids
    if codec is None:
        raise DataError(f"{where}: prompt_ids without a text need the model's tokenizer; give codec=card.codec.")
    return codec.decode_batch([prompt.ids])[0], prompt.ids


def _chat(messages: Messages, codec: TextCodec | None, where: str) -> tuple[str, list[int]]:
    tokenizer = getattr(codec, "tokenizer", None)
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        found = "no tokenizer was given" if codec is None else "the model's tokenizer has no chat template"
        raise DataError(
            f"{where}: the prompt is a list of messages, and {found}; use a model with a chat template, or make the "
            'prompt of text columns: template = "Q: {question}\\nA:".'
        )
    text = str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))
    # The template writes the special tokens itself; encoding its text in the usual way would add a second set.
    return text, list(tokenizer(text, add_special_tokens=False)["input_ids"])
