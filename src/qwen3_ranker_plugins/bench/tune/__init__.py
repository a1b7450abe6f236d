"""Settings for a device and documents, found by measuring."""
