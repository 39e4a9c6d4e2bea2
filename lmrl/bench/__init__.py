"""Benchmark suites: what optimizers come to, over seeds, with intervals."""
