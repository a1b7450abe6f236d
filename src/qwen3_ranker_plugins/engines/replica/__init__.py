"""A replica: an engine in a worker process of its own, one of several that serve one queue."""

from .engine import ReplicaEngine, create_replica

__all__ = ["ReplicaEngine", "create_replica"]
