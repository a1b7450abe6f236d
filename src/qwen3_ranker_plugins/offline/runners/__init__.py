"""Where the passes of a job run: in this process, in one process a device, or on Ray."""
