"""Rewards that compare the response with an answer of the data."""
