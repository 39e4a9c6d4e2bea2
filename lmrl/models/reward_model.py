"""The reward model: a transformers sequence classification model with one label, read at the last real token.

Rows are token ids that end in their last real token, padded on the right; where a row ends is known from its length
and never searched for, so prompts may hold EOS and padding ids and the two may be the same.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmrl.algorithms.sequences import lengths_to_mask, pad_rows, split_by_length
from lmrl.errors import ModelError, NonFiniteError
from lmrl.models.loading import require_trainable
from lmrl.models.pretrained import load_weights
from lmrl.models.saving import read_back, save_model
from lmrl.seeds import derive_seed
from lmrl.text.card import ModelCard, load_card, load_codec
from lmrl.text.codec import TEMPLATE_FILE
from lmrl.text.files import CheckpointFiles, find_files
from lmrl.text.folders import copy_tokenizer
from lmrl.text.labels import ONLY_SCORE, Choice, Output
from lmrl.text.reward_card import (
    HEAD,
    SECTION,
    Normalisation,
    has_reward_head,
    load_reward_card,
    member_folders,
    reward_config,
)
from lmrl.text.weight_files import stored_dtype

LOADER = "AutoModelForSequenceClassification"


class RewardModel(nn.Module):
    """Scores rows of token ids. Dropout stays off, in training too: a score is a function of its text.

    ``card`` tells how rows are made; ``normalisation`` is applied by ``score_rows`` only, training sees raw scores.
    ``stored_dtype`` is the precision of the checkpoint that it came from.
    ``choice`` is the number of a classifier with several labels that is the score.
    """

    def __init__(
        self,
        model: Any,
        card: ModelCard,
        normalisation: Normalisation | None = None,
        stored_dtype: str = "",
        choice: Choice = ONLY_SCORE,
    ) -> None:
        super().__init__()
        self.choice = choice
        self.stored_dtype = stored_dtype
        self.model = model
        self.card = card
        self.normalisation = normalisation or Normalisation()
        self.eval()
        self._way = _way_of_reading(model)

    def train(self, mode: bool = True) -> RewardModel:
        """Keep evaluation mode whatever is asked."""
        return super().train(False)

    def forward(self, ids: Tensor, lengths: Tensor, pieces: Sequence[Tensor] | None = None) -> Tensor:
        """Return raw scores, float32 (B,), of ``ids`` (B, L) whose first ``lengths[i]`` are real.

        ``pieces`` are index tensors that cover all rows; each piece is computed at the width of its longest row.
        """
        if self._way == "equal lengths":
            pieces = [torch.nonzero(lengths == length).squeeze(1) for length in lengths.unique()]
        if pieces is None:
            return self._chosen(_read(self.model, self._way, ids, lengths))
        scores = torch.cat([self._chosen(_read(self.model, self._way, ids[rows], lengths[rows])) for rows in pieces])
        return scores[torch.cat(list(pieces)).argsort()]

    def _chosen(self, logits: Tensor) -> Tensor:
        """Return the score of each row, (B,), of all labels' logits (B, K)."""
        choice = self.choice
        if choice.output in (None, "logit"):
            return logits[:, choice.place]
        log_shares = nn.functional.logsigmoid(logits) if choice.independent else logits.log_softmax(dim=1)
        chosen = log_shares[:, choice.place]
        return chosen.exp() if choice.output == "probability" else chosen

    @torch.no_grad()
    def score_rows(self, rows: Sequence[Sequence[int]], token_budget: int = 16384, normalised: bool = True) -> Tensor:
        """Return the scores of rows of ids, float32 (N,) on the CPU, in the order given.

        Rows of like length share a forward pass of at most ``token_budget`` positions, padding included. Raises
        ``ModelError`` for a row without tokens or beyond the context, ``NonFiniteError`` for a score that is no number.
        """
        if not rows:
            return torch.zeros(0)
        longest, shortest = max(map(len, rows)), min(map(len, rows))
        if not shortest or longest > self.card.context_length:
            raise ModelError(
                f"a row of {longest if shortest else 0} tokens cannot be scored; expected 1 to "
                f"{self.card.context_length}, the context of {self.card.path}"
            )
        device = next(self.model.parameters()).device
        lengths = torch.tensor([len(row) for row in rows])
        scores = torch.zeros(len(rows))
        for piece in split_by_length(lengths, token_budget):
            ids, sizes = pad_rows([rows[i] for i in piece.tolist()])
            scores[piece] = self(ids.to(device), sizes.to(device)).float().cpu()
        if not bool(torch.isfinite(scores).all()):
            row = int(torch.nonzero(~torch.isfinite(scores))[0])
            raise NonFiniteError(f"the reward model {self.card.path} scores row {row} {scores[row].item()}")
        if normalised:
            scores = (scores - self.normalisation.mean) / self.normalisation.std
        return scores

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write model, tokenizer and normalisation so that ``AutoModelForSequenceClassification`` loads them."""
        setattr(self.model.config, SECTION, {"normalisation": dataclasses.asdict(self.normalisation)})
        save_model(self.model, folder, dtype)
        source = self.card.files or Path(self.card.path)
        copy_tokenizer(source, folder)
        template, file = self.card.codec.chat_template, folder / TEMPLATE_FILE
        if (
            template is not None and load_codec(folder, self.card.trust_remote_code).chat_template is None
        ):  # given to it by us
            file.write_text(template, encoding="utf-8")
        generation = source / "generation_config.json"  # every EOS id, for whoever closes rows
        if generation.exists() and source.resolve() != folder.resolve():
            shutil.copyfile(generation, folder / generation.name)

    def load_weights(self, folder: Path) -> None:
        """Take over the weights that ``save`` wrote, bit for bit."""
        read_back(self.model, folder, LOADER, self.card.trust_remote_code)


def load_reward_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    label: str = "",
    output: Output = "log_probability",
) -> RewardModel:
    """Load a trained reward model: a run's folder, a checkpoint, or any sequence classification model.

    ``label`` names the label of a classifier with several whose ``output`` is the score. ``dtype`` None keeps float32
    on a CPU and the checkpoint's own precision elsewhere. Raises ``ModelError``.
    """
    found = load_reward_card(name_or_path, revision, trust_remote_code=trust_remote_code, label=label, output=output)
    chosen: Any = dtype
    if dtype is None:
        chosen = torch.float32 if torch.device(device or "cpu").type == "cpu" else "auto"
    files = find_files(name_or_path, revision)
    model = _load_scorer(files, chosen, trust_remote_code)
    return RewardModel(model.to(device or "cpu"), found.card, found.normalisation, choice=found.choice)


def start_reward_model(
    name_or_path: str | Path,
    seed: int,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> RewardModel:
    """Return a reward model to train: a causal language model with a new head, or a reward model to train further.

    The new head is drawn from N(0, 1 / (width + 1)^2) with ``seed``, narrower than the N(0, 1 / (width + 1)) of
    Stiennon et al. (2020): scores begin near 0, and members of an ensemble begin apart, as from zeros they would not.
    """
    path = Path(name_or_path).expanduser()
    if not (path / "config.json").exists() and member_folders(path):
        raise ModelError(
            f"{path} holds an ensemble; name one of its members to train it further: {member_folders(path)[0]}"
        )
    files = find_files(name_or_path)
    if has_reward_head(reward_config(files)):
        card = load_reward_card(name_or_path, trust_remote_code=trust_remote_code).card
        model = _load_scorer(files, dtype, trust_remote_code)
    else:
        card = load_card(name_or_path, trust_remote_code=trust_remote_code)
        with torch.random.fork_rng(devices=[]):  # transformers draws the head that _start_head draws anew
            changes = {"num_labels": 1, "pad_token_id": safe_pad_id(card)}
            model, _ = load_weights(
                files,
                LOADER,
                "a reward model's trunk",
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                may_miss=lambda name: name.split(".")[0] == HEAD,
                may_ignore=lambda name: name.split(".")[0] in ("lm_head", "embed_out"),
                **changes,
            )
        _start_head(model, card.path, seed)
    require_trainable(model, card.path)
    return RewardModel(model.to(device or "cpu"), card, stored_dtype=stored_dtype(files.folder))


def safe_pad_id(card: ModelCard) -> int | None:
    """Return the padding id to write into the checkpoint's config.

    transformers reads the score at the last token that is not this id, so it must never end a row: an EOS id would make
    it read one token too early. None (no other id is known) lets transformers score single rows rightly and refuse
    batches.
    """
    options = [card.pad_id, card.bos_id]
    return next((option for option in options if option is not None and option not in card.eos_ids), None)


def _load_scorer(files: CheckpointFiles, dtype: Any, trust_remote_code: bool) -> Any:
    """Return a sequence classification model with one label and all of its weights."""
    changes: dict[str, Any] = {} if files.adapter is None else {"num_labels": 1}
    model, _ = load_weights(
        files,
        LOADER,
        "a reward model, whose head was trained",
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        may_ignore=lambda name: files.adapter is not None and name.split(".")[0] in ("lm_head", "embed_out"),
        **changes,
    )
    return model


def _start_head(model: Any, path: str, seed: int) -> None:
    head = getattr(model, HEAD, None)
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"{path} cannot carry a reward head: {type(model).__name__} has no linear layer '{HEAD}'; expected a "
            "causal language model such as Llama, Qwen or GPT-2."
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "reward head"))
    with torch.no_grad():
        noise = torch.randn(head.weight.shape, generator=generator) / (head.weight.shape[1] + 1)
        head.weight.copy_(noise)
        if head.bias is not None:
            head.bias.zero_()


def _read(model: Any, way: str, ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the logits of all labels, float32 (B, K), in one of the ways that ``_way_of_reading`` describes."""
    width = int(lengths.max())
    ids = ids[:, :width]
    if way != "last state":
        mask = lengths_to_mask(lengths, width).long()
        logits: Tensor = model(input_ids=ids, attention_mask=mask).logits.float()
        return logits
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
    with torch.autocast(last.device.type, enabled=False):  # half precision would round scores to three digits
        bias = None if model.score.bias is None else model.score.bias.float()
        return nn.functional.linear(last.float(), model.score.weight.float(), bias)


@torch.no_grad()
def _way_of_reading(model: Any) -> str:
    """Say how batches of this model are scored exactly: tried on two rows against each of them alone.

    "last state": the head on the last real token's hidden state, which needs no mask (causal models); "mask": the
    model's own forward with an attention mask (encoders); "equal lengths": neither holds, so nothing is ever padded.
    """
    config = model.config.get_text_config()
    pad = config.pad_token_id if config.pad_token_id is not None else -1
    tokens = [i for i in range(min(8, config.vocab_size)) if i != pad][:4]
    if len(tokens) < 2:
        return "equal lengths"
    device = next(model.parameters()).device
    short, long = [tokens[0], tokens[1]], (tokens * 3)[:5]
    alone = torch.cat([model(input_ids=torch.tensor([row], device=device)).logits.float() for row in (short, long)])
    ids, lengths = pad_rows([short, long])
    ids[0, 2:] = tokens[-1]  # what follows a row must not matter
    half = next(model.parameters()).dtype != torch.float32
    relative, absolute = (5e-2, 5e-2) if half else (1e-3, 1e-4)
    for way in ("last state", "mask"):
        try:
            scores = _read(model, way, ids.to(device), lengths.to(device))
        except (AttributeError, TypeError, RuntimeError, ValueError):  # this way does not fit this family
            continue
        if torch.allclose(scores, alone, rtol=relative, atol=absolute):
            return way
    return "equal lengths"
