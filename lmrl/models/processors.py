"""Files of an optimizer's logits processor, beside a checkpoint."""

from __future__ import annotations

from pathlib import Path

from lmrl.algorithms.optimizer import LogitsProcessor
from lmrl.errors import ResumeError
from lmrl.text.folders import PROCESSOR_FILE


def save_processor(processor: LogitsProcessor, folder: Path) -> None:
    """Write the tensors of ``processor.state_dict()``."""
    from safetensors.torch import save_file

    save_file({name: one.clone().contiguous() for name, one in processor.state_dict().items()}, folder / PROCESSOR_FILE)


def load_processor(processor: LogitsProcessor, folder: Path) -> None:
    """Read back what ``save_processor`` wrote; raises ``ResumeError`` if there is no such file."""
    from safetensors.torch import load_file

    file = folder / PROCESSOR_FILE
    if not file.exists():
        raise ResumeError(
            f"{folder} holds no {PROCESSOR_FILE}, so the run would not continue with the logits processor that it had; "
            "resume from a checkpoint that holds one, or start a new run."
        )
    processor.load_state_dict(load_file(file))
