"""Data: prompt sets from files, lists and the hub, and the order in which training draws them."""

from lmrl.data.order import PromptOrder
from lmrl.data.prompts import PromptSet, PromptSettings, load_prompts, load_rows

__all__ = ["PromptOrder", "PromptSet", "PromptSettings", "load_prompts", "load_rows"]
