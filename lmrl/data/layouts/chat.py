"""From a prompt as it was found to text and token ids: chat templates, and the text of token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmrl.data.layouts.columns import RowPrompt
from lmrl.data.layouts.reading import Skip
from lmrl.errors import DataError
from lmrl.text.chat_template import prompt_ids

if TYPE_CHECKING:
    from lmrl.text.card import TextCodec

ADVICE = (
    'use a model with a chat template, give plain text (chat = "off" takes a conversation of one question as text), or '
    'make the prompt of text columns: template = "Q: {question}\\nA:".'
)


def render(prompt: RowPrompt, codec: TextCodec | None, where: str) -> tuple[str, list[int] | None]:
    """Return a prompt's text, and its token ids when the text alone does not determine them.

    Raises ``Skip`` when the chat template refuses the messages, and ``DataError`` when messages or bare token ids come
    without a tokenizer that can handle them.
    """
    if not isinstance(prompt.content, str):
        if codec is None:
            raise DataError(f"{where}: the prompt is a list of messages, and no tokenizer was given; {ADVICE}")
        try:
            return prompt_ids(codec, prompt.content)
        except DataError as error:
            if codec.chat_template is not None:
                raise Skip("a conversation that the chat template cannot render", str(error)) from error
            raise DataError(f"{where}: the prompt is a list of messages. {error} If need be, {ADVICE}") from error
    if prompt.ids is None or prompt.content:
        return prompt.content, prompt.ids
    if codec is None:
        raise DataError(f"{where}: prompt_ids without a text need the model's tokenizer; give codec=card.codec.")
    return codec.decode_batch([prompt.ids])[0], prompt.ids
