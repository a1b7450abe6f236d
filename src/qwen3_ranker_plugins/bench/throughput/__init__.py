"""Measures pairs per second over the number of pairs in one call."""
