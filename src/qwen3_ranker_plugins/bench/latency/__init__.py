"""Measures how long a client of the server waits."""
