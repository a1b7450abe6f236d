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
    """An engine's answer to one request.

    Attributes:
        values: float32 [n_documents], logit(yes) - logit(no) at the last position of each prompt.
        computed_tokens: tokens that went through the model for this request.
        failures: index -> reason, for each document that could not be scored; its entry in `values` has no meaning.
        prompt_tokens: tokens of all prompts as a service counted them; None if the encoder's count applies.
        truncated: index of a document -> tokens that the engine cut off its end, in addition to the encoder's cut.
    """

    values: NDArray[np.float32]
    computed_tokens: int
    failures: Mapping[int, str] = field(default_factory=dict)
    prompt_tokens: int | None = None
    truncated: Mapping[int, int] = field(default_factory=dict)

    def faults(self) -> dict[int, str]:
        """Index -> reason, for each document that the engine could not score or whose margin is not finite."""
        if not self.failures and np.isfinite(self.values).all():
            return {}
        not_finite = np.flatnonzero(~np.isfinite(self.values)).tolist()
        return {index: f"its margin is {self.values[index]}" for index in not_finite} | dict(self.failures)


@dataclass(frozen=True, kw_only=True)
class EngineCapabilities:
    """What the dispatcher needs to know to keep an engine busy. The defaults fit one model on one device.

    Attributes:
        token_budget: maximum number of tokens in one call of `score`. A longer document gets a call of its own.
        documents_per_pass: maximum number of documents in one call of `score`; None for no limit.
        workers: how many threads call `score` at the same time. With more than one, as for a service on the network,
            each call holds documents of one request, because requests gain nothing from sharing a call.
        passes_in_flight: how many calls of `score` may overlap on the engine's one device. With two, the second is
            laid out and queued while the device computes the first. Each runs in a thread of its own, so `score` must
            be thread-safe.
        encodes_meanwhile: whether the CPU is idle while `score` runs. If it is, a long request is submitted in growing
            parts: the next part is encoded while the previous one is scored.
    """

    token_budget: int
    documents_per_pass: int | None = None
    workers: int = 1
    passes_in_flight: int = 1
    encodes_meanwhile: bool = False


@dataclass(frozen=True, kw_only=True)
class EngineDescription:
    """What runs where, for people, logs and reports.

    Attributes:
        engine: its registered name.
        device: "cpu", the name of a GPU, or the address of a service.
        dtype: of weights and activations.
        token_budget: maximum number of tokens in one pass; None if the engine has no such limit.
        details: other facts by name, in the order in which they are shown.
        versions: version of each library that computes, by its name.
    """

    engine: str
    device: str
    dtype: str
    token_budget: int | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, str]:
        """All facts by name in one flat mapping, for JSON and tables."""
        budget = {} if self.token_budget is None else {"token_budget": str(self.token_budget)}
        return {
            "engine": self.engine,
            "device": self.device,
            "dtype": self.dtype,
            **budget,
            **self.details,
            **self.versions,
        }


class Engine(ABC):
    """Scores encoded requests. The dispatcher's threads call it, one at a time unless `capabilities` allow more.

    Attributes:
        name: as in `Reranker(engine=...)`.
        capabilities: how the dispatcher fills and runs passes; constant after `__init__`.
    """

    name: str
    capabilities: EngineCapabilities

    @abstractmethod
    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        """One `Margins` per request, documents in the order given.

        Raises:
            EngineError: the whole pass failed.
        """

    def score_until(self, requests: Sequence[EncodedRequest], settled: Future[Margins]) -> list[Margins]:  # noqa: ARG002
        """`score` for a caller that needs no result once `settled` is done, for example because it was cancelled.

        The dispatcher calls this instead of `score` if the engine has several workers. An engine that can stop early
        overrides it.
        """
        return self.score(requests)

    @property
    def running(self) -> bool:
        """Whether the engine can score; False after a process that it needs has ended or hung. Thread-safe."""
        return True

    @property
    def worker_pid(self) -> int | None:
        """Id of the process that holds the model; None if it is this process, or if it has ended."""
        return None

    def restart(self) -> None:  # noqa: B027 - an engine without a process has nothing to start
        """Start a new process if `running` is False, and wait until the engine can score. `close` ends the wait.

        Raises:
            EngineError: it cannot be started.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model. No other method is called afterwards."""

    @abstractmethod
    def describe(self) -> EngineDescription:
        """What runs where."""
