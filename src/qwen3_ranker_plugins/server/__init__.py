"""The HTTP server: one engine for many clients, in the wire shapes that they already use.

Reading order: `settings`, `run` (process, signals, connections), `app`, `middleware` (what every request passes
through), `shapes` and `routes` (what clients send and read), `service` (queue and ranking), `supervisor` (loads and
restarts the engine). A new wire shape is a new module in `routes`.
"""
