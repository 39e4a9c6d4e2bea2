"""Small models that a suite's tasks begin with: pretrained in seconds on generated text, and kept.

A model is a folder `models/<name>-<digest>` beside the results, in the transformers layout: a word-level tokenizer of
the words that the texts hold, and a Llama. The same table gives the same folder, so no run trains it twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from lmrl.config import build
from lmrl.errors import SettingsError
from lmrl_suites.story_model.tokenizer import SPECIALS, UNKNOWN, write

STORIES = "stories"
"""The embedded story model, by this name."""
END = 1 << 20
"""Bytes at each end of a file that tell two files of one size apart."""
SURVEYED = 2000
"""Texts whose words make the vocabulary."""


@dataclass
class GeneratedModel:
    """A table [models.NAME] of a suite: what a small Llama is pretrained on, and how."""

    texts: str
    """module:function, called with a `random.Random`; returns one text, words with spaces between."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the function by name."""
    steps: int = 300
    """Gradient steps."""
    rows: int = 64
    """Texts per step."""
    hidden_size: int = 64
    """Width."""
    layers: int = 2
    """Layers."""
    heads: int = 4
    """Attention heads."""
    context_length: int = 64
    """Tokens of prompt and answer at the most."""
    learning_rate: float = 4e-3
    """Peak; it rises over the first 5% of the steps and falls along a cosine to a tenth."""
    seed: int = 0
    """Of texts and weights: the same for all seeds of a suite, which begin with one model."""

    def __post_init__(self) -> None:
        for name in ("steps", "rows", "hidden_size", "layers", "heads", "context_length"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected a number of at least 1")
        if self.hidden_size % (2 * self.heads):
            raise SettingsError(
                f"hidden_size is {self.hidden_size}; expected a multiple of {2 * self.heads}, twice the {self.heads} "
                "heads"
            )
        if not 0 < self.learning_rate < math.inf:
            raise SettingsError(f"learning_rate is {self.learning_rate}; expected a finite number above 0")


def model_settings(table: Mapping[str, Any], where: str) -> GeneratedModel:
    """Return a model's settings; raises ``SettingsError`` for wrong keys or a function that is not there."""
    settings = build(GeneratedModel, table, where)
    imported(settings.texts, f"{where}.texts")
    return settings


def imported(name: str, where: str) -> Callable[..., Any]:
    """Return what "module:function" names; raises ``SettingsError`` if it cannot be called."""
    module, colon, attribute = name.partition(":")
    # A script has its own folder on the path, but an installed command does not have the folder it is called from.
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = getattr(import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"{where} is {name!r}, which cannot be imported: {error}") from error
    if not callable(found):
        raise SettingsError(f"{where} is {name!r}; expected module:function")
    function: Callable[..., Any] = found
    return function


def model_digest(settings: GeneratedModel) -> str:
    """Return what tells two models apart."""
    return hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:8]


def model_path(name: str, models: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """Return the folder or hub id of a task's model; one of ``models`` lies in ``folder/models`` once it is made."""
    if name in models:
        settings = model_settings(models[name], f"models.{name}")
        return str(folder / "models" / f"{name}-{model_digest(settings)}")
    return "" if name == STORIES else name


def model_identity(name: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what tells a task's model apart from others: its name, and a digest where the name does not say which.

    Of a folder the digest is of its configuration and of both ends of each file of weights, so that training it further
    is noticed without reading all of it.
    """
    if name in models:
        return f"{name} {model_digest(model_settings(models[name], f'models.{name}'))}"
    folder = Path(name).expanduser()
    if name == STORIES or not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".json", ".safetensors", ".bin"):
            with file.open("rb") as opened:
                digest.update(f"{file.relative_to(folder)} {file.stat().st_size}".encode() + opened.read(END))
                opened.seek(max(0, file.stat().st_size - END))
                digest.update(opened.read(END))
    return f"{folder.resolve().name} {digest.hexdigest()[:8]}"


def prepare_model(name: str, models: Mapping[str, Mapping[str, Any]], folder: Path, progress: bool = True) -> None:
    """Pretrain a model that is not there yet; it appears as a whole or not at all."""
    if name not in models:
        return
    path = Path(model_path(name, models, folder))
    if path.exists():
        return
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        pretrain(model_settings(models[name], f"models.{name}"), partial, name, progress)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def pretrain(settings: GeneratedModel, folder: Path, name: str = "model", progress: bool = True) -> float:
    """Train on generated texts, save model and tokenizer, and return the last batches' mean loss in nats per token."""
    import torch
    from tqdm import trange

    from lmrl.models.pretrained import quiet_transformers
    from lmrl_suites.story_model.train import batch, new_model, schedule

    write = imported(settings.texts, "texts")
    try:
        text = write(random.Random(0), **settings.arguments)
    except TypeError as error:
        raise SettingsError(f"models.{name}.texts is {settings.texts!r}, which cannot be called: {error}") from error
    if not isinstance(text, str):
        raise SettingsError(
            f"models.{name}.texts is {settings.texts!r}, which returns {type(text).__name__}; expected one text, a str"
        )
    # The name is a seed: stored results were made with it.
    generator = random.Random(f"lmrl.bench.models/{settings.seed}")
    words = sorted({word for _ in range(SURVEYED) for word in write(generator, **settings.arguments).split()})
    tokenizer = save_tokenizer(words, folder, settings.context_length)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would change the order of sums, and gain nothing at this size
    try:
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            model = new_model(settings, 2 * settings.hidden_size, tokenizer)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
        )
        losses: list[float] = []
        for step in trange(settings.steps, desc=f"pretraining {name}", unit="step", disable=not progress, leave=False):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(step, settings.steps)
            ids, labels = batch(tokenizer, [write(generator, **settings.arguments) for _ in range(settings.rows)])
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach().item())
    finally:
        torch.set_num_threads(threads)
    with quiet_transformers():
        model.eval().save_pretrained(folder)
    last = losses[-20:]
    return sum(last) / len(last)


def save_tokenizer(words: list[str], folder: Path, context_length: int) -> Any:
    """Write a tokenizer of one token per word between spaces, as transformers reads it, and return it."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate([*SPECIALS, *words])}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Every word gets a space before it, so that what some ids say does not depend on the ids that follow.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return write(tokenizer, folder, context_length)
