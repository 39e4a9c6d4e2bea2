"""Data for optimizers that do not sample: answers of the starting model, judged by the task's reward.

As many as an optimizer that samples would draw within the budget, group by group; prompts come again where there are
fewer than that. Held-out prompts are not among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from lmrl.errors import RewardError
from lmrl.plugins import PluginManager
from lmrl.seeds import derive_seed
from lmrl.stages.rl import RLConfig

if TYPE_CHECKING:
    from lmrl.data import PromptSet
    from lmrl.engines.texts import Completion
    from lmrl.rewards.result import RewardResult

CHUNK = 512
"""Answers that are sampled at once."""


def judged_answers(
    config: RLConfig, rows: Sequence[Any] | None, experience: str, plugins: PluginManager
) -> list[dict[str, Any]]:
    """Return rows of preferences (best against worst of a prompt), labels (above the mean), rewards, ranks or bests."""
    model, training, _ = _opened(config, rows, plugins)
    size, groups = config.train.group_size, config.train.updates * config.train.prompts_per_update
    places = [group % len(training) for group in range(groups) for _ in range(size)]
    asked, texts, result = _judged(config, model, training, places, "offline data", plugins)
    if not result.scored.all():
        raise RewardError("the reward gives no score to some responses; expected one for each in a benchmark")
    return MAKERS[experience](asked, texts, [float(score) for score in result.scores], size)


def judged_samples(
    config: RLConfig, rows: Sequence[Any] | None, count: int, plugins: PluginManager
) -> dict[str, list[float]]:
    """Return the reward's parts for ``count`` answers of the starting model to each held-out prompt, in order."""
    model, _, held_out = _opened(config, rows, plugins)
    places = [place for place in range(len(held_out)) for _ in range(count)]
    _, _, result = _judged(config, model, held_out, places, "best of n", plugins)
    return {name: part.tolist() for name, part in result.parts.items()}


def _opened(config: RLConfig, rows: Sequence[Any] | None, plugins: PluginManager) -> tuple[Any, PromptSet, PromptSet]:
    """Return the starting model, and the prompts for training and those that are held out."""
    from lmrl.data import load_prompts
    from lmrl.models import load
    from lmrl.stages.rl.setup import embedded_model

    model = load(config.model or embedded_model(), device="cpu", trust_remote_code=config.trust_remote_code)
    if rows is None:
        spec, settings = config.prompts.resolve(plugins)
        rows = list(spec.build(settings))
    return model, *load_prompts(rows, codec=model.card.codec).split(config.evaluation.prompts, config.run.seed)


def _judged(
    config: RLConfig, model: Any, prompts: PromptSet, places: Sequence[int], purpose: str, plugins: PluginManager
) -> tuple[list[str], list[str], RewardResult]:
    """Sample an answer to the prompt of each place; return prompts, answers and what the reward says of them."""
    from lmrl.engines.opening import open_engine
    from lmrl.engines.texts import sample_texts, sampling_spec
    from lmrl.rewards.binding import sampled_columns
    from lmrl.stages.rl.checks import encode_prompts, in_turns
    from lmrl.stages.rl.setup import configured_reward

    ids = encode_prompts(model, prompts)
    spec = sampling_spec(config.sampling, model.card, in_turns(model, prompts))
    drawn: list[Completion] = []
    with closing(open_engine(*config.engine.resolve(plugins))) as engine:
        for start in range(0, len(places), CHUNK):
            asked_ids = [ids[place] for place in places[start : start + CHUNK]]
            seed = derive_seed(config.run.seed, purpose, start)
            drawn += sample_texts(model, asked_ids, spec, seed, engine)
    texts = [completion.text for completion in drawn]
    reward = configured_reward(config, plugins)
    columns = {name: [column[place] for place in places] for name, column in prompts.columns.items()}
    sampled, reasons = [one.ids for one in drawn], [one.finish for one in drawn]
    columns |= sampled_columns(reward, model.card.codec, [ids[place] for place in places], sampled, reasons)
    asked = [prompts.prompts[place] for place in places]
    return asked, texts, reward(asked, texts, columns)


def _preferences(
    prompts: Sequence[str], texts: Sequence[str], scores: Sequence[float], size: int
) -> list[dict[str, Any]]:
    rows = []
    for start in range(0, len(texts), size):
        group = range(start, start + size)
        best, worst = max(group, key=scores.__getitem__), min(group, key=scores.__getitem__)
        if scores[best] > scores[worst]:
            rows.append({"prompt": prompts[start], "chosen": texts[best], "rejected": texts[worst]})
    return rows


def _labelled(prompts: Sequence[str], texts: Sequence[str], scores: Sequence[float], size: int) -> list[dict[str, Any]]:
    """Good is what scores more than the mean of all: with a reward of two values, the higher one."""
    del size
    usual = sum(scores) / len(scores)
    return [
        {"prompt": prompt, "completion": text, "label": score > usual}
        for prompt, text, score in zip(prompts, texts, scores, strict=True)
    ]


def _rewarded(prompts: Sequence[str], texts: Sequence[str], scores: Sequence[float], size: int) -> list[dict[str, Any]]:
    del size
    return [
        {"prompt": prompt, "completion": text, "reward": score}
        for prompt, text, score in zip(prompts, texts, scores, strict=True)
    ]


def _ranked(prompts: Sequence[str], texts: Sequence[str], scores: Sequence[float], size: int) -> list[dict[str, Any]]:
    return [
        {"prompt": prompts[start], "completions": list(texts[start:end]), "scores": list(scores[start:end])}
        for start, end in ((start, start + size) for start in range(0, len(texts), size))
        if len(set(scores[start:end])) > 1
    ]


def _best(prompts: Sequence[str], texts: Sequence[str], scores: Sequence[float], size: int) -> list[dict[str, Any]]:
    starts = range(0, len(texts), size)
    best = [max(range(start, start + size), key=scores.__getitem__) for start in starts]
    return [{"prompt": prompts[place], "completion": texts[place]} for place in best]


MAKERS = {
    "preferences": _preferences,
    "labelled": _labelled,
    "trajectories": _rewarded,
    "rankings": _ranked,
    "demonstrations": _best,
}
