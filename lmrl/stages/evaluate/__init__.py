"""Evaluate models, and compare their answers: ``evaluate(EvaluateConfig(...))`` and ``compare(...)``."""

from typing import TYPE_CHECKING

from lmrl.lazy import lazy_names

if TYPE_CHECKING:
    from lmrl.stages.evaluate.comparison import SideBySide, compare
    from lmrl.stages.evaluate.config import EvaluateConfig
    from lmrl.stages.evaluate.stage import EvaluateResult, evaluate

__all__ = ["EvaluateConfig", "EvaluateResult", "SideBySide", "compare", "evaluate"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lmrl.stages.evaluate.stage": ("EvaluateResult", "evaluate"),
        "lmrl.stages.evaluate.config": ("EvaluateConfig",),
        "lmrl.stages.evaluate.comparison": ("SideBySide", "compare"),
    },
)
