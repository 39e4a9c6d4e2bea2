"""Run every stage on the embedded stories."""
