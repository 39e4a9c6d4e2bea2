"""The task of all episodes, made once from the environment's keywords and never changed."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lmrl.engines.protocol import OnLength, SamplingSpec
from lmrl.envs.prompts import Prompt, read_prompt, read_prompts
from lmrl.envs.reference import FrozenModel, reference_of
from lmrl.errors import ModelError, PromptError, SettingsError
from lmrl.rewards import RewardFunction, builtin_specs, resolve
from lmrl.rewards.scorable import OnUnreadable, scorable_rows
from lmrl.stories.recognise import refuse_story_defaults
from lmrl.text.card import ModelCard, load_card
from lmrl.text.turns import with_turn_end

if TYPE_CHECKING:
    from lmrl.models.loading import LanguageModel

DEFAULT_PROMPTS = 64
"""Openings that the embedded world gives when no prompts are named."""

MISSING = {
    "prompts": "prompts=[...]",
    "reward": "reward= a name, 'module:function', a callable (prompts, responses, **columns), or names with weights",
}
"""Settings to pass with a model that does not descend from the embedded one."""
RESET_OPTIONS = ("prompt", "prompt_index", "reset_mask")


class TaskKeywords(TypedDict, total=False):
    """The keywords of both environments; ``make_task`` says what they mean."""

    model: str | os.PathLike[str] | LanguageModel | None
    prompts: Any
    columns: Mapping[str, Any] | None
    reward: str | Callable[..., Any] | Mapping[str, float] | None
    reward_settings: Mapping[str, Any] | None
    beta: float
    temperature: float
    max_new_tokens: int
    observation_length: int | None
    on_length: OnLength
    stop_strings: Sequence[str]
    forbidden_tokens: Sequence[int]
    observe_action_mask: bool
    reference: bool | str | os.PathLike[str] | LanguageModel
    on_unreadable: OnUnreadable
    trust_remote_code: bool


@dataclass(frozen=True)
class Task:
    """Model card, prompts, reward, sampling rules and reference of an environment. Copies share it."""

    card: ModelCard
    prompts: tuple[Prompt, ...]
    reward: RewardFunction
    spec: SamplingSpec
    beta: float
    observation_length: int
    observe_action_mask: bool
    reference: FrozenModel | None

    def __deepcopy__(self, memo: dict[int, Any]) -> Task:
        return self

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """True for tokens that may be chosen, (V,)."""
        allowed = np.ones(self.card.vocab_size, dtype=np.bool_)
        allowed[list(self.spec.forbidden_ids)] = False
        return allowed

    @cached_property
    def ends_episode(self) -> NDArray[np.bool_]:
        """True for EOS tokens, (V,)."""
        eos = np.zeros(self.card.vocab_size, dtype=np.bool_)
        eos[[token for token in self.spec.eos_ids if token < self.card.vocab_size]] = True
        return eos

    def observation_space(self) -> spaces.Dict:
        """Return the space of one observation: a flat Dict of Boxes."""
        length, vocabulary = self.observation_length, self.card.vocab_size
        parts: dict[str, spaces.Space[Any]] = {
            "input_ids": spaces.Box(0, vocabulary - 1, (length,), np.int64),
            "attention_mask": spaces.Box(0, 1, (length,), np.int8),
            "prompt_length": spaces.Box(1, length, (1,), np.int64),
        }
        if self.observe_action_mask:
            parts["action_mask"] = spaces.Box(0, 1, (vocabulary,), np.int8)
        return spaces.Dict(parts)

    def action_space(self) -> spaces.Discrete:
        """Return the space of one action: a bare token id."""
        return spaces.Discrete(self.card.vocab_size)

    def chosen_prompt(self, options: Mapping[str, Any] | None) -> tuple[int, Prompt] | None:
        """Return the prompt that reset's ``options`` ask for with its index (-1: not in the list), or None."""
        asked = _reset_options(options)
        if asked.get("prompt_index") is not None and asked.get("prompt") is not None:
            raise PromptError("both prompt_index and prompt are among the options of reset; give one of them")
        if asked.get("prompt_index") is not None:
            index = asked["prompt_index"]
            count = len(self.prompts)
            if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < count:
                raise PromptError(f"prompt_index is {index!r}; expected an integer from 0 to {count - 1}")
            return int(index), self.prompts[index]
        if asked.get("prompt") is None:
            return None
        prompt = read_prompt(asked["prompt"], self.card, "the prompt in the options of reset")
        missing = set(self.prompts[0].columns) - set(prompt.columns)
        if missing:
            raise PromptError(
                f"the prompt in the options of reset has no column {sorted(missing)}; give it as a mapping with the "
                "columns that the other prompts have"
            )
        if prompt.in_turns and not set(with_turn_end(self.card).eos_ids) <= set(self.spec.eos_ids):
            raise PromptError(
                "the prompt in the options of reset is a conversation, but the environment's prompts are texts, whose "
                "episodes do not end at the template's end-of-turn token; make the environment with messages as prompts"
            )
        needed = longest_episode([prompt], self.spec)
        if needed > self.observation_length:
            raise PromptError(
                f"the prompt in the options of reset has {len(prompt.ids)} tokens and may grow to {needed}, but "
                f"observation_length is {self.observation_length}; make the environment with a larger one"
            )
        return -1, prompt


def _reset_options(options: Any) -> Mapping[str, Any]:
    """Return the options of reset; a wrapper may have some of its own, so only what looks misspelt is refused."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise PromptError(f"the options of reset are {options!r}; expected a mapping such as {{'prompt_index': 0}}")
    for name in options:
        guess = difflib.get_close_matches(str(name), RESET_OPTIONS, n=1, cutoff=0.75)
        if name not in RESET_OPTIONS and guess:
            raise PromptError(f"unknown option of reset {name!r}; did you mean {guess[0]!r}?")
    return options


def longest_episode(prompts: Iterable[Prompt], spec: SamplingSpec) -> int:
    """Return how many tokens prompt and response may have together."""
    longest = max(len(prompt.ids) for prompt in prompts) + spec.max_new_tokens
    return longest if spec.context_length is None else min(spec.context_length, longest)


def make_task(
    *,
    model: str | os.PathLike[str] | LanguageModel | None = None,
    prompts: Any = None,
    columns: Mapping[str, Any] | None = None,
    reward: str | Callable[..., Any] | Mapping[str, float] | None = None,
    reward_settings: Mapping[str, Any] | None = None,
    beta: float = 0.0,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    observation_length: int | None = None,
    on_length: OnLength = "terminate",
    stop_strings: Sequence[str] = (),
    forbidden_tokens: Sequence[int] = (),
    observe_action_mask: bool = False,
    reference: bool | str | os.PathLike[str] | LanguageModel = True,
    on_unreadable: OnUnreadable = "skip",
    trust_remote_code: bool = False,
) -> Task:
    """Check an environment's keywords and return its task.

    ``model`` is a folder, a hub id or a live ``LanguageModel``; None is the embedded one, whose prompts and reward
    have defaults too. ``prompts`` are strings, lists of chat messages, rows of token ids, rows of any shape that the RL
    stage reads, a path, or a table of pandas or ``datasets``; their columns go to the reward by name, and ``columns``
    maps the names (ours = theirs). With messages, the chat template's end-of-turn token ends an episode. ``beta`` and
    ``temperature`` are those of the KL shaping; ``observation_length`` is L.
    ``reference`` True is the model itself, frozen; False reports no ``ref_logprob`` and excludes ``beta > 0``.
    ``trust_remote_code`` runs Python code that model or reference come with.

    Prompts whose answer column the reward cannot read are skipped with a warning, or raise an error for
    ``on_unreadable="error"``.

    Raises ``SettingsError``, ``PromptError``, ``RewardError`` or ``ModelError``.
    """
    from lmrl.stories import MODEL_PATH

    source: Any = str(MODEL_PATH) if model is None else model
    card = card_of(source, trust_remote_code)
    given = {"prompts": prompts, "reward": reward}
    missing = {name: MISSING[name] for name, value in given.items() if value is None}
    refuse_story_defaults(card, missing, error=PromptError if prompts is None else SettingsError)
    _check_numbers(beta, temperature, max_new_tokens, observation_length)
    score = _reward_or_default(reward, reward_settings)
    read = _scorable(read_prompts(_prompts_or_default(prompts), card, columns), score, on_unreadable)
    if any(prompt.in_turns for prompt in read):
        card = with_turn_end(card)
    spec = SamplingSpec(
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        eos_ids=card.eos_ids,
        stop_strings=_strings(stop_strings),
        forbidden_ids=_token_ids(forbidden_tokens, card),
        context_length=card.context_length,
        on_length=on_length,
    )
    frozen = reference_of(reference, source, card, trust_remote_code)
    if beta > 0 and frozen is None:
        raise SettingsError(f"beta is {beta}, but reference is False; KL shaping needs the frozen reference")
    length = _length(observation_length, longest_episode(read, spec))
    return Task(card, read, score, spec, float(beta), length, bool(observe_action_mask), frozen)


def _scorable(prompts: tuple[Prompt, ...], reward: RewardFunction, on_unreadable: OnUnreadable) -> tuple[Prompt, ...]:
    if on_unreadable not in get_args(OnUnreadable):
        raise SettingsError(f"on_unreadable is {on_unreadable!r}; expected 'skip' or 'error'")
    columns = {name: [prompt.columns[name] for prompt in prompts] for name in prompts[0].columns}
    origins = [f"prompt {number}" for number in range(len(prompts))]
    return tuple(prompts[place] for place in scorable_rows([reward], columns, origins, on_unreadable))


def card_of(model: Any, trust_remote_code: bool = False) -> ModelCard:
    """Return the card of a folder, hub id or live ``LanguageModel``."""
    if isinstance(model, str | os.PathLike):
        return load_card(os.fspath(model), trust_remote_code=trust_remote_code)
    card = getattr(model, "card", None)
    if isinstance(card, ModelCard):
        return card
    raise ModelError(
        f"model is a {type(model).__name__}; expected a folder, a hub id, or a live "
        "lmrl.models.LanguageModel(model, card)"
    )


def _check_numbers(beta: Any, temperature: Any, max_new_tokens: Any, observation_length: Any) -> None:
    for name, value, lowest in (("beta", beta, "0 or more"), ("temperature", temperature, "above 0")):
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (name == "temperature" and value == 0):
            raise SettingsError(f"{name} is {value!r}; expected a finite number {lowest}")
    for name, value in (("max_new_tokens", max_new_tokens), ("observation_length", observation_length)):
        if name == "observation_length" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise SettingsError(f"{name} is {value!r}; expected an integer of at least 1")


def _length(asked: int | None, needed: int) -> int:
    if asked is None:
        return needed
    if asked < needed:
        raise SettingsError(
            f"observation_length is {asked}, but the longest prompt and its response may have {needed} tokens; "
            "give at least that, lower max_new_tokens, or leave it out"
        )
    return int(asked)


def _strings(stop_strings: Any) -> tuple[str, ...]:
    if isinstance(stop_strings, str) or not all(isinstance(stop, str) for stop in stop_strings):
        raise SettingsError(f"stop_strings is {stop_strings!r}; expected a list of strings")
    return tuple(stop_strings)


def _token_ids(forbidden: Sequence[int], card: ModelCard) -> tuple[int, ...]:
    for token in forbidden:
        if isinstance(token, bool) or not isinstance(token, int | np.integer) or not 0 <= token < card.vocab_size:
            raise SettingsError(
                f"forbidden_tokens holds {token!r}; expected token ids, integers from 0 to {card.vocab_size - 1}"
            )
    ids = tuple(sorted({int(token) for token in forbidden}))
    if len(ids) == card.vocab_size:
        raise SettingsError("forbidden_tokens forbids the whole vocabulary; leave at least one token")
    return ids


def _prompts_or_default(prompts: Any) -> Any:
    if prompts is not None:
        return prompts
    from lmrl.stories import openings

    return openings(seed=0, count=DEFAULT_PROMPTS)


def _reward_or_default(reward: Any, settings: Mapping[str, Any] | None) -> RewardFunction:
    if reward is not None:
        return resolve(reward, settings)
    # The record itself, not its name: finding a name loads all plugins, and some of them load torch.
    return resolve(next(spec for spec in builtin_specs() if spec.name == "happy_end"), settings)
