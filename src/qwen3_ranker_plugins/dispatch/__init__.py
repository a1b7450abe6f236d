"""From requests to forward passes: the queue of an engine, and who shares it."""

from .dispatcher import Dispatcher, PassListener, PassReport
from .sharing import Lease
from .submission import Progress, Submission

__all__ = ["Dispatcher", "Lease", "PassListener", "PassReport", "Progress", "Submission"]
