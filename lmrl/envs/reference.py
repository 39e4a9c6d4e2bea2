"""The frozen reference of an environment: which model it is, and its log-probabilities of the chosen actions.

torch is imported when the reference is first asked. Leaves out the trainer's teacher-forced scoring, which is
``lmrl.models.text_policy``.
"""

from __future__ import annotations

import inspect
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmrl.errors import ModelError, NonFiniteError, SettingsError
from lmrl.text.card import ModelCard, load_card
from lmrl.text.vocabulary import require_same_vocabulary

if TYPE_CHECKING:
    from torch import Tensor

    from lmrl.envs.reference_scorers import Scorer
    from lmrl.models.loading import LanguageModel

_loaded: weakref.WeakValueDictionary[tuple[Any, ...], LanguageModel] = weakref.WeakValueDictionary()
"""Frozen models in use, so that environments of one process share the weights of one folder."""


class FrozenModel:
    """A model that nobody trains: a folder or hub id that is loaded when first needed, or a live one.

    Copies share it. A pickle holds the name, or the live model's weights.
    """

    def __init__(self, name: str | None, live: LanguageModel | None = None, trust_remote_code: bool = False) -> None:
        self.name, self.trust_remote_code = name, trust_remote_code
        self._model = live
        self.cache_works: bool | None = None
        """True if the key-value cache was found to agree with re-encoding; None before the first try."""
        self._keep_last: dict[str, int] | None = None

    def load(self) -> LanguageModel:
        """Return the model, without gradients."""
        if self._model is None:
            assert self.name is not None
            self._model = _load_shared(self.name, self.trust_remote_code)
        if self._model.model.training:
            self._model.model.eval()  # dropout would make the reference a different one at every step
        return self._model

    def last_logits(self, **inputs: Any) -> Tensor:
        """Run the model and return the logits after each row's last column, (B, V)."""
        model = self.load().model
        if self._keep_last is None:
            parameters = inspect.signature(model.forward).parameters.values()
            takes = any(one.name == "logits_to_keep" or one.kind is one.VAR_KEYWORD for one in parameters)
            self._keep_last = {"logits_to_keep": 1} if takes else {}
        logits: Tensor = model(**inputs, **self._keep_last).logits[:, -1]
        return logits

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenModel:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenModel, (self.name, self._model if self.name is None else None, self.trust_remote_code))


def reference_of(reference: Any, model: Any, card: ModelCard, trust_remote_code: bool = False) -> FrozenModel | None:
    """Return the frozen model that the keyword ``reference`` names; ``model`` is the environment's own, with ``card``.

    A live model that may still be trained is copied, so that the reference stays what it was; a live model given as
    ``reference`` is used as it is, and one whose parameters need no gradient is shared.
    """
    if reference is False or reference is None:
        return None
    if reference is True:
        if isinstance(model, str | os.PathLike):
            return FrozenModel(os.fspath(model), trust_remote_code=trust_remote_code)
        return FrozenModel(None, _kept(model))
    if isinstance(reference, str | os.PathLike):
        name = os.fspath(reference)
        _check_fits(load_card(name, trust_remote_code=trust_remote_code), card)
        return FrozenModel(name, trust_remote_code=trust_remote_code)
    if not isinstance(getattr(reference, "card", None), ModelCard):
        raise ModelError(
            f"reference is a {type(reference).__name__}; expected True, False, a folder, a hub id, or a live "
            "lmrl.models.LanguageModel(model, card)"
        )
    _check_fits(reference.card, card)
    return FrozenModel(None, reference)


class Reference:
    """The reference's log-probabilities of actions, for B episodes side by side."""

    def __init__(self, model: FrozenModel, temperature: float, rows: int, length: int) -> None:
        self.model = model
        self.temperature = temperature
        self.rows = rows
        self.length = length
        self._scorer: Scorer | None = None

    def begin(self, row: int) -> None:
        """Forget what was computed for this row: its episode starts again."""
        if self._scorer is not None:
            self._scorer.begin(row)

    def logprobs(
        self,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],
        actions: NDArray[np.int64],
        rows: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Return log pi_ref(action | the row's first ``lengths`` tokens), float64 (B,), 0 outside ``rows``.

        ``tokens`` is (B, L). At the environment's temperature, over the whole vocabulary. Asking twice for one state
        is allowed. Raises ``NonFiniteError`` when the reference's logits are not finite.
        """
        if self._scorer is None:
            from lmrl.envs.reference_scorers import make_scorer

            self._scorer = make_scorer(self.model, self.temperature, self.rows, self.length)
        result = np.where(rows, self._scorer.logprobs(tokens, lengths, actions, rows), 0.0)
        if not np.isfinite(result).all():
            row = int(np.flatnonzero(~np.isfinite(result))[0])
            raise NonFiniteError(
                f"the reference's log-probability of token {int(actions[row])} in row {row} is {result[row]}; "
                "its weights hold a NaN or an infinity, or its temperature is too low"
            )
        return result


def _kept(model: LanguageModel) -> LanguageModel:
    """Return a live model that nobody can train: itself if no parameter needs a gradient, else a frozen copy."""
    if not any(parameter.requires_grad for parameter in model.model.parameters()):
        return model
    from lmrl.models import LanguageModel, freeze_copy

    return LanguageModel(freeze_copy(model.model), model.card)


def _check_fits(reference: ModelCard, card: ModelCard) -> None:
    require_same_vocabulary(reference, card)
    if reference.context_length < card.context_length:
        raise SettingsError(
            f"the reference {reference.path} has a context of {reference.context_length} and the model {card.path} one "
            f"of {card.context_length}; expected a reference that can read every state"
        )


def _load_shared(name: str, trust_remote_code: bool) -> LanguageModel:
    from lmrl.models import load

    key = (name, *_fingerprint(Path(name).expanduser()))
    model = _loaded.get(key)
    if model is None:
        model = load(name, trust_remote_code=trust_remote_code)
        model.model.requires_grad_(False)
        _loaded[key] = model
    return model


def _fingerprint(folder: Path) -> list[tuple[str, int, int]]:
    """Tell the weights of a folder from those that it held before."""
    if not folder.is_dir():
        return []
    files = sorted(folder.glob("*.safetensors"))
    return [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
