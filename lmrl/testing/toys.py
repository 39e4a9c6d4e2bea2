"""Toy models: small enough to run in a test, real enough to go through every code path."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

WORDS = ("the", "a", "cat", "dog", "ran", "sat", "home", "far", "happy", "sad", ".", "!")
SPECIALS = ("<pad>", "<eos>", "<unk>")


def write_tiny_model(
    folder: Path,
    *,
    words: Sequence[str] = WORDS,
    context: int = 48,
    width: int = 16,
    layers: int = 2,
    seed: int = 0,
    scale: float = 1.0,
    pad_is_eos: bool = False,
    architecture: str = "llama",
) -> Path:
    """Write a random causal LM with a word-level tokenizer into ``folder`` and return it.

    Ids: 0 pad, 1 EOS, 2 unknown, then ``words``. ``scale`` multiplies the output weights (0 makes the model uniform);
    ``architecture`` is "llama" or "gpt2".
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    vocabulary = {word: i for i, word in enumerate((*SPECIALS, *words))}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1 if pad_is_eos else 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "gpt2":
            gpt2 = GPT2Config(
                vocab_size=len(vocabulary), n_positions=context, n_embd=width, n_layer=layers, n_head=2, **ids
            )
            model = GPT2LMHeadModel(gpt2)
        else:
            llama = LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=context,
                initializer_range=0.3,
                tie_word_embeddings=False,
                **ids,
            )
            model = LlamaForCausalLM(llama)
            model.lm_head.weight.data.mul_(scale)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<pad>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "unk_token": "<unk>"}
    settings["pad_token"] = "<eos>" if pad_is_eos else "<pad>"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
