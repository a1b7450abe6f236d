"""The errors of this package, one tree.

```text
RankerError
├── InvalidInputError (also ValueError)   an argument is invalid; the message names it, its value, the remedy
│   └── PromptTooLongError                query + instruction leave no room for a document
├── MissingDependencyError (also ImportError)
├── ModelError
│   ├── ModelNotFoundError                no such folder, or the hub cannot be reached
│   └── UnsupportedModelError             found, but not a Qwen3 yes/no reranker that can be loaded safely
└── EngineError
    ├── EngineClosedError                 the reranker was closed, or belongs to another process
    ├── RemoteError                       a service cannot be reached, refuses a request, or sends an unusable answer
    └── ScoringError                      documents without a usable score; the others keep theirs
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RankerError(Exception):
    """Base class of every error that this package raises on purpose."""


class InvalidInputError(RankerError, ValueError):
    """An argument is invalid.

    >>> raise InvalidInputError("top_k", 0, "give a positive integer, or None for all documents")
    Traceback (most recent call last):
    qwen3_ranker_plugins.errors.InvalidInputError: top_k=0: give a positive integer, or None for all documents
    """

    def __init__(self, argument: str, value: object, remedy: str) -> None:
        shown = repr(value)
        if len(shown) > 80:  # both ends are shown: paths differ at their end
            shown = f"{shown[:38]}...{shown[-39:]}"
        super().__init__(f"{argument}={shown}: {remedy}")
        self.argument = argument
        self.value = value
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.argument, self.value, self.remedy))


class PromptTooLongError(InvalidInputError):
    """The query and the instruction fill the window, so that no token of a document fits."""


class MissingDependencyError(RankerError, ImportError):
    """An optional dependency is not installed; the message ends in the pip command."""


class ModelError(RankerError):
    """The model cannot be used."""


class ModelNotFoundError(ModelError):
    """The model is neither a folder nor bundled, and the hub does not have it or cannot be reached."""


class UnsupportedModelError(ModelError):
    """The model was found, but cannot be used for the reason given."""


class EngineError(RankerError):
    """A forward pass failed."""


class EngineClosedError(EngineError):
    """The reranker was closed, or was made before a fork and is used after it."""


class RemoteError(EngineError):
    """A remote service cannot be reached, refuses the request, or sends an unusable answer.

    Attributes:
        status: the HTTP status of its last answer; None if there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.status))


class ScoringError(EngineError):
    """Some documents have no usable score.

    Attributes:
        failures: position in the input -> reason.
        margins: float32 array [n_documents]; NaN at the positions in `failures`, valid elsewhere.
    """

    def __init__(self, failures: Mapping[int, str], margins: NDArray[np.float32]) -> None:
        first, reason = next(iter(failures.items()))
        others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        super().__init__(
            f"documents[{first}]{others} could not be scored: {reason}; "
            f"the other {len(margins) - len(failures)} margins are in this error's `margins`"
        )
        self.failures = dict(failures)
        self.margins = margins

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.failures, self.margins))
