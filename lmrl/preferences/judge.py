"""Judges: a language model is asked, pair by pair, which answer is better."""

from __future__ import annotations

from lmrl.errors import SettingsError
from lmrl.preferences.annotators import Annotator
from lmrl.preferences.judge_settings import JudgeSettings


def build_judge(settings: JudgeSettings, name: str = "") -> Annotator:
    """Return the judge that the settings describe."""
    raise SettingsError("judges are not built yet")
