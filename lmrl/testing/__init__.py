"""For the tests of lmrl and of its plugins: the conformance kit, toy models, and problems that can be solved exactly.

Importing it loads neither torch nor transformers; every name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmrl.errors import ConformanceError
    from lmrl.testing.conformance import CHECKS, check_optimizer, failures_of
    from lmrl.testing.exact import ExactMeasures, ExactProblem, PolicyTable, policy_parameters
    from lmrl.testing.exact_problems import counting_problem, random_problem, tiny_llama
    from lmrl.testing.exact_training import ExactCurve, ExactTrainer, ascend_exactly, train_exactly
    from lmrl.testing.exact_update import expected_update
    from lmrl.testing.toys import write_tiny_model

_MODULES: dict[str, tuple[str, ...]] = {
    "lmrl.errors": ("ConformanceError",),
    "lmrl.testing.conformance": ("CHECKS", "check_optimizer", "failures_of"),
    "lmrl.testing.exact": ("ExactMeasures", "ExactProblem", "PolicyTable", "policy_parameters"),
    "lmrl.testing.exact_problems": ("counting_problem", "random_problem", "tiny_llama"),
    "lmrl.testing.exact_training": ("ExactCurve", "ExactTrainer", "ascend_exactly", "train_exactly"),
    "lmrl.testing.exact_update": ("expected_update",),
    "lmrl.testing.toys": ("write_tiny_model",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CHECKS",
    "ConformanceError",
    "ExactCurve",
    "ExactMeasures",
    "ExactProblem",
    "ExactTrainer",
    "PolicyTable",
    "ascend_exactly",
    "check_optimizer",
    "counting_problem",
    "expected_update",
    "failures_of",
    "policy_parameters",
    "random_problem",
    "tiny_llama",
    "train_exactly",
    "write_tiny_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
