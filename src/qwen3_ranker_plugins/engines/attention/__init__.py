"""Shared-prefix attention: the layout of a pass, and one module for each way to compute it."""
