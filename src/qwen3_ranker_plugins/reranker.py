"""Reranker: check -> encode -> queue -> order -> top_k, for sync and async callers.

Every call takes the same path: `prepare` checks a request, `submit` encodes and queues it, and the prepared request
ranks its documents when the engine has scored them.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .cache import CacheStatistics, ScoreCache
from .calibration import Calibration
from .config import (
    DEFAULT_MODEL,
    EngineConfig,
    RankingOptions,
    RerankerSettings,
    canonical_devices,
    canonical_size,
    plain,
)
from .dispatch import Engines, Lease, PassListener, Progress, ReplicaState
from .engines import choose_engine, device_names, engine_module
from .engines.base import EngineDescription, Margins
from .errors import InvalidInputError
from .explanation import Explain, Explainer, check_explain
from .models import judgement_facts
from .prompt import DEFAULT_MAX_LENGTH, SLICE, SUFFIX_CHARACTERS, EncodedRequest, in_groups
from .ranking import PreparedRequest
from .types import DEFAULT_PIECES, Request, RerankResult

# For an engine on a GPU, a request of at least this many characters (about 10,000 tokens) is queued in parts, so that
# the GPU does not idle during the milliseconds that encoding takes. The parts end at these fractions of the request.
# Encoding and laying out a part takes a fifth to a third of the time that the GPU needs for it, so each part keeps the
# GPU busy for about as long as the next one takes to be ready.
_LONG_REQUEST = 40_000
PARTS = (0.08, 0.3, 1.0)

# Encoding checks for cancellation each time it has encoded this many characters, which takes about 0.1 s.
_LONGEST_ENCODED = 262_144

# The longest time in seconds that a request waits for another one to be encoded.
_LONGEST_TURN = 0.02
# Texts of fewer characters (about 5,000 tokens) gain little from more than a few cores, so several such batches are
# encoded at the same time.
_SMALL_BATCH = 20_000
#: Number of such batches.
SMALL_BATCHES = max(1, (os.cpu_count() or 1) // 4)


class _Encoding:
    """Whose turn it is to use the tokenizer, in this process: one large batch and `SMALL_BATCHES` small ones."""

    def __init__(self) -> None:
        self.large = threading.Semaphore(1)
        self.small = threading.Semaphore(SMALL_BATCHES)


_encoding = _Encoding()


def _new_locks() -> None:
    """Replace the locks in a forked child: a thread of the parent, which does not exist here, may have held one."""
    global _encoding  # noqa: PLW0603
    _encoding = _Encoding()


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_new_locks)


class Reranker:
    """Orders documents by P(yes) of a Qwen3 reranker.

    Thread-safe; concurrent callers share forward passes. Rerankers with equal engine settings in one process
    share one engine, which is closed with the last of them. Usable as a context manager.

    Args:
        model: a hub name, a folder, or "bundled:tiny"; for the remote engine, the service's name of the model.
        engine: "auto" or the name of a registered engine, see docs/engines.md.
        device: "auto", "cpu", "cuda" or "cuda:N"; other torch devices such as "mps" and "xpu" are accepted but not
            tested.
        dtype: "auto", "float32", "bfloat16" or "float16".
        template: "standard", "standard-hf", "compact", or the text of a template with {query} and {document}.
        instruction: the task that documents are judged for; None for the model's default.
        max_length: maximum length of a prompt in tokens. The end of a document that does not fit is cut off and counted
            in `ScoredDocument.truncated_tokens`.
        token_budget: maximum number of tokens in one forward pass, which bounds memory; None chooses by device.
        engine_options: the engine's own options by name, see docs/engines.md and docs/remote.md; None for its defaults.
        devices: run one engine on each of these devices, each in its own process: "all" for every visible GPU, or a
            list such as "cuda:0,cuda:1" or ["cpu", "cpu"]. The engines serve one queue, a long request is split over
            the idle ones, and an engine that dies or hangs is restarted. None runs one engine in this process, on
            `device`.
        top_k, score_threshold, min_confidence: defaults of `rerank`, see `RankingOptions`.
        adapter: a LoRA adapter for the model, which is merged into its weights: a folder or a hub name; "none" to
            ignore an adapter in the model's own folder; None to use that one, if there is one.
        scoring: how the model judges, such as "yes - no", which takes precedence over the checkpoint; see
            `models.Scoring`. None for what the checkpoint says.
        calibration: path of a calibration file, which maps margins to scores that agree with labels and keeps the
            order; see docs/thresholds.md. A calibration that was fitted with another model, template or instruction is
            refused.
        cache: maximum size of a cache of scores, in bytes or as text such as "256MB". Documents that were scored before
            for the same query are neither tokenized nor scored again, see docs/cache.md. None for no cache. Rerankers
            in one process with equal `cache` and `cache_path` share one store.
        cache_path: file of the cache, which outlives the process and can be shared with other processes; None keeps the
            cache in memory. The maximum size is 1 GB unless `cache` sets another.
        long_documents: "truncate" to cut off the end of a document that does not fit the prompt, or "pieces" to judge a
            document of more than `piece_tokens` tokens in pieces and rank it by the best one.
        piece_tokens: maximum number of tokens in a piece.
        piece_overlap: maximum number of tokens that a piece shares with the previous one; at most half of
            `piece_tokens`.
        max_pieces: maximum number of pieces of a document; the text after the last one is not read, and counts as
            truncated.

    Raises:
        InvalidInputError: an argument is invalid.
        ModelNotFoundError, UnsupportedModelError: see `resolve_model`.
        MissingDependencyError: a package that the engine needs is not installed.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        engine: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        template: str = "standard",
        instruction: str | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
        token_budget: int | None = None,
        engine_options: Mapping[str, object] | None = None,
        devices: str | Sequence[str] | None = None,
        top_k: int | None = None,
        score_threshold: float | None = None,
        min_confidence: float | None = None,
        adapter: str | os.PathLike[str] | None = None,
        scoring: str | None = None,
        calibration: str | os.PathLike[str] | None = None,
        cache: int | str | None = None,
        cache_path: str | os.PathLike[str] | None = None,
        long_documents: str = "truncate",
        piece_tokens: int = DEFAULT_PIECES.tokens,
        piece_overlap: int = DEFAULT_PIECES.overlap,
        max_pieces: int = DEFAULT_PIECES.limit,
    ) -> None:
        settings = RerankerSettings(
            model=plain(model),
            engine=engine,
            device=device,
            dtype=dtype,
            template=template,
            instruction=instruction,
            max_length=max_length,
            token_budget=token_budget,
            engine_options={} if engine_options is None else engine_options,
            adapter=plain(adapter),
            scoring=scoring,
            devices=canonical_devices(devices),
            calibration=plain(calibration),
            cache=canonical_size("cache", cache),
            cache_path=plain(cache_path),
            long_documents=long_documents,
            piece_tokens=piece_tokens,
            piece_overlap=piece_overlap,
            max_pieces=max_pieces,
        )
        self._start(settings, RankingOptions(top_k, score_threshold, min_confidence))

    @classmethod
    def from_settings(cls, settings: RerankerSettings, options: RankingOptions | None = None) -> Self:
        """Make a reranker from settings, which are checked already, and default options of `rerank`.

        Raises: as `Reranker`.
        """
        made = cls.__new__(cls)
        made._start(settings, RankingOptions() if options is None else options)  # noqa: SLF001 - of this class
        return made

    def _start(self, settings: RerankerSettings, options: RankingOptions) -> None:
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

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        *,
        instruction: str | None = None,
        score_threshold: float | None = None,
        min_confidence: float | None = None,
        show_progress: bool = False,
        explain: Explain = False,
    ) -> RerankResult:
        """The documents in order of relevance, best first; equal margins keep their input order.

        Args:
            query: not empty.
            documents: texts; equal ones are scored once. An empty list gives an empty result.
            top_k, instruction, score_threshold, min_confidence: None means as configured.
            show_progress: draw a progress bar on standard error.
            explain: True adds an `Explanation` to each hit: the prompt, the judged part of the document, and its ranks
                before and after. "sentences" also scores that part without each of its sentences in turn, which takes a
                second request.

        Raises:
            InvalidInputError: names the argument and its value.
            PromptTooLongError: query and instruction leave no room for a document.
            ScoringError: a document has no usable score.
            EngineError: the pass failed, or the reranker is closed.
        """
        options = self.options.override(top_k, score_threshold, min_confidence)
        if explain:
            check_explain(explain)
        with self._submitted([Request(query, documents, instruction)], show_progress) as [prepared]:
            result = prepared.result(options)
        return self._explained([prepared], [result], explain, show_progress)[0] if explain else result

    async def arerank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        *,
        instruction: str | None = None,
        score_threshold: float | None = None,
        min_confidence: float | None = None,
        explain: Explain = False,
    ) -> RerankResult:
        """`rerank` without blocking the event loop. Cancelling the call removes it from the queue.

        Raises: as `rerank`.
        """
        options = self.options.override(top_k, score_threshold, min_confidence)
        if explain:
            check_explain(explain)
        prepared = await self._settled(Request(query, documents, instruction))
        result = prepared.result(options)
        if not explain:
            return result
        explainer = await asyncio.to_thread(self.explainer, prepared, result, sentences=explain == "sentences")
        if explainer.without_sentences is None:
            return explainer.explained()
        return explainer.explained((await self._settled(explainer.without_sentences)).result(RankingOptions()))

    def rerank_many(
        self,
        requests: Sequence[Request],
        top_k: int | None = None,
        *,
        score_threshold: float | None = None,
        min_confidence: float | None = None,
        show_progress: bool = False,
        explain: Explain = False,
    ) -> list[RerankResult]:
        """One result per request, in their order; small requests share forward passes.

        Args: as `rerank`.
        Raises: as `rerank`.
        """
        options = self.options.override(top_k, score_threshold, min_confidence)
        if explain:
            check_explain(explain)
        with self._submitted(_checked_requests(requests), show_progress) as prepared:
            results = [each.result(options) for each in prepared]
        return self._explained(prepared, results, explain, show_progress) if explain else results

    def score_many(self, requests: Sequence[Request], *, show_progress: bool = False) -> list[NDArray[np.float32]]:
        """P(yes) of every document of every request; the configured top_k and thresholds are ignored.

        Returns:
            One float32 array [n_documents] per request, in input order.

        Raises: as `rerank`.
        """
        with self._submitted(_checked_requests(requests), show_progress) as prepared:
            return [each.scores() for each in prepared]

    def score(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        show_progress: bool = False,
    ) -> NDArray[np.float32]:
        """P(yes) of each document, float32 [n_documents] in input order.

        Raises: as `rerank`.
        """
        with self._submitted([Request(query, documents, instruction)], show_progress) as [prepared]:
            return prepared.scores()

    async def ascore(
        self, query: str, documents: Sequence[str], *, instruction: str | None = None, cached: bool = True
    ) -> NDArray[np.float32]:
        """`score` without blocking the event loop; with `cached=False`, cached scores are not used."""
        return (await self._settled(Request(query, documents, instruction), cached=cached)).scores()

    def prepare(self, request: Request) -> PreparedRequest:
        """The first step of every call: check a request. For callers such as a server that run each step themselves.

        Raises:
            InvalidInputError: names the argument and its value.
        """
        return PreparedRequest(request, self.settings.instruction, self.calibration, self.settings.pieces)

    def explainer(self, prepared: PreparedRequest, result: RerankResult, *, sentences: bool) -> Explainer:
        """The `Explainer` of a result, for callers such as a server that run the steps of a call themselves."""
        return Explainer(self._encoder, prepared, result, sentences=sentences)

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
        first, *others = in_groups(prepared.unknown, _LONGEST_ENCODED, read=read) or [[]]
        encoded = self._encode(prepared, first)
        prepared.add(encoded)
        for turn in others:
            if prepared.submission.future.done():  # cancelled meanwhile
                break
            more = self._encode(prepared, turn)
            prepared.add(more)
            encoded = encoded.followed_by(more)
        return encoded

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
            parts = _parts(prepared.unknown)
        read = SLICE if prepared.pieces is None else None
        turns = [turn for part in parts for turn in in_groups(part, _LONGEST_ENCODED, read=read)]
        try:
            for number, turn in enumerate(turns):
                if number:
                    yield
                if submission.future.done():
                    break
                encoded = self._encode(prepared, turn)
                self._lease.queue(submission, encoded, prepared.add(encoded), restart=restart)
        except BaseException:
            prepared.cancel()
            raise

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

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles carry the settings; a copy shares the engine, or loads its own in another process."""
        return _make_again, (type(self), self.settings, self.options)

    def __repr__(self) -> str:
        return f"Reranker(model={str(self.model_path or self.settings.model)!r}, engine={self.engine_name!r})"

    @contextmanager
    def _submitted(self, requests: Sequence[Request], show_progress: bool) -> Iterator[list[PreparedRequest]]:
        """Requests after `submit`. When the block ends, even by an interrupt, those that wait are cancelled."""
        prepared: list[PreparedRequest] = []
        bar = _ProgressBar() if show_progress else None
        try:
            for request in requests:  # the engine works on the first while the next are encoded
                prepared.append(self.prepare(request))
                on_progress = None if bar is None else bar.expect(len(prepared[-1].distinct))
                for _ in self.submit_in_turns(prepared[-1], on_progress, restart=True):
                    pass  # there is nothing else to do between two parts
                if bar is not None:
                    bar.expect(prepared[-1].num_segments - len(prepared[-1].distinct))
            yield prepared
        finally:
            for each in prepared:
                each.cancel()
            if bar is not None:
                bar.close()

    def _explained(
        self,
        prepared: Sequence[PreparedRequest],
        results: Sequence[RerankResult],
        explain: Explain,
        show_progress: bool,
    ) -> list[RerankResult]:
        """The results with an explanation in each hit."""
        explainers = [
            self.explainer(each, result, sentences=explain == "sentences")
            for each, result in zip(prepared, results, strict=True)
        ]
        requests = [each.without_sentences for each in explainers if each.without_sentences is not None]
        with self._submitted(requests, show_progress and bool(requests)) as submitted:
            scored = iter(submitted)
            return [
                each.explained(None if each.without_sentences is None else next(scored).result(RankingOptions()))
                for each in explainers
            ]

    async def _settled(self, request: Request, *, cached: bool = True) -> PreparedRequest:
        """A request that the engine has scored; a thread checks and encodes it, so as not to block the event loop."""
        prepared = await asyncio.to_thread(self.prepare, request)
        prepared.cached = cached
        try:
            await asyncio.to_thread(self.submit, prepared, restart=True)
            await asyncio.wrap_future(prepared.submission.future)
        finally:
            prepared.cancel()
        return prepared

    def _encode(self, prepared: PreparedRequest, texts: list[str]) -> EncodedRequest:
        """Encode some documents of a request.

        Large requests that arrive together are encoded one after another, so that the engine gets the first one early:
        the tokenizer spreads one batch over all cores, so batches that are encoded at the same time all finish late. No
        request waits longer than `_LONGEST_TURN` for another.
        """
        turn = _encoding.small if sum(map(len, texts)) < _SMALL_BATCH else _encoding.large
        held = turn.acquire(timeout=_LONGEST_TURN)
        try:
            arguments = (prepared.query, texts, prepared.instruction, prepared.max_document_tokens)
            if prepared.pieces is None:
                return self._encoder.encode(*arguments)
            return self._encoder.encode(*arguments, prepared.pieces)
        finally:
            if held:
                turn.release()


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


def _make_again(kind: type[Reranker], settings: RerankerSettings, options: RankingOptions) -> Reranker:
    return kind.from_settings(settings, options)


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


def _checked_requests(requests: Sequence[Request]) -> Sequence[Request]:
    if not isinstance(requests, Sequence):
        raise InvalidInputError("requests", requests, "needs a list of Request")
    for index, request in enumerate(requests):
        if not isinstance(request, Request):
            raise InvalidInputError(f"requests[{index}]", request, "needs a Request(query, documents)")
    return requests


def _parts(texts: list[str]) -> list[list[str]]:
    """Split texts into the parts that are queued one after another; a short request is one part."""
    work = list(accumulate(len(text) + SUFFIX_CHARACTERS for text in texts))
    if not work or work[-1] < _LONG_REQUEST:
        return [texts]
    ends = [min(bisect_left(work, share * work[-1]) + 1, len(texts)) for share in PARTS]
    return [texts[start:end] for start, end in pairwise([0, *ends]) if start < end]


class _ProgressBar:
    """Documents scored and expected, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("reranking"), BarColumn(), MofNCompleteColumn(), TextColumn("documents"))
        self._bar = RichProgress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
        self._bar.start()
        self._task = self._bar.add_task("reranking", total=0)
        self._expected = 0

    def expect(self, documents: int) -> Progress:
        """Expect more documents. Call the returned function with the number of documents that were scored."""
        self._expected += documents
        self._bar.update(self._task, total=self._expected)
        return partial(self._bar.advance, self._task)

    def close(self) -> None:
        self._bar.stop()
