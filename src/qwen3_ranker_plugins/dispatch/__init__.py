"""From requests to forward passes: the queue of an engine, and who shares it."""

from .dispatcher import Dispatcher, PassListener, PassReport, Progress
from .sharing import Lease

__all__ = ["Dispatcher", "Lease", "PassListener", "PassReport", "Progress"]
