"""Pretrain a model on text."""
