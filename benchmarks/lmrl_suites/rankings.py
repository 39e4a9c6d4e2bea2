"""Rankings that a suite's reward models learn from: read from files, or a model's answers in a reward's order."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lmrl.config import build
from lmrl.data import Ranking, RankingSet, load_rankings
from lmrl.data.layouts.conversations import opening
from lmrl.errors import SettingsError
from lmrl.models.reward_rows import with_template
from lmrl.plugins import PluginManager
from lmrl.stages.reward import RewardConfig
from lmrl.stages.reward.config import RankingDataSettings
from lmrl.stages.reward.data import encode_rankings
from lmrl.stages.rl import RLConfig
from lmrl.stages.rl.setup import embedded_model
from lmrl.text.card import ModelCard, load_card

logger = logging.getLogger(__name__)
DATA_SEED = 0
"""Of drawn answers: all seeds of a suite learn from one set of rankings, as they do where people made it."""


@dataclass
class Drawn:
    """Answers of a model that a reward puts in order."""

    prompts: int = 512
    """Prompts of the story world; those whose answers the reward likes all equally are left out."""
    answers: int = 4
    """To each of them."""
    gold: str = "good_story"
    """The reward, by name."""
    max_new_tokens: int = 48
    """Length of an answer at the most."""

    def __post_init__(self) -> None:
        if self.prompts < 2 or self.answers < 2:
            raise SettingsError(
                f"drawn is {self.answers} answers to {self.prompts} prompts; expected 2 of each at least"
            )


def one_pair(ranking: Ranking, seed: int) -> Ranking:
    """Return a ranking of two of the answers, drawn from those that differ in rank."""
    pair = random.Random(f"{seed} {opening(ranking.prompt)} {ranking.completions}").choice(ranking.pairs())
    scores = tuple(ranking.scores[i] for i in pair) if ranking.scores else ()
    return replace(ranking, completions=tuple(ranking.completions[i] for i in pair), ranks=(0, 1), scores=scores)


def readable(found: RankingSet, config: RewardConfig) -> tuple[RankingSet, ModelCard]:
    """Return the rankings with the answers that the model can read, which every way is given, and the model's card."""
    model = config.model or embedded_model()
    key = json.dumps([found.fingerprint(), asdict(config.data), model])
    if key in _READ:
        return _READ[key]
    card = load_card(model)
    if config.data.template == "plain":
        card = with_template(card)
    encoded = encode_rankings(found.rankings, card, config.data.too_long, config.data.max_tokens)
    for reason, count in encoded.skipped.items():
        logger.info("%s: %d %s", Path(config.data.path).name or "drawn rankings", count, reason)
    _READ.clear()
    _READ[key] = replace(found, rankings=[item.ranking for item in encoded.items]), card
    return _READ[key]


_READ: dict[str, tuple[RankingSet, ModelCard]] = {}
"""The rankings that were read last, which all ways of learning share."""


def split(found: RankingSet, config: RewardConfig, seed: int) -> tuple[RankingSet, RankingSet]:
    """Return the (training, held-out) rankings of a seed."""
    if not config.data.held_out:
        raise SettingsError("settings.data.held_out is 0; expected a share or a number of prompts to measure on")
    try:
        return found.split(config.data.held_out, seed)
    except SettingsError as error:
        raise SettingsError(f"settings.data.{error}") from error


def loaded(settings: RankingDataSettings) -> RankingSet:
    """Return the rankings of a file, which is read once per process and again when it changes."""
    path = Path(settings.path)
    changed = (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else (0, 0)
    return _read_once(json.dumps(asdict(settings), sort_keys=True), changed)


@functools.lru_cache(maxsize=8)
def _read_once(settings: str, changed: tuple[int, int]) -> RankingSet:
    del changed
    return load_rankings(None, RankingDataSettings(**json.loads(settings)))


def drawn_path(drawn: Drawn, folder: Path) -> Path:
    """Return the file of drawn rankings beside the results."""
    digest = hashlib.sha256(json.dumps(asdict(drawn), sort_keys=True).encode()).hexdigest()[:8]
    return folder / "rankings" / f"{drawn.gold}-{digest}.jsonl"


def draw(drawn: Drawn, folder: Path, plugins: PluginManager) -> None:
    """Sample answers of the embedded model and write their rankings, unless that has been done."""
    from lmrl.stages.prefer.samples import write_whole
    from lmrl_suites.offline import judged_answers

    path = drawn_path(drawn, folder)
    if path.exists():
        return
    config = build(
        RLConfig,
        {
            "prompts": {"name": "stories", "stories": {"count": drawn.prompts}},
            "reward": {"name": drawn.gold},
            "run": {"seed": DATA_SEED, "device": "cpu"},
            "sampling": {"max_new_tokens": drawn.max_new_tokens},
            "train": {"updates": 1, "prompts_per_update": drawn.prompts, "group_size": drawn.answers},
            "evaluation": {"prompts": 0},
        },
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, judged_answers(config, None, "rankings", plugins))
