"""The conformance kit: ``check_optimizer(spec)`` is to an optimizer what Gymnasium's ``check_env`` is to a task.

It drives the optimizer with the trainer's own ``Updater`` on a toy policy, for a second or two, and raises one
``ConformanceError`` that says of every failed check what was found, what was expected and what to do.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any

from lmrl.errors import ConformanceError, NonFiniteError, SettingsError, unknown
from lmrl.plugins.specs import OptimizerSpec
from lmrl.testing import checks_contract, checks_invariance, checks_learning
from lmrl.testing.toy_experience import EXPERIENCES
from lmrl.testing.trial import Trial

Check = Callable[[Trial], str]

CHECKS: dict[str, Check] = {
    "contract": checks_contract.check_contract,
    "needs": checks_contract.check_needs,
    "rewards": checks_contract.check_rewards,
    "gradient": checks_contract.check_gradient,
    "mutation": checks_contract.check_mutation,
    "state": checks_contract.check_state,
    "first_step": checks_contract.check_first_step,
    "importance": checks_contract.check_importance,
    "mask": checks_invariance.check_mask,
    "padding": checks_invariance.check_padding,
    "bootstrap": checks_invariance.check_bootstrap,
    "unscored": checks_invariance.check_unscored,
    "order": checks_invariance.check_order,
    "microbatches": checks_invariance.check_microbatches,
    "ranks": checks_invariance.check_ranks,
    "empty_rows": checks_invariance.check_empty_rows,
    "constant_rewards": checks_learning.check_constant_rewards,
    "learning": checks_learning.check_learning,
}
"""Every check by its name; the first line of its docstring is the property that it tests."""


def check_optimizer(spec: OptimizerSpec, settings: Any = None, *, checks: Iterable[str] | None = None) -> None:
    """Check an optimizer plugin; raise one ``ConformanceError`` that lists all failures.

    ``settings`` replace the default ones; ``checks`` selects some of ``CHECKS`` by name. If the contract itself is
    broken, the other checks wait until it holds. Raises ``SettingsError`` for an unknown check or a kind of experience
    that the kit cannot make.
    """
    failures = failures_of(spec, settings, checks=checks)
    if failures:
        lines = "".join(f"\n  {name}: {sentence}." for name, sentence in failures.items())
        raise ConformanceError(f"optimizer {spec.name!r} fails {len(failures)} check(s) of lmrl.testing:{lines}")


def failures_of(spec: OptimizerSpec, settings: Any = None, *, checks: Iterable[str] | None = None) -> dict[str, str]:
    """Return a sentence for each check that fails, by the check's name; see ``check_optimizer``."""
    names = list(CHECKS) if checks is None else list(checks)
    for name in names:
        if name not in CHECKS:
            raise SettingsError(unknown("check", name, CHECKS))
    if not isinstance(spec, OptimizerSpec):
        raise SettingsError(
            f"check_optimizer was given {type(spec).__name__}; expected a lmrl.OptimizerSpec, such as the one that the "
            "plugin's lmrl_optimizers() yields: check_optimizer(next(iter(lmrl_optimizers())))"
        )
    if spec.needs.experience not in EXPERIENCES:
        raise SettingsError(
            f"optimizer {spec.name!r} learns from {spec.needs.experience}, of which the kit makes no toy examples yet; "
            f"expected one of {', '.join(EXPERIENCES)} (lmrl.testing.toy_experience.EXPERIENCES takes further kinds)"
        )
    failures: dict[str, str] = {}
    broken = _verdict(CHECKS["contract"], spec, settings)
    if broken:
        return {"contract": broken}
    for name in names:
        sentence = "" if name == "contract" else _verdict(CHECKS[name], spec, settings)
        if sentence:
            failures[name] = sentence
    return failures


def _verdict(check: Check, spec: OptimizerSpec, settings: Any) -> str:
    """Return the check's sentence; one about the error if the plugin raised."""
    try:
        return check(Trial(spec, settings))
    except Exception as error:
        said = " ".join(str(error).split()).rstrip(".")
        said = said.partition(". ")[0] if isinstance(error, NonFiniteError) else said.replace(". ", "; ")
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "lmrl/testing" not in frame.filename.replace("\\", "/")]
        place = f" ({own[-1].filename}:{own[-1].lineno}, in {own[-1].name})" if own else ""
        promise = (check.__doc__ or "").strip().splitlines()[0].rstrip(".")
        return f"{type(error).__name__} was raised{place}: {said}; expected no error, and that this holds: {promise}"
