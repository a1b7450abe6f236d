"""What can stop a measurement.

.. code-block:: text

    RankerError
    └── BenchError       it could not be made: a server that does not start or answer, a trial that fails
"""

from __future__ import annotations

from ..errors import RankerError


class BenchError(RankerError):
    """A measurement could not be made; the message says why."""
