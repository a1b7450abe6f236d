"""What an engine is: encoded requests in, margins out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
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
        prompt_tokens: tokens of all prompts as a service counted them; None where the encoder knows.
        truncated: index of a document -> tokens that the engine cut off its end, beyond what the encoder did.
    """

    values: NDArray[np.float32]
    computed_tokens: int
    failures: Mapping[int, str] = field(default_factory=dict)
    prompt_tokens: int | None = None
    truncated: Mapping[int, int] = field(default_factory=dict)

    def joined(self, rest: Margins) -> Margins:
        """Of a request whose first documents these are, and whose others are the rest."""
        behind = len(self.values)
        known = [each.prompt_tokens for each in (self, rest) if each.prompt_tokens is not None]
        return Margins(
            np.concatenate([self.values, rest.values]),
            self.computed_tokens + rest.computed_tokens,
            {**self.failures, **{behind + index: reason for index, reason in rest.failures.items()}},
            sum(known) if known else None,
            {**self.truncated, **{behind + index: tokens for index, tokens in rest.truncated.items()}},
        )


class Engine(ABC):
    """Scores encoded requests. Called by the dispatcher's threads: by one at a time, unless it says otherwise below.

    Attributes:
        name: as in `Reranker(engine=...)`.
        token_budget: how many tokens one call of `score` should hold at most; a single document that is
            longer comes alone.
        documents_per_pass: how many documents one call should hold at most; None for no limit.
        workers: how many threads call it at a time. With more than one, each call holds documents of one request, as
            there is nothing to gain from sharing.
        passes_in_flight: how many calls of `score` may be under way on the engine's one device. With two, one is laid
            out and queued while the device computes the other. Each has a thread: `score` has to keep them apart.
        encodes_meanwhile: whether the processor is free while a call of `score` runs, so that a long request had better
            come in parts: the rest is encoded while the first is scored.
    """

    name: str
    token_budget: int
    documents_per_pass: int | None = None
    workers: int = 1
    passes_in_flight: int = 1
    encodes_meanwhile: bool = False

    @abstractmethod
    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        """One `Margins` per request, documents in the order given.

        Raises:
            EngineError: the whole pass failed.
        """

    def score_until(self, requests: Sequence[EncodedRequest], settled: Future[Margins]) -> list[Margins]:  # noqa: ARG002
        """`score` for a caller whose future is `settled`: once it is done, e.g. cancelled, nobody reads the result.

        What an engine with several workers is called with. One that can stop early overrides this.
        """
        return self.score(requests)

    @abstractmethod
    def close(self) -> None:
        """Free the model. Nothing is called afterwards."""

    def describe(self) -> dict[str, str]:
        """Facts for people: device, dtype, versions."""
        return {"engine": self.name}
