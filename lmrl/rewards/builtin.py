"""The rewards that ship with the core, as the records that the core's plugin registers."""

from __future__ import annotations

from lmrl.plugins.specs import RewardSpec
from lmrl.rewards.answers.exact_match import ExactMatch, ExactMatchSettings
from lmrl.rewards.answers.math_answer import MathAnswer, MathAnswerSettings
from lmrl.rewards.answers.multiple_choice import MultipleChoice, MultipleChoiceSettings
from lmrl.rewards.answers.numeric_answer import NumericAnswer, NumericAnswerSettings
from lmrl.rewards.answers.pattern import Pattern, PatternSettings
from lmrl.rewards.judge import JudgeReward, JudgeRewardSettings
from lmrl.rewards.learned import Learned, LearnedSettings
from lmrl.rewards.lexicon import Lexicon, LexiconSettings
from lmrl.rewards.shape import Length, LengthSettings, Repetition, RepetitionSettings
from lmrl.rewards.stories import GoodStory, GoodStorySettings, HappyEnd, HappyEndSettings


def builtin_specs() -> list[RewardSpec]:
    """Return the core's rewards; nothing is read or compiled before one is built."""
    return [
        RewardSpec("happy_end", HappyEnd, HappyEndSettings, "Whether a story of the embedded world ends happily."),
        RewardSpec(
            "good_story", GoodStory, GoodStorySettings, "A happy end, and the hero, object and place asked for."
        ),
        RewardSpec("lexicon", Lexicon, LexiconSettings, "Sentiment of the response by a lexicon file."),
        RewardSpec("pattern", Pattern, PatternSettings, "Whether or how often a regular expression matches."),
        RewardSpec("length", Length, LengthSettings, "A band that the response's length should lie in, or a cost."),
        RewardSpec("repetition", Repetition, RepetitionSettings, "Minus the share of repeated n-grams."),
        RewardSpec("exact_match", ExactMatch, ExactMatchSettings, "Whether the response is the column's answer."),
        RewardSpec(
            "numeric_answer", NumericAnswer, NumericAnswerSettings, "Whether the last plain number is the answer."
        ),
        RewardSpec(
            "math_answer", MathAnswer, MathAnswerSettings, "Whether the mathematical answer is right (math-verify)."
        ),
        RewardSpec(
            "multiple_choice", MultipleChoice, MultipleChoiceSettings, "Whether the chosen letter is the answer."
        ),
        RewardSpec("judge", JudgeReward, JudgeRewardSettings, "Grades of a language model by weighted criteria."),
        RewardSpec("learned", Learned, LearnedSettings, "The score of a reward model, or of an ensemble of them."),
    ]
