"""Building an engine from its registration, checked against the protocol."""

from __future__ import annotations

from typing import Any

from lmrl.engines.protocol import Capabilities, Engine
from lmrl.errors import PluginError

METHODS = ("publish", "generate", "close", "capabilities")


def open_engine(spec: Any, settings: Any) -> Engine:
    """Return the engine of an ``EngineSpec``. Raises ``PluginError`` for one that is not an ``lmrl.engines.Engine``."""
    engine: Engine = spec.build(settings)
    missing = [name for name in METHODS if not hasattr(engine, name)]
    if missing:
        raise PluginError(
            f"engine {spec.name!r}: {type(engine).__name__} has no {', '.join(missing)}; expected an "
            "lmrl.engines.Engine with publish(weights, version), generate(requests), close() and capabilities. Engines "
            "of version 0.1, whose generate takes a model and prompts, are changed as docs/migration.md says."
        )
    if not isinstance(engine.capabilities, Capabilities):
        raise PluginError(
            f"engine {spec.name!r}: capabilities is {engine.capabilities!r}; expected an lmrl.engines.Capabilities"
        )
    return engine
