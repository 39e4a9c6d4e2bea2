"""Best of n, as a plugin of lmrl: a policy of inference time, in the form of a decode engine.

Of n answers to each prompt the one that a reward likes best is given (Stiennon et al. 2020; Nakano et al. 2021).
Nothing is trained, and the KL to the model that is sampled is at most log n - (n - 1) / n (Beirami et al. 2024,
theorem 1; ``lmrl.statistics.best_of_kl``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lmrl import EngineError, EngineSpec, PluginManager, SettingsError, hookimpl
from lmrl.engines import (
    Capabilities,
    Request,
    RequestSource,
    Response,
    WeightSource,
    derive_seed,
    generate_all,
    open_engine,
)
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

    capabilities = Capabilities()

    def __init__(self, settings: BestOfNSettings) -> None:
        self.settings = settings
        plugins = PluginManager()
        spec = plugins.get("engine", settings.engine)
        self.engine = open_engine(spec, spec.settings())
        self.reward = resolve(settings.reward, settings.settings or None, plugins)
        self.reward.check_columns(())  # an engine sees no columns of the data
        self.codecs: dict[str, Any] = {}

    def publish(self, weights: WeightSource, version: int, model: str = "policy") -> None:
        """Hand the weights on, and keep the tokenizer: the reward scores texts."""
        if weights.codec is None:
            raise SettingsError("best_of_n scores texts; expected weights with the model's codec")
        self.engine.publish(weights, version, model)
        self.codecs[model] = weights.codec

    def generate(self, requests: RequestSource) -> Iterator[Response]:
        """Yield the best of n answers to each request, as many together as wait; see ``lmrl.engines.Engine``."""
        while not requests.closed:
            waiting = requests.take()
            if not waiting:
                requests.wait()
            for model in dict.fromkeys(request.model for request in waiting):
                if model not in self.codecs:
                    raise EngineError(f"best_of_n has no weights of the model {model!r}; call publish before generate")
                yield from self._best([request for request in waiting if request.model == model], self.codecs[model])

    def close(self) -> None:
        """Close the engine that draws."""
        self.engine.close()

    def _best(self, requests: list[Request], codec: Any) -> Iterator[Response]:
        n = self.settings.n
        copies: list[Request] = []
        for request in requests:
            seeds = [request.seed, *(derive_seed(request.seed, "draw", draw) for draw in range(1, n))]
            copies += [replace(request, id=len(copies) + draw, seed=seed) for draw, seed in enumerate(seeds)]
        drawn = generate_all(self.engine, copies)
        prompts, ids = [list(one.request.ids) for one in drawn], [one.ids for one in drawn]
        texts: list[str] = []
        for one, prompt in zip(drawn, prompts, strict=True):
            spec = one.request.spec
            texts += response_texts(codec, [prompt], [one.ids], spec.eos_ids, spec.stop_strings)
        asked = [text for text in codec.decode_batch(prompts[::n]) for _ in range(n)]
        columns = sampled_columns(self.reward, codec, prompts, ids, [one.finish for one in drawn])
        found = self.reward(asked, texts, columns)
        # A response without a score is taken only where no other has one.
        scores = np.where(found.scored, found.scores, -np.inf).reshape(len(requests), n)
        for place, (request, best) in enumerate(zip(requests, scores.argmax(1).tolist(), strict=True)):
            yield replace(drawn[place * n + best], request=request)


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
