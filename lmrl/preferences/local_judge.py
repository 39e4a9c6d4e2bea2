"""A judge's model on this machine: any causal language model, by the probability of its verdicts or by its words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from lmrl.errors import ModelError, SettingsError
from lmrl.models.folders import model_folder
from lmrl.preferences.asking import Answer, Budget
from lmrl.preferences.judge_settings import JudgeSettings
from lmrl.preferences.questions import VERDICT_LINE, VERDICTS
from lmrl.seeds import derive_seed

if TYPE_CHECKING:
    from lmrl.models.loading import LanguageModel

BATCH = 16
"""Questions that are answered together; no answer depends on it."""
BUDGET = 4096
"""Positions per forward pass, padding included; no answer depends on it."""


class LocalAsker:
    """Asks a language model that is loaded here, with its chat template if it has one.

    By log-probabilities, the verdict is whichever of "Verdict: A", "Verdict: B" and "Verdict: TIE" the model finds
    likeliest as the beginning of its reply: one forward pass, and also a model that would not keep to the form
    answers. As text, it writes and the verdict is read off.
    """

    def __init__(self, settings: JudgeSettings, budget: Budget, by_logprobs: bool, model: Any = None) -> None:
        if not settings.model and model is None:
            raise SettingsError(
                "judge.model is empty; expected the folder or hub id of a local model, or the name of one at the "
                "endpoint judge.base_url"
            )
        from lmrl.models.card import load_card

        self.settings, self.budget, self.by_logprobs = settings, budget, by_logprobs
        self._model: LanguageModel | None = model
        self.card = model.card if model is not None else load_card(settings.model)
        written = {} if by_logprobs else {"temperature": settings.temperature, "tokens": settings.max_answer_tokens}
        self.identity = json.dumps(
            {"model": self.card.path, "weights": _weights(self.card.path), "logprobs": by_logprobs, **written}
        )

    def ask(self, questions: Sequence[str], should_stop: Callable[[], bool]) -> Iterator[tuple[int, Answer]]:
        """Yield answers batch by batch."""
        for start in range(0, len(questions), BATCH):
            if should_stop():
                return
            places: list[int] = []
            rows: list[list[int]] = []
            for place in range(start, min(start + BATCH, len(questions))):
                ids = self._ids(questions[place])
                if not ids:  # longer than the model's context: an answer without a verdict, now and always
                    yield place, Answer("")
                elif not self.budget.take_call():
                    break
                else:
                    places.append(place)
                    rows.append(ids)
            if not rows:
                continue
            answers = self._likeliest(rows) if self.by_logprobs else self._written(rows, [questions[i] for i in places])
            yield from zip(places, map(Answer, answers), strict=True)
            if self.budget.spent:
                return

    def _ids(self, question: str) -> list[int]:
        """Return the question as the model reads it, up to where its reply begins; empty if it does not fit."""
        from lmrl.models.chat_template import prompt_ids

        codec = self.card.codec
        prompt = [{"role": "user", "content": question}] if codec.chat_template else f"{question}\n"
        ids = prompt_ids(codec, prompt)[1]
        room = max(map(len, self._verdicts)) if self.by_logprobs else 1
        return ids if len(ids) + room <= self.card.context_length else []

    @cached_property
    def _verdicts(self) -> list[list[int]]:
        rows = [self.card.codec.encode_plain(f"{VERDICT_LINE} {verdict}") for verdict in VERDICTS]
        if len(set(map(tuple, rows))) < len(rows):
            raise ModelError(
                f"{self.card.path} cannot judge: its vocabulary does not tell the verdicts {', '.join(VERDICTS)} "
                "apart; choose another model"
            )
        return rows

    def _likeliest(self, rows: Sequence[list[int]]) -> list[str]:
        columns = zip(*self._verdicts, strict=False)
        shared = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
        pairs = [(row + verdict[:shared], verdict[shared:]) for row in rows for verdict in self._verdicts]
        logprobs = iter(response_logprobs(self._loaded(), pairs))
        self.budget.add_tokens(sum(map(len, rows)))
        answers = []
        for _ in rows:
            values = [next(logprobs) for _ in VERDICTS]
            answers.append(f"{VERDICT_LINE} {VERDICTS[values.index(max(values))]}")
        return answers

    def _written(self, rows: Sequence[list[int]], questions: Sequence[str]) -> list[str]:
        from lmrl.sampling.settings import SamplingSettings
        from lmrl.sampling.texts import sample_texts, sampling_spec

        settings = SamplingSettings(
            temperature=self.settings.temperature, max_new_tokens=self.settings.max_answer_tokens
        )
        spec, model = sampling_spec(settings, self.card), self._loaded()
        if not settings.temperature:
            found = sample_texts(model, rows, spec, 0)
        else:  # each with a seed of its own, so that an answer does not hang on which others are asked with it
            found = []
            for row, question in zip(rows, questions, strict=True):
                digest = int.from_bytes(hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()[:6], "big")
                found += sample_texts(model, [row], spec, derive_seed(0, "judge", digest))
        self.budget.add_tokens(sum(map(len, rows)) + sum(len(completion.ids) for completion in found))
        return [completion.text for completion in found]

    def _loaded(self) -> LanguageModel:
        if self._model is None:
            import torch

            from lmrl.models.loading import load

            on_gpu = self.settings.device == "auto" and torch.cuda.is_available()
            self._model = load(self.settings.model, device="cuda" if on_gpu else "cpu")
        return self._model


def response_logprobs(model: LanguageModel, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Return log p(response | prompt) of each row of ids, in nats."""
    import torch

    from lmrl.models.policy import PolicyModel
    from lmrl.models.scoring import score_logprobs
    from lmrl.rollout import TextInputs
    from lmrl.sampling.spec import SamplingSpec

    def padded(parts: Sequence[list[int]]) -> tuple[Any, Any]:
        lengths = torch.tensor([len(part) for part in parts])
        ids = torch.zeros(len(parts), int(lengths.max()), dtype=torch.long)
        for row, part in enumerate(parts):
            ids[row, : len(part)] = torch.tensor(part)
        device = model.model.device
        return ids.to(device), lengths.to(device)

    inputs = TextInputs(*padded([prompt for prompt, _ in rows]), *padded([response for _, response in rows]))
    return [float(row) for row in score_logprobs(PolicyModel(model.model), inputs, SamplingSpec(), BUDGET).sum(1)]


def _weights(path: str) -> list[list[Any]]:
    """Return what tells a checkpoint's weights from those that stood at the same path before; empty for a hub id."""
    files = sorted(model_folder(path).glob("*.safetensors"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
