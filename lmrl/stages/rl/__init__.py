"""Optimise a policy by reinforcement learning."""
