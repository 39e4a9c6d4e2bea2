"""Task of pretraining for the shared training loop: blocks of tokens, and held-out documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmrl.corpus import PreparedCorpus, TokenDataset
from lmrl.engines.settings import SamplingSettings
from lmrl.engines.texts import sample_texts, sampling_spec
from lmrl.errors import SettingsError
from lmrl.models.loading import LOADER, LanguageModel
from lmrl.models.saving import read_back, saved_dtype
from lmrl.seeds import derive_seed
from lmrl.stages.pretrain.config import PretrainConfig
from lmrl.stages.pretrain.evaluation import bits_per_byte, held_out_windows, total_nats
from lmrl.stages.pretrain.model import save_with_tokenizer
from lmrl.stages.pretrain.speed import flops_per_token, peak_flops
from lmrl.text.card import ModelCard, load_codec
from lmrl.text.files import find_files
from lmrl.text.weight_files import stored_dtype

LOGITS = {"cpu": 1 << 25}
"""Logits that one forward pass makes at the most, by kind of device; elsewhere 2**29."""


@dataclass(frozen=True)
class BlockBatch:
    """Blocks for one forward pass: inputs and targets (B, T), and positions (B, T) where documents stay apart."""

    inputs: Tensor
    targets: Tensor
    positions: Tensor | None


class PretrainTask:
    """Blocks of the training documents, and the held-out documents."""

    unit = "token"

    def __init__(self, model: Any, corpus: PreparedCorpus, config: PretrainConfig, accelerator: Any) -> None:
        self.module: nn.Module = model
        self.model, self.corpus, self.config, self.accelerator = model, corpus, config, accelerator
        self.device = accelerator.device
        self.manifest = corpus.tokens.manifest
        context = config.model.context_length
        self.dataset = TokenDataset(
            corpus.tokens.split("train"),
            context,
            derive_seed(config.run.seed, "pretrain"),
            config.train.cross_documents,
        )
        vocabulary = model.get_output_embeddings().weight.shape[0]
        logits = LOGITS.get(self.device.type, 1 << 29)
        self.positions = max(context, logits // vocabulary)
        self.rows = config.train.microbatch_rows or max(1, self.positions // context)
        self.held_out = held_out_windows(
            corpus.tokens.split("held_out"),
            context,
            self.manifest["eos_id"],
            self.manifest["prefix"],
            config.train.evaluate_tokens,
            config.train.evaluate_overlap,
        )
        self.flops = flops_per_token(model, context)
        self.peak, self.peak_source = peak_flops(self.device, accelerator.mixed_precision)
        self.codec = load_codec(corpus.tokenizer_folder, config.model.trust_remote_code)
        source = config.model.continue_from
        stored = stored_dtype(find_files(source).folder) if source else "float32"
        self.dtype = saved_dtype(config.checkpoint.dtype, stored)

    def microbatches(self, step: int, rank: int, ranks: int) -> list[BlockBatch]:
        """Return this rank's blocks of a step."""
        rows = self.dataset.rows(step, rank, ranks, self.config.train.rows // ranks)
        tokens = torch.from_numpy(rows.tokens)
        positions = None if rows.positions is None else torch.from_numpy(rows.positions)
        batches = []
        for start in range(0, len(tokens), self.rows):
            part = slice(start, start + self.rows)
            placed = None if positions is None else positions[part].to(self.device)
            inputs, targets = tokens[part, :-1].to(self.device), tokens[part, 1:].to(self.device)
            batches.append(BlockBatch(inputs, targets, placed))
        return batches

    def count(self, microbatch: BlockBatch) -> int:
        """Return the number of tokens that are predicted."""
        return microbatch.targets.numel()

    def tokens(self, microbatch: BlockBatch) -> int:
        """Return the number of positions."""
        return microbatch.inputs.numel()

    def loss(self, module: nn.Module, microbatch: BlockBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the negative log-likelihood of the blocks' tokens in nats, summed."""
        placed = {} if microbatch.positions is None else {"position_ids": microbatch.positions}
        logits = module(input_ids=microbatch.inputs, use_cache=False, **placed).logits
        nats = functional.cross_entropy(logits.flatten(0, 1).float(), microbatch.targets.flatten(), reduction="sum")
        return nats, {}

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Return held-out nats per token and bits per byte, over whole documents."""
        if not self.held_out.tokens:
            return {}
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        nats = total_nats(self.model, self.held_out.windows[rank::ranks], self.device, self.positions)
        if ranks > 1:
            everywhere = torch.tensor(nats, dtype=torch.float32, device=self.device)
            nats = float(self.accelerator.reduce(everywhere, reduction="sum"))
        numbers = {"loss": nats / self.held_out.tokens}
        if self.manifest["lossless"]:
            numbers["bits_per_byte"] = bits_per_byte(nats, self.held_out.text_bytes)
        return numbers

    def texts(self) -> list[str]:
        """Return a sample for every prompt of the settings."""
        settings = self.config.samples
        if not settings.prompts:
            return []
        self.model.eval()
        card = self.card()
        prompts = [self.prompt_ids(text) for text in settings.prompts]
        room = card.context_length - max(map(len, prompts))
        spec = sampling_spec(
            SamplingSettings(temperature=settings.temperature, max_new_tokens=min(settings.max_new_tokens, room)), card
        )
        seed = derive_seed(self.config.run.seed, "samples")
        found = sample_texts(LanguageModel(self.model, card), prompts, spec, seed)
        return [text + one.text for text, one in zip(settings.prompts, found, strict=True)]

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids of a text's beginning, after what begins a document."""
        return [*(self.manifest["prefix"] or [self.manifest["eos_id"]]), *self.codec.encode_plain(text)]

    def require_room(self) -> None:
        """Raise ``SettingsError`` if a sample's prompt leaves no room in the context."""
        for text in self.config.samples.prompts:
            if len(self.prompt_ids(text)) >= self.config.model.context_length:
                raise SettingsError(
                    f"samples.prompts: {text[:40]!r} has {len(self.prompt_ids(text))} tokens, and the context "
                    f"{self.config.model.context_length}; shorten it."
                )

    def card(self) -> ModelCard:
        """Return what is known of the model, as its checkpoint will say it."""
        generation = self.model.generation_config
        eos = generation.eos_token_id
        return ModelCard(
            path=str(self.corpus.tokenizer_folder),
            codec=self.codec,
            eos_ids=tuple(eos) if isinstance(eos, list) else (int(eos),),
            bos_id=generation.bos_token_id,
            pad_id=generation.pad_token_id,
            context_length=self.config.model.context_length,
            vocab_size=self.model.get_output_embeddings().weight.shape[0],
        )

    def speed(self, tokens_per_second: float) -> dict[str, float]:
        """Return the model flops utilisation of all devices together."""
        return {"mfu": tokens_per_second * self.flops / (self.peak * self.accelerator.num_processes)}

    def save(self, folder: Path) -> None:
        """Write the model with its tokenizer."""
        save_with_tokenizer(self.model, self.corpus.tokenizer_folder, folder, self.dtype)

    def load(self, folder: Path) -> None:
        """Read the weights back."""
        read_back(self.model, folder, LOADER, self.config.model.trust_remote_code)
