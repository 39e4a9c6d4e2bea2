"""The second stream of a run by its settings: the section ``[auxiliary]``, or ``RLTrainer(auxiliary=...)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmrl.algorithms.optimizer import PolicyOptimizer
from lmrl.errors import SettingsError
from lmrl.models.text_policy import Reference, TextPolicy, reference_spec, score_reference
from lmrl.plugins import PluginManager
from lmrl.plugins.specs import OptimizerSpec
from lmrl.seeds import PromptOrder, derive_seed
from lmrl.stages.rl.checks import EXAMPLES, LEARNS_FROM
from lmrl.stages.rl.config import RLConfig
from lmrl.stages.rl.keywords import chosen
from lmrl.stages.rl.offline import OfflineData, OrderedData, load_offline
from lmrl.training.auxiliary import Auxiliary

if TYPE_CHECKING:
    from lmrl.stages.rl.setup import Checked, Texts

OF_ITS_OWN = ("heads", "sampled_head", "processor", "step", "after_step", "models")
"""Methods of optimizers that change the policy or how it moves, which a second stream cannot."""


@dataclass(frozen=True)
class CheckedAuxiliary:
    """Method of the second stream, and the data that the caller gives, if any."""

    spec: OptimizerSpec
    settings: Any
    data: Any = None


def auxiliary_table(given: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the section of a mapping with ``weight``, ``optimizer``, ``rows`` and ``data``, and data that are rows."""
    table = dict(given)
    if "optimizer" in table:
        table["optimizer"] = chosen(table["optimizer"])
    data = table.get("data")
    if data is None or isinstance(data, Mapping):
        return table, None
    del table["data"]
    return (table | {"data": {"path": data}}, None) if isinstance(data, str) else (table, data)


def check_auxiliary(
    config: RLConfig, main: OptimizerSpec, built: PolicyOptimizer, plugins: PluginManager, data: Any, ranks: int
) -> CheckedAuxiliary | None:
    """Return the second stream, None if its weight is 0; raises ``SettingsError`` for what cannot be added."""
    section = config.auxiliary
    if not section.weight and data is not None:
        raise SettingsError("auxiliary has data, but its weight is 0; expected a weight above 0, or no data")
    if not section.weight:
        return None
    if built.defines("step"):
        raise SettingsError(
            f"auxiliary.weight is {section.weight}, but optimizer {main.name!r} moves the policy by a step of its own, "
            "which is made for its own loss alone; set auxiliary.weight=0, or choose another optimizer"
        )
    spec, settings = section.optimizer.resolve(plugins)
    name, needs, kind = f"auxiliary.optimizer.name is {spec.name!r}", spec.needs, spec.needs.experience
    if kind == "rollouts":
        raise SettingsError(
            f"{name}, which learns from what it samples; expected one that learns from data, such as imitation, dpo or "
            "kto"
        )
    method = spec.build(settings)
    own = [one for one in OF_ITS_OWN if method.defines(one)] + ["a value function"] * bool(needs.values)
    if own:
        raise SettingsError(
            f"{name}, which has {own[0]} of its own; expected one that has a loss alone, such as imitation, dpo or kto"
        )
    if data is None and not section.data.path:
        raise SettingsError(
            f"{name}, which learns from {LEARNS_FROM[kind]}; name them with auxiliary.data.path=..., such as "
            f"{EXAMPLES[kind]}"
        )
    least = 2 * ranks if kind == "labelled" else ranks
    if section.rows % ranks or section.rows < least:
        raise SettingsError(
            f"auxiliary.rows is {section.rows}; expected at least {least}, and a multiple of the {ranks} processes"
        )
    return CheckedAuxiliary(spec, settings, data)


def load_auxiliary(checked: Checked, card: Any) -> OfflineData | None:
    """Read and encode the data of the second stream, if there is one."""
    if checked.auxiliary is None:
        return None
    section, found = checked.config.auxiliary, checked.auxiliary
    return load_offline(section.data, found.data, card, found.spec.needs, checked.accelerator.device)


def make_auxiliary(
    checked: Checked, texts: Texts, module: Any, reference: Reference | None, token_budget: int
) -> Auxiliary | None:
    """Return the second stream over the policy in ``module``; the order of its rows is a function of the seed."""
    if checked.auxiliary is None or texts.auxiliary is None:
        return None
    section, accelerator, data = checked.config.auxiliary, checked.accelerator, texts.auxiliary
    # The whole vocabulary, as the reference, also where the sampler forbids tokens.
    spec = reference_spec(texts.spec)
    if checked.auxiliary.spec.needs.reference:
        assert reference is not None
        frozen = reference
        data.scorer = lambda inputs: score_reference(frozen, inputs, spec, token_budget)
    order = PromptOrder(len(data), section.rows, derive_seed(checked.config.run.seed, "auxiliary"))
    draw = OrderedData(data, order, accelerator).batch
    method = checked.auxiliary.spec.build(checked.auxiliary.settings)
    return Auxiliary(method, TextPolicy(module, spec, with_values=False), draw, section.weight, token_budget)
