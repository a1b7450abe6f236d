"""What an engine is: encoded requests in, margins out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..prompt import EncodedRequest


@dataclass(frozen=True)
class Margins:
    """What an engine says about one request.

    Attributes:
        values: float32 [n_documents], logit(yes) - logit(no) at the last position of each prompt.
        computed_tokens: tokens that went through the model for this request.
        failures: index of a document that could not be scored -> reason; its value is not read.
    """

    values: NDArray[np.float32]
    computed_tokens: int
    failures: Mapping[int, str] = field(default_factory=dict)


class Engine(ABC):
    """Scores encoded requests. Called by one thread at a time (the dispatcher's).

    Attributes:
        name: as in `Reranker(engine=...)`.
        token_budget: how many tokens one call of `score` should hold at most; a single document that is
            longer comes alone.
    """

    name: str
    token_budget: int

    @abstractmethod
    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        """One `Margins` per request, documents in the order given.

        Raises:
            EngineError: the whole pass failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model. Nothing is called afterwards."""

    def describe(self) -> dict[str, str]:
        """Facts for people: device, dtype, versions."""
        return {"engine": self.name}
