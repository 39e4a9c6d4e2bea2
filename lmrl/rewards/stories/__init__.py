"""Rewards of the embedded story world, and sentiment by a lexicon."""
