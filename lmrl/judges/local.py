"""A judge's model on this machine: any causal language model, by the probability of its verdicts or by its words."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from lmrl.errors import ModelError, SettingsError
from lmrl.judges.asking import CUT_OFF, TOO_LONG, Answer, Budget, Choices
from lmrl.judges.settings import AskingSettings
from lmrl.seeds import derive_seed
from lmrl.text.folders import model_folder

if TYPE_CHECKING:
    from torch import Tensor

    from lmrl.models.loading import LanguageModel
    from lmrl.models.policy import PolicyModel
    from lmrl.text.card import ModelCard

BATCH = 16
"""Questions that are answered together; no answer depends on it."""
BUDGET = 4096
"""Positions per forward pass, padding included; no answer depends on it."""


class LocalAsker:
    """Asks a language model that is loaded here, with its chat template if it has one.

    With ``choices``, the reply is their label and the most probable value behind it (or the mean value), by its first
    token (where two values begin with the same token, by all of them): one forward pass, and a model that does not keep
    to the form replies, too. Without, the model writes. ``shared`` is another asker whose model is used.
    """

    def __init__(
        self, settings: AskingSettings, budget: Budget, choices: Choices | None, shared: LocalAsker | None = None
    ) -> None:
        if not settings.model:
            raise SettingsError(
                "judge.model is empty; expected the folder or hub id of a local model, or the name of one at the "
                "endpoint judge.base_url"
            )
        from lmrl.text.card import load_card

        self.settings, self.budget, self.choices, self._shared = settings, budget, choices, shared
        self._model: LanguageModel | None = None
        trusted = settings.trust_remote_code
        self.card: ModelCard = (
            shared.card if shared is not None else load_card(settings.model, trust_remote_code=trusted)
        )
        form = (
            {"temperature": settings.temperature, "tokens": settings.max_answer_tokens}
            if choices is None
            else {"line": choices.line, "values": choices.values, "mean": choices.mean}
        )
        self.identity = json.dumps({"model": self.card.path, "weights": _weights(self.card.path), **form})

    def ask(self, questions: Sequence[str], should_stop: Callable[[], bool]) -> Iterator[tuple[int, Answer]]:
        """Yield answers batch by batch."""
        for start in range(0, len(questions), BATCH):
            if should_stop():
                return
            places: list[int] = []
            rows: list[list[int]] = []
            for place in range(start, min(start + BATCH, len(questions))):
                ids = self._ids(questions[place])
                if not ids:  # now and always, so it is an answer and no failure
                    yield place, Answer("", unreadable=TOO_LONG)
                elif not self.budget.take_call():
                    break
                else:
                    places.append(place)
                    rows.append(ids)
            if not rows:
                continue
            if self.choices is not None:
                answers = [Answer(text) for text in self._chosen(rows, self.choices)]
            else:
                answers = self._written(rows, [questions[place] for place in places])
            yield from zip(places, answers, strict=True)
            if self.budget.spent:
                return

    def _ids(self, question: str) -> list[int]:
        """Return the question as the model reads it, up to where its reply begins; empty if it does not fit."""
        from lmrl.text.chat_template import prompt_ids

        codec = self.card.codec
        prompt = [{"role": "user", "content": question}] if codec.chat_template else f"{question}\n"
        ids = prompt_ids(codec, prompt)[1]
        room = max(map(len, self._values)) if self.choices is not None else 1
        return ids if len(ids) + room <= self.card.context_length else []

    @cached_property
    def _values(self) -> list[list[int]]:
        """Token ids of the label with each value."""
        assert self.choices is not None
        line, values = self.choices.line, self.choices.values
        rows = [self.card.codec.encode_plain(f"{line} {value}") for value in values]
        if any(one is not other and other[: len(one)] == one for one in rows for other in rows):
            # 10 begins as 1 does: what ends the value tells them apart.
            rows = [self.card.codec.encode_plain(f"{line} {value}\n") for value in values]
        if len(set(map(tuple, rows))) < len(rows):
            raise ModelError(
                f"{self.card.path} cannot judge: its vocabulary does not tell {', '.join(values)} apart; choose "
                "another model"
            )
        return rows

    def _chosen(self, rows: Sequence[list[int]], choices: Choices) -> list[str]:
        columns = zip(*self._values, strict=False)
        shared = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
        contexts = [row + self._values[0][:shared] for row in rows]
        ends = [value[shared:] for value in self._values]
        firsts = [end[0] for end in ends]
        if len(set(firsts)) == len(firsts):  # the next token tells the verdict: one forward pass for all three
            logits = next_logits(self._policy, contexts)
            values = [[float(row[token]) for token in firsts] for row in logits]
        else:
            pairs = [(context, end) for context in contexts for end in ends]
            found = iter(response_logprobs(self._policy, pairs))
            values = [[next(found) for _ in ends] for _ in contexts]
        self.budget.add_tokens(sum(map(len, contexts)))
        if choices.mean:
            return [f"{choices.line} {_mean(row, choices.values):.6f}" for row in values]
        return [f"{choices.line} {choices.values[row.index(max(row))]}" for row in values]

    def _written(self, rows: Sequence[list[int]], questions: Sequence[str]) -> list[Answer]:
        from lmrl.engines.settings import SamplingSettings
        from lmrl.engines.texts import sample_texts, sampling_spec

        settings = SamplingSettings(
            temperature=self.settings.temperature, max_new_tokens=self.settings.max_answer_tokens
        )
        spec = sampling_spec(settings, self.card, in_turns=bool(self.card.codec.chat_template))
        model = self._loaded()
        if not settings.temperature:
            found = sample_texts(model, rows, spec, 0)
        else:  # each with a seed of its own, so that an answer does not hang on which others are asked with it
            found = []
            for row, question in zip(rows, questions, strict=True):
                digest = int.from_bytes(hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()[:6], "big")
                found += sample_texts(model, [row], spec, derive_seed(0, "judge", digest))
        self.budget.add_tokens(sum(map(len, rows)), sum(len(completion.ids) for completion in found))
        return [Answer(one.text, unreadable="" if one.ended else CUT_OFF) for one in found]

    @cached_property
    def _policy(self) -> PolicyModel:
        from lmrl.models.policy import PolicyModel

        return PolicyModel(self._loaded().model)

    def _loaded(self) -> LanguageModel:
        if self._shared is not None:
            return self._shared._loaded()
        if self._model is None:
            import torch

            from lmrl.models.loading import load

            on_gpu = self.settings.device == "auto" and torch.cuda.is_available()
            self._model = load(
                self.settings.model,
                device="cuda" if on_gpu else "cpu",
                trust_remote_code=self.settings.trust_remote_code,
            )
        return self._model


def _mean(scores: Sequence[float], values: Sequence[str]) -> float:
    """Return the mean of numeric values whose log-weights are ``scores``."""
    weights = [math.exp(score - max(scores)) for score in scores]
    return sum(weight * float(value) for weight, value in zip(weights, values, strict=True)) / sum(weights)


def next_logits(policy: PolicyModel, rows: Sequence[list[int]]) -> Tensor:
    """Return the logits of the token after each row of ids, float32 (B, V) on the CPU."""
    import torch

    from lmrl.algorithms import Sequences

    # The state before a sampled token, whichever it is.
    inputs = Sequences.of_pairs([(row, [0]) for row in rows], policy.model.device)
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    with torch.no_grad():
        for places in policy.layout.split(inputs, BUDGET):
            logits = policy(inputs.select(places)).logits.float().cpu()
            for place, row in zip(places.tolist(), logits, strict=True):
                found[place] = row
    return torch.stack(found)


def response_logprobs(policy: PolicyModel, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Return log p(response | prompt) of each row of ids, in nats."""
    from lmrl.algorithms import Sequences
    from lmrl.engines.protocol import SamplingSpec
    from lmrl.models.text_policy import score_logprobs

    inputs = Sequences.of_pairs(rows, policy.model.device)
    return [float(row) for row in score_logprobs(policy, inputs, SamplingSpec(), BUDGET).sum(1)]


def _weights(path: str) -> list[list[Any]]:
    """Return what tells a checkpoint's weights from those that stood at the same path before; empty for a hub id."""
    files = sorted(model_folder(path).glob("*.safetensors"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
