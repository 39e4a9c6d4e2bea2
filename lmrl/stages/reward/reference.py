"""Reference texts of a reward model: their scores get mean 0 and standard deviation 1 (Ziegler et al. 2019, sec. 2)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from lmrl.data import Prompt, RankingSet
from lmrl.errors import DataError, NonFiniteError
from lmrl.models.reward_model import RewardModel
from lmrl.models.reward_rows import fitted_row, reward_row
from lmrl.seeds import derive_seed
from lmrl.stages.reward.config import RewardConfig
from lmrl.stages.reward.data import RankedRows
from lmrl.text.chat_template import prompt_ids
from lmrl.text.reward_card import Normalisation

Rows = Sequence[Sequence[int]]


def reference_rows(
    config: RewardConfig,
    training: RankingSet,
    items: Sequence[RankedRows],
    model: RewardModel,
    base: str,
    device: Any,
) -> tuple[str, Rows] | None:
    """Return what the reference texts are and their rows, or None where scores stay as they are."""
    settings = config.normalise
    if settings.on == "off":
        return None
    chance = random.Random(derive_seed(config.run.seed, "reference"))
    if settings.on == "data":
        rows = sorted({row for item in items for row in item.rows})
        return "answers of the training data", chance.sample(rows, min(settings.count, len(rows)))
    return _sampled(config, training, model, settings.reference or base, device, chance)


def _sampled(
    config: RewardConfig, training: RankingSet, model: RewardModel, name: str, device: Any, chance: random.Random
) -> tuple[str, Rows]:
    from lmrl.engines.texts import sample_texts, sampling_spec
    from lmrl.models.loading import load

    settings = config.normalise
    reference = load(name, device=device, trust_remote_code=config.trust_remote_code)
    in_turns = any(not isinstance(ranking.prompt, str) for ranking in training.rankings)
    spec = sampling_spec(settings.sampling, reference.card, in_turns)
    prompts: list[Prompt] = []
    asked: list[list[int]] = []
    order = list(training.rankings)
    chance.shuffle(order)
    for ranking in order:
        ids = prompt_ids(reference.card.codec, ranking.prompt)[1]
        if len(ids) < reference.card.context_length:
            prompts.append(ranking.prompt)
            asked.append(ids)
    if not asked:
        raise DataError(
            f"normalise.on is 'samples', but every prompt of the training data fills the context of {name}, "
            f'{reference.card.context_length} tokens; set normalise.on = "data", or another normalise.reference'
        )
    repeats = -(-settings.count // len(asked))
    prompts, asked = (prompts * repeats)[: settings.count], (asked * repeats)[: settings.count]
    answers = sample_texts(reference, asked, spec, derive_seed(config.run.seed, "reference samples"))
    rows = [
        fitted_row(model.card, *reward_row(model.card, prompt, answer.text))[0]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return f"samples of {name}", rows


def normalisation_of(model: RewardModel, references: tuple[str, Rows], token_budget: int) -> Normalisation:
    """Return mean and standard deviation of a model's raw scores of the reference texts.

    Raises ``NonFiniteError`` when they have no spread, so that no scale would fit them.
    """
    what, rows = references
    scores = model.score_rows(rows, token_budget, normalised=False).double()
    mean, std = float(scores.mean()), float(scores.std()) if len(rows) > 1 else 0.0
    if not std > 1e-8:
        raise NonFiniteError(
            f"all {len(rows)} {what} score {mean:g}, so scores cannot be normalised; the reward model has learned "
            "nothing, or give other reference texts (normalise.on)"
        )
    return Normalisation(mean, std, len(rows), what)
