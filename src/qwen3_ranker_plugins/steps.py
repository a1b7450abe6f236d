"""The steps of a call: prepare and encode a request, submit it to the engine.

A prepared request waits for its margins and ranks its documents, see `PreparedRequest`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import reduce
from pathlib import Path
from types import TracebackType
from typing import Self

from .cache import CacheStatistics, ScoreCache
from .calibration import Calibration
from .config import EngineConfig, RankingOptions, RerankerSettings
from .dispatch import Engines, Lease, PassListener, Progress, ReplicaState
from .engines import choose_engine, device_names, engine_module
from .engines.base import EngineDescription, Margins
from .errors import InvalidInputError
from .explanation import Explainer
from .models import judgement_facts
from .prompt import SLICE, EncodedRequest, in_groups
from .prompt.turns import LONGEST_TURN_CHARACTERS, encode_in_turn, growing_parts
from .ranking import PreparedRequest
from .types import Request, RerankResult


class RerankingSteps:
    """What a `Reranker` consists of: an encoder, an engine, perhaps a cache and a calibration, and the steps of a call.

    `Reranker` combines the steps to whole calls. A server takes them one by one.

    Args:
        settings: which model judges, and how; checked already.
        options: default options of `rerank`.

    Raises: as `Reranker`.
    """

    def __init__(self, settings: RerankerSettings, options: RankingOptions) -> None:
        self.settings = settings
        self.options = options
        self.engine_name, self.engine_reason = choose_engine(settings.engine)
        module = engine_module(self.engine_name)
        if settings.devices is None:
            resolved = module.resolve(self.engine_name, settings)
            engines: Engines = resolved.config
        else:
            of_each = {
                device: module.resolve(self.engine_name, replace(settings, device=device, devices=None))
                for device in device_names(settings.devices)
            }
            engines = _alike([of_each[device].config for device in device_names(settings.devices)])
            resolved = next(iter(of_each.values()))
        #: The local folder with the model, or with its tokenizer; None if the engine needs neither.
        self.model_path: Path | None = resolved.folder
        self._encoder = resolved.encoder
        self._config = resolved.config
        #: Maps margins to calibrated scores; None if scores are the sigmoid of margins.
        self.calibration: Calibration | None = None
        if settings.calibration is not None:
            self.calibration = Calibration.read(settings.calibration)
            self.calibration.check_judgement(self.judgement_facts(), settings.calibration)
        self._form = _form(resolved.config, settings, self.calibration)
        self._lease = Lease(engines)
        self._cache: ScoreCache | None = None
        if settings.cache is not None:
            try:
                self._cache = ScoreCache(settings, resolved.config, self._lease.engine.describe())
            except BaseException:
                self._lease.close()
                raise
            weakref.finalize(self, self._cache.close)

    def prepare(self, request: Request) -> PreparedRequest:
        """The first step of every call: check a request. For callers such as a server that run each step themselves.

        Raises:
            InvalidInputError: names the argument and its value.
        """
        return PreparedRequest(request, self.settings.instruction, self.calibration, self.settings.pieces)

    def encode(self, prepared: PreparedRequest) -> EncodedRequest:
        """Encode a whole request before it is submitted, so that its `num_tokens` and `truncated` are known.

        Raises:
            PromptTooLongError: query and instruction leave no room for a document.
        """
        if self._cache is not None and prepared.cached:
            prepared.recall(self._cache)
        if prepared.num_known and not prepared.unknown:
            return EncodedRequest(prefix=[], segments=[], truncated_tokens=[])
        read = SLICE if prepared.pieces is None else None
        turns = in_groups(prepared.unknown, LONGEST_TURN_CHARACTERS, read=read) or [[]]
        encoded: list[EncodedRequest] = []
        for turn in turns:
            if encoded and prepared.submission.future.done():  # cancelled meanwhile
                break
            more = encode_in_turn(self._encoder, prepared, turn)
            encoded.append(more)
            prepared.add(more)
        return reduce(EncodedRequest.followed_by, encoded)

    def submit(
        self,
        prepared: PreparedRequest,
        on_progress: Progress | None = None,
        *,
        encoded: EncodedRequest | None = None,
        restart: bool = False,
    ) -> Future[Margins]:
        """Encode a prepared request and queue it; `prepared.result(options)` ranks it.

        Returns when the whole request is encoded and queued. For an engine on a GPU, a long request is encoded and
        queued in growing parts, so that the GPU scores one part while the next is encoded. Cancelling the returned
        future, from any thread, drops every document that no pass has taken.

        Args:
            prepared: a request that was not submitted before.
            on_progress: called from the engine's thread with the number of documents that a pass has scored.
            encoded: what `encode` returned, if it was called.
            restart: if the engine's process has ended, wait until it has been restarted, instead of raising.

        Raises:
            PromptTooLongError: query and instruction leave no room for a document.
            EngineClosedError: the reranker is closed, or its engine has ended and `restart` is False.
        """
        for _ in self.submit_in_turns(prepared, on_progress, encoded=encoded, restart=restart):
            pass
        return prepared.submission.future

    def submit_in_turns(
        self,
        prepared: PreparedRequest,
        on_progress: Progress | None = None,
        *,
        encoded: EncodedRequest | None = None,
        restart: bool = False,
    ) -> Iterator[None]:
        """`submit` in steps of a fraction of a second each, for callers that have other requests to encode as well.

        Yields between two parts of a request, and ends when the whole request is queued or was cancelled.

        Args: as `submit`.
        Raises: as `submit`.
        """
        submission = prepared.submission
        submission.on_progress = on_progress
        if encoded is not None:
            if not submission.future.done():  # cancelled meanwhile, or there is nothing to score
                first = prepared.num_segments - len(encoded.segments)
                self._lease.queue(submission, encoded, first, restart=restart)
            return
        if self._cache is not None and prepared.cached:
            prepared.recall(self._cache)
        parts = [prepared.unknown]
        if self._lease.engine.capabilities.encodes_meanwhile:
            parts = growing_parts(prepared.unknown)
        read = SLICE if prepared.pieces is None else None
        turns = [turn for part in parts for turn in in_groups(part, LONGEST_TURN_CHARACTERS, read=read)]
        try:
            for number, turn in enumerate(turns):
                if number:
                    yield
                if submission.future.done():
                    break
                encoded = encode_in_turn(self._encoder, prepared, turn)
                self._lease.queue(submission, encoded, prepared.add(encoded), restart=restart)
        except BaseException:
            prepared.cancel()
            raise

    def explainer(self, prepared: PreparedRequest, result: RerankResult, *, sentences: bool) -> Explainer:
        """The `Explainer` of a result, for callers such as a server that run the steps of a call themselves."""
        return Explainer(self._encoder, prepared, result, sentences=sentences)

    @property
    def running(self) -> bool:
        """Whether the engine's threads and processes are alive.

        If a thread has ended, every call raises EngineClosedError. If the process of the only engine, or of every
        replica, has ended or hung, `submit` raises it, and the methods that return scores wait until it has been
        restarted.
        """
        return self._lease.running

    @property
    def replaces(self) -> bool:
        """Whether engines whose process has ended are restarted automatically, as they are with `devices`."""
        return self._lease.replaces

    def replicas(self) -> list[ReplicaState]:
        """State and counters of each engine: one engine, or one for each of `devices`."""
        return self._lease.replicas()

    def on_pass(self, listener: PassListener) -> None:
        """Call `listener(PassReport)` after every forward pass, from the thread of the engine that ran it."""
        self._lease.on_pass(listener)

    def describe(self) -> EngineDescription:
        """Which engine runs on which device, how the model judges, and from which file each of these facts was read."""
        description = self._lease.engine.describe()
        cached = {} if self._cache is None else {"cache": self._cache.statistics().summary}
        return replace(description, details={**self._form, **description.details, **cached})

    def cache_statistics(self) -> CacheStatistics | None:
        """Content and counters of the cache; None without a cache."""
        return None if self._cache is None else self._cache.statistics()

    def judgement_facts(self) -> dict[str, str]:
        """Everything that determines the meaning of a margin, see `models.judgement_facts`; reads the model's files."""
        config = self._config
        return judgement_facts(self.settings, config.folder, config.spec, config.adapter)

    def close(self) -> None:
        """Release the engine, which is closed with the last reranker that uses it. Repeated calls have no effect."""
        if self._cache is not None:
            self._cache.close()
        self._lease.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _alike(configs: Sequence[EngineConfig]) -> tuple[EngineConfig, ...]:
    """The configurations of replicas, which have to give the same margins.

    Raises:
        InvalidInputError: they differ in more than the device.
    """
    dtypes = {each.device: each.dtype for each in configs}
    if len(set(dtypes.values())) > 1:
        raise InvalidInputError("devices", ",".join(dtypes), f"their dtypes differ ({dtypes}): set dtype")
    if len({replace(each, device="") for each in configs}) > 1:
        raise InvalidInputError(
            "devices", ",".join(dtypes), "an engine would run with different options on them: use devices of one kind"
        )
    return tuple(configs)


def _form(config: EngineConfig, settings: RerankerSettings, calibration: Calibration | None) -> dict[str, str]:
    """How the model judges, as shown by `describe`; only the calibration for an engine that reads no model."""
    calibrated = {} if calibration is None else {"calibration": f"{calibration.summary} ({settings.calibration})"}
    if config.spec is None:
        return calibrated
    form = config.spec.facts
    if settings.template != "standard":
        form["template"] = settings.template if "{" not in settings.template else "given"
    if settings.instruction is not None:
        form["instruction"] = f"{settings.instruction} (given)"
    if config.adapter is not None:
        form["adapter"] = f"{config.adapter} (merged into the weights)"
    return form | calibrated
