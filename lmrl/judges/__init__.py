"""Judges: questions to a language model, local or behind an endpoint, and how its answers are read."""
