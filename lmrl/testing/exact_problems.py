"""Ready-made problems to be solved exactly: a tiny Llama without a tokenizer, and rewards by seed or by rule."""

from __future__ import annotations

from typing import Any

import torch

from lmrl.errors import SettingsError
from lmrl.testing.exact import ExactProblem, count_responses

EOS_ID = 0
"""The end of a response in ready-made problems: also the id that rows are padded with, which no mask may mind."""


def tiny_llama(
    vocabulary: int, *, context: int = 16, width: int = 16, layers: int = 1, seed: int = 0, spread: float = 0.1
) -> Any:
    """Return a random Llama of a few thousand parameters, in memory.

    ``spread`` is the standard deviation of its weights: at 0.1 its distributions are near uniform, at 0.3 some tokens
    are several times as likely as others.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=spread,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def random_problem(
    seed: int = 0,
    *,
    vocabulary: int = 5,
    max_new_tokens: int = 3,
    prompts: int = 1,
    scale: float = 1.0,
    width: int = 16,
    layers: int = 1,
) -> ExactProblem:
    """Return a problem whose rewards are independent normal numbers of this ``scale``: nothing to generalise from.

    The model and the rewards derive from the seed. Prompt p is EOS and the token p + 1.
    """
    count = prompts * count_responses(vocabulary, max_new_tokens)
    rewards = scale * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model = tiny_llama(vocabulary, context=max_new_tokens + 2, width=width, layers=layers, seed=seed)
    return ExactProblem(model, _prompts(prompts, vocabulary), rewards, eos_id=EOS_ID, max_new_tokens=max_new_tokens)


def counting_problem(
    seed: int = 0,
    *,
    token: int = 1,
    vocabulary: int = 5,
    max_new_tokens: int = 3,
    prompts: int = 1,
    scale: float = 1.0,
    width: int = 16,
    layers: int = 1,
) -> ExactProblem:
    """Return a problem whose reward is ``scale`` times how often a response holds ``token``: the best one never ends.

    The seed chooses the model. Prompt p is EOS and the token p + 1.
    """

    def reward(asked: list[int], said: list[int]) -> float:
        return scale * said.count(token)

    model = tiny_llama(vocabulary, context=max_new_tokens + 2, width=width, layers=layers, seed=seed)
    return ExactProblem(model, _prompts(prompts, vocabulary), reward, eos_id=EOS_ID, max_new_tokens=max_new_tokens)


def _prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Return short prompts that begin with EOS, as with a BOS: without it, rotary attention cannot tell 1 from 1 1."""
    if not 1 <= count < vocabulary:
        raise SettingsError(f"prompts is {count}; expected 1 to {vocabulary - 1}, one for each id but EOS's")
    return [[EOS_ID, 1 + place] for place in range(count)]
