"""Errors that stop a job.

.. code-block:: text

    RankerError
    └── JobError                the job stopped; what is committed stays valid, and the message says how to continue
        ├── CheckpointError     the checkpoint belongs to another job, or its files contradict each other
        ├── JobLockedError      another process is working on the same output
        ├── StorageError        a file cannot be written: no space left, a limit, no permission
        └── TooManyErrorsError  more pairs failed than `max_errors` allows
"""

from __future__ import annotations

from ..errors import RankerError


class JobError(RankerError):
    """A job stopped before its end."""


class CheckpointError(JobError):
    """This job cannot continue the checkpoint next to the output."""


class JobLockedError(JobError):
    """Another process is working on the same output."""


class StorageError(JobError):
    """The system refused to write; everything that the manifest lists is intact."""


class TooManyErrorsError(JobError):
    """More pairs could not be scored than `max_errors` allows."""
