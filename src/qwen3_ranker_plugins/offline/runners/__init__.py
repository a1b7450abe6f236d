"""Runners execute the passes of a job: in this process, in one process per device, or on Ray."""
