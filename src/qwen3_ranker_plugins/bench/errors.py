"""Errors that stop a measurement.

.. code-block:: text

    RankerError
    └── BenchError       the measurement failed: a server does not start or answer, or a trial fails
"""

from __future__ import annotations

from ..errors import RankerError


class BenchError(RankerError):
    """A measurement failed; the message says why."""
