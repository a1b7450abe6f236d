"""From requests to forward passes: the queue of an engine, and the leases of the rerankers that share it."""

from .dispatcher import Dispatcher, PassListener, PassReport
from .replicas import ReplicaState
from .sharing import Engines, Lease
from .submission import Progress, Submission

__all__ = ["Dispatcher", "Engines", "Lease", "PassListener", "PassReport", "Progress", "ReplicaState", "Submission"]
