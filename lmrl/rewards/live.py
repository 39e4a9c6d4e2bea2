"""Live models as rewards: classifiers and pipelines of transformers, and reward models; others are refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lmrl.errors import ModelError, SettingsError
from lmrl.rewards.binding import RESPONSES
from lmrl.rewards.learned import Learned, LearnedSettings

ADVICE = (
    'Pass transformers.pipeline("text-classification", model=model, tokenizer=tokenizer), the folder of the saved '
    "model, or a function (prompts, responses) -> scores that tokenizes and calls the model."
)


def live_kind(reward: Any) -> str:
    """Return "pipeline", "pretrained", "reward model" or "module" for live models, an empty string for others.

    It reads the names of base classes, so nothing is imported.
    """
    if isinstance(reward, tuple) and len(reward) == 2:
        return "pretrained" if live_kind(reward[0]) == "pretrained" else ""
    names = {f"{base.__module__.split('.')[0]}.{base.__name__}" for base in type(reward).__mro__}
    for kind, base in (
        ("pipeline", "transformers.Pipeline"),
        ("reward model", "lmrl.RewardModel"),
        ("pretrained", "transformers.PreTrainedModel"),
        ("module", "torch.Module"),
    ):
        if base in names:
            return kind
    return ""


def live_reward(reward: Any, table: Mapping[str, Any]) -> Any:
    """Return the callable of a live model; ``table`` are settings of the reward ``learned``.

    Raises ``SettingsError`` or ``ModelError`` for models that give no score of a text.
    """
    from lmrl.config import build

    kind = live_kind(reward)
    if kind == "module":
        return _module(reward)
    for name in ("path", "paths", "device", "trust_remote_code"):
        if name in table:
            raise SettingsError(f"the reward is a live model, so its setting {name} is not read; leave it out")
    settings = build(LearnedSettings, dict(table), "reward_settings")
    if kind == "reward model":
        if settings.label:
            raise SettingsError("the reward is a reward model with one score, but label is set; leave label out")
        return Learned.of(reward, settings)
    if isinstance(reward, tuple):
        model, tokenizer = reward
    elif kind == "pipeline":
        if getattr(reward, "task", "") not in ("text-classification", "sentiment-analysis"):
            raise SettingsError(
                f"the reward is a pipeline for {getattr(reward, 'task', 'an unknown task')!r}; expected one for "
                "'text-classification'."
            )
        model, tokenizer = reward.model, reward.tokenizer
    else:
        model, tokenizer = reward, None
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise ModelError(
            f"the reward is a live {type(model).__name__}, which gives no score of a text; expected a model of "
            "AutoModelForSequenceClassification. Train one with `lmrl reward`."
        )
    return _classifier(model, tokenizer if tokenizer is not None else _tokenizer_of(model), settings)


def _classifier(model: Any, tokenizer: Any, settings: LearnedSettings) -> Learned:
    from lmrl.models.reward_model import RewardModel
    from lmrl.text.card import ModelCard, TransformersCodec
    from lmrl.text.labels import choose_label
    from lmrl.text.reward_card import read_normalisation, scorer_card

    config = model.config.to_dict()
    text = model.config.get_text_config()
    name = str(model.name_or_path or type(model).__name__)
    choice = choose_label(f"the live {type(model).__name__}", config, settings.label, settings.output)
    eos = text.eos_token_id
    lengths = [getattr(text, key, None) for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")]
    card = ModelCard(
        path=name,
        codec=TransformersCodec(tokenizer),
        eos_ids=tuple(eos) if isinstance(eos, list) else (() if eos is None else (int(eos),)),
        bos_id=text.bos_token_id,
        pad_id=text.pad_token_id,
        context_length=min((int(length) for length in lengths if length), default=2048),
        vocab_size=int(text.vocab_size),
    )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ModelError(
            f"the tokenizer of the live {type(model).__name__} has {len(tokenizer)} ids, and its embedding table "
            f"{model.get_input_embeddings().num_embeddings} rows; pass the model's own tokenizer."
        )
    card = scorer_card(card, config, getattr(tokenizer, "model_max_length", None))
    return Learned.of(RewardModel(model, card, read_normalisation(config), choice=choice), settings)


def _tokenizer_of(model: Any) -> Any:
    """Return the tokenizer of the folder or hub id that a live model was loaded from."""
    from transformers import AutoTokenizer

    name = str(model.name_or_path or "")
    if name:
        try:
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception:  # transformers raises many kinds; each means that there is no tokenizer beside the model
            pass
    raise ModelError(
        f"the reward is a live {type(model).__name__} without a tokenizer"
        + (f": {name} has none" if name else "")
        + f"; expected both, because a reward gets texts. {ADVICE}"
    )


def _module(reward: Any) -> Any:
    """Return the forward method of a torch module whose parameters say that it takes texts."""
    parameters = inspect.signature(reward.forward).parameters
    if any(name in RESPONSES for name in parameters):
        return reward.forward
    raise SettingsError(
        f"the reward is a live {type(reward).__name__} (torch.nn.Module) whose forward takes "
        f"({', '.join(parameters)}); expected parameters named prompts and responses, because a reward gets "
        f"texts. {ADVICE}"
    )
