"""The version of this distribution and of both integrations, which are released together."""

__version__ = "0.1.0"
