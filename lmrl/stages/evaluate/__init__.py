"""Evaluate and compare models."""
