"""Text generation as a Gymnasium environment: one, many side by side, and KL shaping.

Importing this package needs neither torch nor transformers.
"""

from lmrl.envs.kl_shaping import KLShaping, VectorKLShaping
from lmrl.envs.text_generation import TextGenEnv
from lmrl.envs.vector import TextGenVectorEnv

__all__ = ["KLShaping", "TextGenEnv", "TextGenVectorEnv", "VectorKLShaping"]
