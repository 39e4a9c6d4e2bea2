"""Data: prompts, examples and rankings from files, lists and the hub, and the order in which training draws them."""

from lmrl.data.examples import Example, ExampleSet, load_examples
from lmrl.data.layouts.rows import RowSettings
from lmrl.data.prompts import PromptSet, PromptSettings, load_prompts, load_rows
from lmrl.data.rankings import RankingSet, load_rankings
from lmrl.data.records import Answer, ChatExample, CompletionExample, Message, Prompt, Ranking

__all__ = [
    "Answer",
    "ChatExample",
    "CompletionExample",
    "Example",
    "ExampleSet",
    "Message",
    "Prompt",
    "PromptSet",
    "PromptSettings",
    "Ranking",
    "RankingSet",
    "RowSettings",
    "load_examples",
    "load_prompts",
    "load_rankings",
    "load_rows",
]
