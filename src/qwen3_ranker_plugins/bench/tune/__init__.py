"""Finds settings for a device and documents by measuring."""
