"""Run every stage on the embedded stories: ``quickstart()``."""

from typing import TYPE_CHECKING

from lmrl.lazy import lazy_names

if TYPE_CHECKING:
    from lmrl.stages.quickstart.stage import QuickstartResult, quickstart

__all__ = ["QuickstartResult", "quickstart"]

__getattr__, __dir__ = lazy_names(__name__, {"lmrl.stages.quickstart.stage": ("QuickstartResult", "quickstart")})
