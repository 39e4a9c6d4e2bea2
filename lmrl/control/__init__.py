"""Plain Gymnasium tasks with discrete actions, trained by the same optimizer plugins and the same updates as text."""

from lmrl.control.train import ControlConfig, ControlResult, evaluate_control, train_control

__all__ = ["ControlConfig", "ControlResult", "evaluate_control", "train_control"]
