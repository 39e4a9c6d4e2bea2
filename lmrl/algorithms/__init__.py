"""Algorithms: the contract of a policy optimizer, and the functions that optimizers are made of."""
