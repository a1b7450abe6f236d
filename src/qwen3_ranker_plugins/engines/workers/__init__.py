"""Engines in processes of their own: how a worker process is started, called, watched, ended and restarted."""
