"""Text generation as a Gymnasium environment: one, many side by side, and KL shaping.

Importing this package needs neither torch nor transformers.
"""

from lmrl.env.kl_shaping import KLShaping, VectorKLShaping
from lmrl.env.text_generation import TextGenEnv
from lmrl.env.vector import TextGenVectorEnv

__all__ = ["KLShaping", "TextGenEnv", "TextGenVectorEnv", "VectorKLShaping"]
