"""For the tests of lmrl and of its plugins: toy models and problems."""

from lmrl.testing.toys import write_tiny_model

__all__ = ["write_tiny_model"]
