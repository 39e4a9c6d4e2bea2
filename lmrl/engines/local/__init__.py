"""Sampling in this process or in worker processes: caches, decoders and the engine that drives them."""
