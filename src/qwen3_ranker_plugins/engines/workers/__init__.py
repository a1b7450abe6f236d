"""Engines in processes of their own: how a worker process is started, asked, watched, ended and started again."""
