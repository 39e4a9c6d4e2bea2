"""Best of n, as a plugin of lmrl: a policy of inference time, in the form of a decode engine.

Of n answers to each prompt the one that a reward likes best is given (Stiennon et al. 2020; Nakano et al. 2021).
Nothing is trained, and the KL to the model that is sampled is at most log n - (n - 1) / n (Beirami et al. 2024,
theorem 1; ``lmrl.statistics.best_of_kl``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lmrl import EngineSpec, PluginManager, Samples, SamplingSpec, SettingsError, hookimpl
from lmrl.rewards import resolve, sampled_columns
from lmrl.text import response_texts


@dataclass
class BestOfNSettings:
    """Settings of best-of-n."""

    n: int = 8
    """Answers drawn for each one that is given."""
    reward: str = "learned"
    """The reward that chooses: a name, or the folder of a reward model."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of that reward."""
    engine: str = "transformers"
    """The engine that draws the n answers."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise SettingsError(f"engine.best_of_n.n is {self.n}; expected an integer >= 1")
        if self.engine == "best_of_n":
            raise SettingsError("engine.best_of_n.engine is best_of_n itself; expected the engine that draws for it")


class BestOfN:
    """Decode engine that draws n answers with another engine and keeps the best.

    The log-probabilities are those of the kept tokens under the model, not under best-of-n, which nobody knows: so it
    serves evaluation and preference data, not training.
    """

    def __init__(self, settings: BestOfNSettings) -> None:
        self.settings = settings
        plugins = PluginManager()
        spec = plugins.get("engine", settings.engine)
        self.engine = spec.build(spec.settings())
        self.reward = resolve(settings.reward, settings.settings or None, plugins)
        self.reward.check_columns(())  # an engine sees no columns of the data

    def generate(
        self, model: Any, prompts: Sequence[Sequence[int]], spec: SamplingSpec, seed: int, codec: Any = None
    ) -> Samples:
        """Return the best of n answers to each row of ``prompts``; see ``lmrl.engines.Engine``."""
        if codec is None:
            raise SettingsError("best_of_n scores texts; expected the model's codec")
        n = self.settings.n
        rows = [prompt for prompt in prompts for _ in range(n)]
        samples: Samples = self.engine.generate(model, rows, spec, seed, codec)
        inputs = samples.inputs
        ids = inputs.action_rows()
        responses = response_texts(codec, rows, ids, spec.eos_ids, spec.stop_strings)
        asked = [text for text in codec.decode_batch([list(prompt) for prompt in prompts]) for _ in range(n)]
        columns = sampled_columns(self.reward, codec, rows, ids, samples.finish_reasons.tolist())
        found = self.reward(asked, responses, columns)
        # A response without a score is taken only where no other has one.
        scores = torch.as_tensor(np.where(found.scored, found.scores, -np.inf)).view(len(prompts), n)
        best = scores.argmax(1) + n * torch.arange(len(prompts))
        return samples.select(best.to(samples.action_mask.device))


@hookimpl
def lmrl_engines() -> Iterable[EngineSpec]:
    """Register best-of-n."""
    yield EngineSpec(
        name="best_of_n",
        build=BestOfN,
        settings=BestOfNSettings,
        summary="Gives the best of n answers by a reward: a policy of inference time, without training",
        draws_from_policy=False,
    )
