"""The random Llamas that are measured: their sizes, and how one is written with its tokenizer.

Embeddings are tied. The last norm's weights are so small that every next token is close to uniform, whatever stands
before it: a set of 1/16 of the ids then ends a response with probability 1/16 per token.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STOP_SHARE = 16
"""One in so many ids ends a response where lengths vary."""
SPREAD = 0.02
"""Standard deviation of the random weights, transformers' own."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama with tied embeddings; ``inner`` is the width of its feed-forward layers."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int

    @property
    def body(self) -> int:
        """Parameters of the layers and the last norm: all but the embedding table."""
        layer = 4 * self.width**2 + 3 * self.width * self.inner + 2 * self.width
        return self.layers * layer + self.width

    @property
    def parameters(self) -> int:
        """All parameters; the embedding table, which is the output layer too, counts once."""
        return self.body + self.vocabulary * self.width

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a response where lengths vary: the last sixteenth."""
        return tuple(range(self.vocabulary - self.vocabulary // STOP_SHARE, self.vocabulary))


SHAPES = {
    "smoke": Shape(64, 16, 1, 2, 32),
    "0.1M": Shape(512, 56, 2, 4, 144),
    "1M": Shape(2048, 128, 4, 4, 344),
    "10M": Shape(4096, 320, 7, 5, 864),
    "60M": Shape(16384, 640, 10, 10, 1728),
    "125M": Shape(50304, 768, 12, 12, 2048),
    "350M": Shape(50304, 1024, 24, 16, 2736),
    "1B": Shape(50304, 2048, 18, 16, 5504),
    "1.5B": Shape(50304, 2048, 28, 16, 5504),
}


def write_model(folder: Path, shape: Shape, context: int, seed: int = 0) -> Path:
    """Write a random model and a tokenizer of one word per id into ``folder``, and return it.

    Id 0 is the padding, the last id the tokenizer's EOS; every other id i is the word "wi". The generation
    configuration names all of ``shape.stop_ids``.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from lmrl.models.pretrained import quiet_transformers

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=context,
        initializer_range=SPREAD,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=list(shape.stop_ids),
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        # A token's own embedding is most of the last state, and its logit would win: here it is about 1.
        model.model.norm.weight.data.fill_(min(1.0, 1 / (SPREAD * shape.width)))
        model.generation_config = GenerationConfig(eos_token_id=list(shape.stop_ids), pad_token_id=0)
        model.save_pretrained(folder)
    _write_tokenizer(folder, shape.vocabulary)
    return folder


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = {f"w{number}": number for number in range(1, vocabulary - 1)}
    tokenizer: Any = Tokenizer(WordLevel({"<pad>": 0, **words, "<eos>": vocabulary - 1}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<pad>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")


def prompt_rows(vocabulary: int, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Return ``count`` random prompts of ``length`` ids that end nothing."""
    chooser = random.Random(seed)
    last = vocabulary - vocabulary // STOP_SHARE - 1
    return [[chooser.randint(1, last) for _ in range(length)] for _ in range(count)]


def prompt_text(ids: list[int]) -> str:
    """Return the text that the tokenizer reads as these ids."""
    return " ".join(f"w{number}" for number in ids)


class ShareOfWords:
    """A reward that both sides' callables share: which part of a response's words are among the first ids."""

    def __init__(self, below: int) -> None:
        self.below = below
        self.means: list[float] = []
        """The mean score of every batch so far."""

    def scores(self, responses: list[str]) -> list[float]:
        """Return a score in [0, 1] per response; one without words has 0."""
        found = []
        for response in responses:
            words = [int(word[1:]) for word in response.split() if word[1:].isdigit()]
            found.append(sum(word < self.below for word in words) / max(len(words), 1))
        self.means.append(sum(found) / max(len(found), 1))
        return found

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Score as lmrl asks for it."""
        return self.scores(responses)

    def for_trl(self, completions: list[str], **others: Any) -> list[float]:
        """Score as TRL asks for it."""
        return self.scores(completions)
