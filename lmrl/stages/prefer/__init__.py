"""Build preference data."""
