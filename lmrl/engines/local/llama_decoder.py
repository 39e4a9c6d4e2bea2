"""A decoder for Llama and its kin that computes what a prompt's samples share once, at every step.

It copies the model's weights at every call and does what the model does for one new token, without what that does not
need. The
keys and values of a prompt are kept once: the queries of all its samples are multiplied with them in one product, and
each row holds only its own tokens. So a new row costs no copy, and a place that is free again is taken by a mask.
``supports`` says which models it can drive, by their parts and by trying. Leaves out: GPUs and half precision, where
the model's own attention kernels are the better choice.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lmrl.algorithms.sequences import pad_rows, split_by_length
from lmrl.engines.local.cache import PrefilledPrompt, PromptGroups, WindowBuffer

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that depend on a token's position alone."""
PREFILL_TOKENS = 4096
"""Positions of prompts that go through the model at once."""
AHEAD = 8
"""Prompts that are prefilled together at the least, while there are as many to come."""

_known: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def supports(model: Any) -> bool:
    """Say whether ``LlamaDecoder`` gives this model's own logits."""
    if not isinstance(model, nn.Module) or torch.is_autocast_enabled("cpu") or not _has_known_parts(model):
        return False
    if model not in _known:
        _known[model] = _agrees(model)
    return _known[model]


def _has_known_parts(model: Any) -> bool:
    config = model.config
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if type(model).__name__ not in FAMILIES or rotation not in ROTATIONS or kinds != {"full_attention"}:
        return False
    if getattr(config, "sliding_window", None) and type(model).__name__ == "MistralForCausalLM":
        return False
    layer = model.model.layers[0]
    linears = [getattr(layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    linears += [getattr(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj")]
    # An adapter replaces these modules by its own.
    if not all(type(module) is nn.Linear and module.weight.dtype == torch.float32 for module in linears):
        return False
    return bool(model.device.type == "cpu")


@torch.no_grad()
def _agrees(model: Any) -> bool:
    """Compare two steps after a prompt with the model's own, as a family's next version may compute something else."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [number % vocabulary for number in (3, 1, 2, 5, 4)]
    decoder = LlamaDecoder(model, [ids[:3], ids[:2]], 2, turnover=False)
    running = torch.zeros(2, dtype=torch.bool)
    found = [decoder.admit(torch.arange(2), [0, 1])]
    found += [decoder.step(torch.tensor([token, token]), running) for token in ids[3:]]
    for row, begin in enumerate((ids[:3], ids[:2])):
        own = model(torch.tensor([begin + ids[3:]]), use_cache=False).logits[0, len(begin) - 1 :]
        if not torch.allclose(torch.stack([logits[row] for logits in found]), own, rtol=1e-3, atol=1e-4):
            return False
    return True


class LlamaDecoder:
    """Decoder with one copy of each prompt's keys and values; see the module's docstring and ``decoder.Decoder``."""

    refills = True

    @torch.inference_mode()
    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], most_steps: int, turnover: bool) -> None:
        self.model, self.prompts = model, prompts
        self.layers = [_Layer(layer) for layer in model.model.layers]
        self.capacity = (2 if turnover else 1) * most_steps
        self.keys = [WindowBuffer(self.capacity) for _ in self.layers]
        self.values = [WindowBuffer(self.capacity) for _ in self.layers]
        longest = max(len(prompt) for prompt in prompts)
        self.cos, self.sin = _rotations(model, longest + most_steps + 1)
        self.groups = PromptGroups(len(self.layers), longest)
        self.ready: dict[int, PrefilledPrompt] = {}
        self.end = 0
        """The column that the next token is written to; all places write the same."""
        self.begins: list[int] = []
        """The column of each place's first own token."""
        self.numbers: list[int] = []
        """The prompt of each place."""

    # Inference mode spares each of the many small operations its book-keeping for gradients.
    @torch.inference_mode()
    def admit(self, places: Tensor, numbers: Sequence[int]) -> Tensor:
        """Begin answers to these prompts, prefilling those that are not there; see ``Decoder``."""
        if not self.numbers:
            self.numbers, self.begins = [-1] * len(numbers), [0] * len(numbers)
        for place, number in zip(places.tolist(), numbers, strict=True):
            self.numbers[place], self.begins[place] = number, self.end
        missing = [number for number in dict.fromkeys(numbers) if number not in self.ready]
        if missing:
            following = range(missing[-1] + 1, min(missing[0] + AHEAD, len(self.prompts)))
            self._prefill(missing + [number for number in following if number not in self.ready])
        self._arrange()
        logits = torch.stack([self.ready[number].logits for number in numbers])
        needed, newest = set(self.numbers), max(numbers)  # prompts come in the order of their numbers
        for number in [number for number in self.ready if number < newest and number not in needed]:
            del self.ready[number]
        return logits

    @torch.inference_mode()
    def step(self, ids: Tensor, done: Tensor) -> Tensor:
        """Compute one more token for every place; see ``Decoder``."""
        if self.end == self.capacity:
            self._bring_back()
        end = self.end
        self.end += 1
        first, groups = self.first, self.groups
        positions = (self.offsets + end).clamp_max(len(self.cos) - 1)
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        columns = groups.width + self.end - first
        mask = None if self.mask is None else self.mask[..., :columns]
        hidden = self.model.model.embed_tokens(ids)
        for number, layer in enumerate(self.layers):
            queries, keys, values = layer.project(hidden, cos, sin)
            self.keys[number].write(end, keys)
            self.values[number].write(end, values)
            shared = groups.scores(number, queries)
            own = queries @ self.keys[number].read(first, end + 1).transpose(-1, -2)
            scores = torch.cat([shared, own], dim=-1)
            if mask is not None:
                scores += mask
            weights = scores.softmax(-1)
            width = groups.width
            attended = weights[..., width:] @ self.values[number].read(first, end + 1)
            attended += groups.weigh(number, weights[..., :width])
            hidden = layer.finish(hidden, attended.flatten(1))
        logits: Tensor = self.model.lm_head(self.model.model.norm(hidden))
        return logits

    @torch.inference_mode()
    def keep(self, places: Tensor) -> None:
        """Drop the other places; see ``Decoder``."""
        for buffer in (*self.keys, *self.values):
            buffer.select_rows(places, self.first, self.end)
        kept = places.tolist()
        self.begins = [self.begins[place] for place in kept]
        self.numbers = [self.numbers[place] for place in kept]
        self._arrange()

    def _arrange(self) -> None:
        """Bring all that follows from which prompt is where, and since when, up to date."""
        self.first = min(self.begins)
        begins = torch.tensor(self.begins)
        lengths = torch.tensor([len(self.prompts[number]) for number in self.numbers])
        self.offsets = lengths - begins
        self.groups.arrange(self.numbers, self.ready)
        self.mask = self._make_mask(begins, lengths)

    def _make_mask(self, begins: Tensor, lengths: Tensor) -> Tensor | None:
        """Return what is added to the scores, (B, 1, 1, columns), or none: -inf at columns that a place must not see.

        The columns are those of the prompts, then the own ones from the window's first to the last that there can be.
        """
        width, columns = self.groups.width, self.capacity - self.first
        if bool((lengths == width).all()) and bool((begins == self.first).all()):
            return None
        hidden = torch.zeros(len(begins), width + columns, dtype=torch.bool)
        hidden[:, :width] = torch.arange(width) >= lengths[:, None]
        hidden[:, width:] = torch.arange(self.first, self.capacity) < begins[:, None]
        return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None, None]

    def _bring_back(self) -> None:
        """Move the window of the own tokens back to the buffers' beginning."""
        for buffer in (*self.keys, *self.values):
            buffer.shift(self.first, self.end, 0)
        self.end -= self.first
        self.begins = [begin - self.first for begin in self.begins]
        self._arrange()

    def _prefill(self, numbers: list[int]) -> None:
        """Run prompts through the model, those of like length together."""
        from transformers import DynamicCache

        lengths = torch.tensor([len(self.prompts[number]) for number in numbers])
        for chosen in split_by_length(lengths, PREFILL_TOKENS):
            part = [numbers[place] for place in chosen.tolist()]
            # Padded on the right, no token sees its padding, so no mask is needed.
            ids, widths = pad_rows([self.prompts[number] for number in part], "right")
            cache = DynamicCache(config=self.model.config)
            hidden = self.model.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
            logits = self.model.lm_head(hidden[torch.arange(len(part)), widths - 1])
            for row, (number, width) in enumerate(zip(part, widths.tolist(), strict=True)):
                self.ready[number] = PrefilledPrompt(
                    [layer.keys[row, :, :width] for layer in cache.layers],
                    [layer.values[row, :, :width] for layer in cache.layers],
                    logits[row],
                )


class _Layer:
    """One layer's weights, joined where the same input is multiplied with several, applied to one token of each place.

    The norms' weights and the scaling of the queries are factors of the joined matrices.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.output, self.down, self.activation = attention.o_proj, mlp.down_proj, mlp.act_fn
        self.query_norm, self.key_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        self.scaling = float(attention.scaling)
        heads = attention.config.num_attention_heads
        self.rotated = heads + attention.config.num_key_value_heads
        self.heads = heads
        self.before_attention = _Joined(
            layer.input_layernorm,
            [attention.q_proj, attention.k_proj, attention.v_proj],
            [self.scaling if self.query_norm is None else 1.0, 1.0, 1.0],
        )
        self.before_mlp = _Joined(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], [1.0, 1.0])

    def project(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated and scaled queries (B, heads, repeats, width), keys and values (B, heads, 1, width)."""
        heads, rotated = self.heads, self.rotated
        projected = self.before_attention(hidden).view(len(hidden), -1, cos.shape[-1])
        turning = projected[:, :rotated]
        if self.query_norm is not None and self.key_norm is not None:
            queries, keys = self.query_norm(turning[:, :heads]), self.key_norm(turning[:, heads:])
            turning = torch.cat([queries * self.scaling, keys], dim=1)
        turned = _rotate(turning, cos, sin)
        queries = turned[:, :heads].unflatten(1, (rotated - heads, -1))
        return queries, turned[:, heads:, None], projected[:, rotated:, None]

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output of its input and what attention gave, (B, width of the model)."""
        hidden = hidden + linear(attended, self.output.weight, self.output.bias)
        gate, up = self.before_mlp(hidden).chunk(2, dim=-1)
        return hidden + linear(self.activation(gate).mul_(up), self.down.weight, self.down.bias)


class _Joined:
    """A norm and the linear maps that read its output, as one matrix (inputs, outputs), each map times a factor."""

    def __init__(self, norm: Any, maps: Sequence[nn.Linear], factors: Sequence[float]) -> None:
        self.epsilon = float(norm.variance_epsilon)
        parts = [module.weight * factor for module, factor in zip(maps, factors, strict=True)]
        self.matrix = (torch.cat(parts) * norm.weight).t().contiguous()
        self.bias: Tensor | None = None
        if any(module.bias is not None for module in maps):
            biases = [
                module.weight.new_zeros(module.out_features) if module.bias is None else module.bias * factor
                for module, factor in zip(maps, factors, strict=True)
            ]
            self.bias = torch.cat(biases)

    def __call__(self, rows: Tensor) -> Tensor:
        """Divide rows (B, inputs) by their root mean square (Zhang and Sennrich 2019), and multiply."""
        normed = rows * rows.square().mean(-1, keepdim=True).add_(self.epsilon).rsqrt_()
        return normed @ self.matrix if self.bias is None else torch.addmm(self.bias, normed, self.matrix)


def _rotate(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of halves by their position's angle (Su et al. 2021); ``sin`` holds the signs."""
    first, second = rows.chunk(2, dim=-1)
    return torch.cat([second, first], dim=-1).mul_(sin).add_(rows * cos)


def _rotations(model: Any, positions: int) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines of every position, (positions, width) each, as the model computes them."""
    cos, sin = model.model.rotary_emb(torch.zeros(1, 1), torch.arange(positions)[None])
    first, second = sin[0].chunk(2, dim=-1)
    return cos[0], torch.cat([-first, second], dim=-1)
