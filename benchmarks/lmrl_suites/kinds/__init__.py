"""Kinds of suites: what a run is, which optimizers can run, and which figures a run gives."""
