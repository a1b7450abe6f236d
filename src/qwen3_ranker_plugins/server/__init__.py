"""The reranking server: one engine behind the HTTP shapes that clients already speak.

Reading order: `command` (flags), `settings`, `run` (process, signals, connections), `app` (routes), `guard` (what every
request passes through), `schemas` (shapes on the wire), `service` (queue and ranking), `host` (the engine's life).
"""
