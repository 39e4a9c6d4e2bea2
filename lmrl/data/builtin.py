"""The data set that ships with the core, as the record that the core's plugin registers."""

from __future__ import annotations

from lmrl.config import PluginChoice, build
from lmrl.data.prompts import PromptSettings, load_rows
from lmrl.plugins.specs import DatasetSpec


def prompt_settings(choice: PluginChoice) -> PromptSettings:
    """Return the settings of ``[prompts.file]``, which also hold for prompts that are given in Python."""
    return build(PromptSettings, choice.tables.get("file", {}), f"{choice.section or 'prompts'}.file")


def builtin_datasets() -> list[DatasetSpec]:
    """Return the data set ``file``; nothing is read before it is built."""
    return [
        DatasetSpec(
            name="file",
            build=load_rows,
            settings=PromptSettings,
            summary="Prompts of a file (.txt, .jsonl, .csv, .parquet ...), a saved folder or a data set on the hub.",
        )
    ]
