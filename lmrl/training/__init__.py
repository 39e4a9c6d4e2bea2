"""Training: the policy update and its trainer, run folders, checkpoints, devices, trackers, the supervised loop."""

from typing import TYPE_CHECKING

from lmrl.lazy import lazy_names

if TYPE_CHECKING:
    from lmrl.training.auxiliary import Auxiliary
    from lmrl.training.policy import LocalPolicy, TrainablePolicy
    from lmrl.training.trainer import Drawn, Source, Trainer
    from lmrl.training.update import Updater
    from lmrl.training.update_settings import TrainSettings

__all__ = ["Auxiliary", "Drawn", "LocalPolicy", "Source", "TrainSettings", "TrainablePolicy", "Trainer", "Updater"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "lmrl.training.auxiliary": ("Auxiliary",),
        "lmrl.training.policy": ("LocalPolicy", "TrainablePolicy"),
        "lmrl.training.trainer": ("Drawn", "Source", "Trainer"),
        "lmrl.training.update": ("Updater",),
        "lmrl.training.update_settings": ("TrainSettings",),
    },
)
