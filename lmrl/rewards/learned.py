"""``learned``: the score of a reward model, or of an ensemble of them.

Settings and files are checked when the reward is built; torch and the weights are loaded when it is first called, and
loaded anew in another process, so that it pickles as its settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmrl.config import only_if
from lmrl.errors import RewardError, SettingsError
from lmrl.models.reward_rows import fitted_row, reward_row, text_row
from lmrl.text.labels import Output
from lmrl.text.reward_card import RewardCard, load_reward_card, member_folders

if TYPE_CHECKING:
    from lmrl.models.reward_model import RewardModel

Aggregation = Literal["mean", "worst", "uncertainty"]
"""Ways to make one score of those of several reward models (Coste et al. 2023, section 3.2)."""


@dataclass
class LearnedSettings:
    """Settings of the reward ``learned``."""

    path: str = ""
    """Reward model: the folder of a `lmrl reward` run (an ensemble's folder stands for all its members), of a
    checkpoint that AutoModelForSequenceClassification loads with one label, or a hub id."""
    paths: list[str] = field(default_factory=list)
    """Several reward models instead of one, for an ensemble of your own."""
    aggregation: Aggregation = "mean"
    """Score of an ensemble: mean, worst (the lowest), or uncertainty (mean minus coefficient times the
    members' variance)."""
    coefficient: float = 1.0
    """In the aggregation uncertainty: what a unit of variance costs."""
    normalise: bool = True
    """Subtract the mean and divide by the standard deviation of the reference samples that the model was normalised on.
    A model without these numbers gives its raw scores."""
    label: str = ""
    """Label of a classifier with several labels that is the reward: its name or number. A reward model has none."""
    output: Output = "log_probability"
    """Form of the label's score: log_probability, probability (from 0 to 1) or logit (before the softmax)."""
    reads: Literal["auto", "conversation", "text", "response"] = "auto"
    """Input of the model. conversation: prompt and response in the model's own form (chat template, EOS, or an
    encoder's pair); text: the prompt followed by the response, as one text; response: the response alone. auto: text
    for a classifier with a label, conversation otherwise."""
    token_budget: int = 0
    """Positions per forward pass, padding included. 0: 4096 on a CPU, 32768 elsewhere."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one, cpu never does."""
    trust_remote_code: bool = False
    """Run Python code that a reward model comes with; read that code first."""

    def __post_init__(self) -> None:
        for name in ("coefficient", "token_budget"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected a number >= 0")

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others are, each with the one that it needs."""
        unread = only_if(self.aggregation == "uncertainty", "aggregation=uncertainty", "coefficient")
        return unread | only_if(bool(self.label), "label=...", "output")


class Learned:
    """Scores with one reward model or several; each renders the conversation with its own chat template.

    Parts: ``raw``, the score before normalisation; of an ensemble ``member_<i>`` and ``std``, the members' normalised
    scores and their standard deviation. ``cut``: tokens left out at a row's beginning because it exceeded the context.
    """

    def __init__(self, settings: LearnedSettings) -> None:
        if bool(settings.path) == bool(settings.paths):
            raise SettingsError(
                f"the learned reward's path is {settings.path!r} and its paths are {settings.paths!r}; expected one of "
                'the two, the folder of a run of `lmrl reward` say: path = "runs/reward-1"'
            )
        self.settings = settings
        named = [settings.path] if settings.path else list(settings.paths)
        self.folders: list[str] = []
        for name in named:
            self.folders += [str(folder) for folder in member_folders(name)] or [name]
        trust = settings.trust_remote_code
        self.cards = [
            load_reward_card(folder, trust_remote_code=trust, label=settings.label, output=settings.output)
            for folder in self.folders
        ]
        bare = [card.card.path for card in self.cards if not card.normalisation.count]
        if len(self.folders) > 1 and settings.normalise and settings.aggregation != "mean" and bare:
            raise SettingsError(
                f"aggregation is {settings.aggregation!r}, but {bare[0]} was never normalised on reference samples, so "
                "its scores have no common scale with the others'; use aggregation = 'mean', or normalise it"
            )
        self._models: list[RewardModel] | None = None
        self._live = False

    @classmethod
    def of(cls, model: RewardModel, settings: LearnedSettings) -> Learned:
        """Return the reward of a model that is loaded already; it pickles with its weights."""
        made = cls.__new__(cls)
        made.settings, made.folders = settings, [model.card.path]
        made.cards, made._models, made._live = (
            [RewardCard(model.card, model.normalisation, model.choice)],
            [model],
            True,
        )
        return made

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Least and greatest score, where they are known."""
        probability = self.settings.label and self.settings.output == "probability"
        return (0.0, 1.0) if probability else None

    @property
    def models(self) -> list[RewardModel]:
        """The reward models, loaded when first asked for."""
        if self._models is None:
            import torch

            from lmrl.models.reward_model import load_reward_model

            on_gpu = self.settings.device == "auto" and torch.cuda.is_available()
            device = torch.device("cuda" if on_gpu else "cpu")
            trust = self.settings.trust_remote_code
            self._models = [
                load_reward_model(
                    folder,
                    device=device,
                    trust_remote_code=trust,
                    label=self.settings.label,
                    output=self.settings.output,
                )
                for folder in self.folders
            ]
        return self._models

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        prompt_messages: Sequence[Sequence[Mapping[str, str]] | None] | None = None,
    ) -> dict[str, Any]:
        """Return scores and parts; where a row has ``prompt_messages``, they take the place of its prompt's text."""
        asked: list[Any] = list(prompts)
        for place, messages in enumerate(prompt_messages or []):
            if messages is not None and len(messages):
                asked[place] = tuple(messages)
        raw, cut = [], np.zeros(len(asked))
        for model in self.models:
            rows = []
            for place, (prompt, response) in enumerate(zip(asked, responses, strict=True)):
                row, excess = fitted_row(model.card, *self._row(model, prompt, response))
                if not row:
                    raise RewardError(f"row {place} has no tokens: prompt and response are empty")
                rows.append(row)
                cut[place] = max(cut[place], excess)
            budget = self.settings.token_budget or (4096 if next(model.parameters()).device.type == "cpu" else 32768)
            raw.append(model.score_rows(rows, budget, normalised=False).double().numpy())
        if not self.settings.normalise:
            members = np.stack(raw)
        else:
            scales = [model.normalisation for model in self.models]
            members = np.stack([(row - scale.mean) / scale.std for row, scale in zip(raw, scales, strict=True)])
        if len(members) == 1:
            return {"score": members[0], "raw": raw[0], "cut": cut}
        parts = {f"member_{number}": row for number, row in enumerate(members, start=1)}
        score = aggregate(members, self.settings.aggregation, self.settings.coefficient)
        return {"score": score, **parts, "std": members.std(axis=0), "cut": cut}

    def _row(self, model: RewardModel, prompt: Any, response: str) -> tuple[list[int], list[int]]:
        reads = self.settings.reads
        if reads == "auto":
            reads = "conversation" if model.choice.output is None else "text"
        if reads == "conversation":
            return reward_row(model.card, prompt, response)
        if reads == "response":
            return text_row(model.card, response), []
        if not isinstance(prompt, str):
            prompt = "\n".join([*(str(message["content"]) for message in prompt), ""])
        return text_row(model.card, prompt + response), []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self._live else {**self.__dict__, "_models": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Learned:
        return self  # weights are shared by copies of an environment, not copied


def is_path(name: str) -> bool:
    """Say whether a reward is named by a path (or a hub id) and not by a registered name or ``module:function``."""
    return name.startswith((".", "~")) or "/" in name or "\\" in name or Path(name).is_dir()


def aggregate(scores: NDArray[np.float64], how: Aggregation = "mean", coefficient: float = 1.0) -> NDArray[np.float64]:
    """Return one score per text, (N,), of the members' scores, (K, N), which must be on one scale.

    mean: the members' mean. worst: their minimum, conservative without a coefficient. uncertainty: mean minus
    ``coefficient`` times the members' variance (divided by K), which punishes texts that they disagree about.
    """
    if how == "worst":
        return np.asarray(scores.min(axis=0))
    mean = np.asarray(scores.mean(axis=0))
    return mean - coefficient * scores.var(axis=0) if how == "uncertainty" else mean
