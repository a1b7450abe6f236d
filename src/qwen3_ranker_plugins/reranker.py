"""Reranker: encode -> dispatch -> order -> top_k, for sync and async callers."""

from __future__ import annotations

import asyncio
import os
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from functools import reduce
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from .config import DEFAULT_MODEL, RankingOptions, RerankerSettings
from .dispatch import Lease, PassListener
from .engines import choose_engine, engine_module
from .engines.base import EngineDescription, Margins
from .errors import InvalidInputError
from .prompt import DEFAULT_MAX_LENGTH, EncodedRequest
from .ranking import Prepared, Texts, checked
from .types import Request, RerankResult

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


# From so many characters on, some 10,000 tokens, a request is handed to a GPU in parts: encoding it takes milliseconds.
# They end at these shares of it: each part keeps the GPU busy for about as long as the next one takes to encode and to
# lay out, where that takes a fifth to a third of the GPU's own time.
_LONG_REQUEST = 40_000
PARTS = (0.08, 0.3, 1.0)

_encoding = threading.Lock()
_LONGEST_TURN = 0.02  # seconds

# The suffix behind each text counts as much as so many characters, at four characters a token.
_SUFFIX = 36


class Reranker:
    """Orders documents by P(yes) of a Qwen3 reranker.

    Thread-safe; concurrent callers share forward passes. Rerankers with equal engine settings in one process
    share one engine, which ends with the last of them. Usable as a context manager.

    Args:
        model: a hub name, a folder, or "bundled:tiny"; what a remote service calls it.
        engine: "auto" or the name of a registered engine, see docs/engines.md.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto", "float32", "bfloat16" or "float16".
        template: "standard", "standard-hf", "compact", or the text of a template with {query} and {document}.
        instruction: the task that documents are judged for; None for the model's default.
        max_length: longest prompt in tokens; longer documents are cut at their end and say so.
        token_budget: tokens of one forward pass, which bounds memory; None chooses by device.
        engine_options: the engine's own options by name, see docs/engines.md and docs/remote.md; None for its defaults.
        top_k, score_threshold, min_confidence: defaults of `rerank`, see `RankingOptions`.

    Raises:
        InvalidInputError: an argument is unusable.
        ModelNotFoundError, UnsupportedModelError: see `resolve_model`.
        MissingDependencyError: what the engine needs is not installed.
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
        top_k: int | None = None,
        score_threshold: float | None = None,
        min_confidence: float | None = None,
    ) -> None:
        self.settings = RerankerSettings(
            os.fspath(model) if isinstance(model, os.PathLike) else model,
            engine,
            device,
            dtype,
            template,
            instruction,
            max_length,
            token_budget,
            {} if engine_options is None else engine_options,
        )
        self.options = RankingOptions(top_k, score_threshold, min_confidence)
        self.engine_name, self.engine_reason = choose_engine(engine)
        resolved = engine_module(self.engine_name).resolve(self.engine_name, self.settings)
        #: The local folder with the model, or with its tokenizer; None if the engine needs neither.
        self.model_path: Path | None = resolved.folder
        self._encoder = resolved.encoder
        self._lease = Lease(resolved.config)

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
    ) -> RerankResult:
        """The documents in order of relevance, best first; equal margins keep their input order.

        Args:
            query: not empty.
            documents: texts; equal ones are scored once. An empty list gives an empty result.
            top_k, instruction, score_threshold, min_confidence: None means as configured.
            show_progress: draw a progress bar on standard error.

        Raises:
            InvalidInputError: names the argument and its value.
            PromptTooLongError: query and instruction leave no room for a document.
            ScoringError: a document has no usable score.
            EngineError: the pass failed, or the reranker is closed.
        """
        options = self.options.override(top_k, score_threshold, min_confidence)
        prepared, margins = self._run(Request(query, documents, instruction), show_progress)
        return prepared.result(margins, options)

    async def arerank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        *,
        instruction: str | None = None,
        score_threshold: float | None = None,
        min_confidence: float | None = None,
    ) -> RerankResult:
        """`rerank` without blocking the event loop; cancelling it frees its place in the queue."""
        options = self.options.override(top_k, score_threshold, min_confidence)
        prepared = await asyncio.to_thread(self._prepare, Request(query, documents, instruction))
        return prepared.result(await asyncio.wrap_future(self._submit(prepared)), options)

    def rerank_many(
        self,
        requests: Sequence[Request],
        top_k: int | None = None,
        *,
        score_threshold: float | None = None,
        min_confidence: float | None = None,
        show_progress: bool = False,
    ) -> list[RerankResult]:
        """One result per request, in their order; small requests share forward passes.

        Raises: as `rerank`.
        """
        options = self.options.override(top_k, score_threshold, min_confidence)
        return [each.result(margins, options) for each, margins in self._run_many(requests, show_progress)]

    def score_many(self, requests: Sequence[Request], *, show_progress: bool = False) -> list[NDArray[np.float32]]:
        """P(yes) of every document of every request, whatever top_k and thresholds are configured.

        Returns:
            One float32 array [n_documents] per request, in input order.

        Raises: as `rerank`.
        """
        return [each.scores(margins) for each, margins in self._run_many(requests, show_progress)]

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
        prepared, margins = self._run(Request(query, documents, instruction), show_progress)
        return prepared.scores(margins)

    async def ascore(
        self, query: str, documents: Sequence[str], *, instruction: str | None = None
    ) -> NDArray[np.float32]:
        """`score` without blocking the event loop."""
        prepared = await asyncio.to_thread(self._prepare, Request(query, documents, instruction))
        return prepared.scores(await asyncio.wrap_future(self._submit(prepared)))

    def prepare(self, request: Request) -> Prepared:
        """The first half of a call, for callers such as a server that look at its size before they `submit` it.

        Raises: as `rerank`, for the input.
        """
        return self._prepare(request)

    def submit(self, prepared: Prepared) -> Future[Margins]:
        """The second half: queue it. `prepared.result(margins, options)` makes the ranking of what the future brings.

        Cancelling the future drops what no forward pass has taken.

        Raises:
            EngineClosedError: the reranker is closed, or its engine has ended.
        """
        return self._submit(prepared, restart=False)

    @property
    def running(self) -> bool:
        """Whether the engine's threads and processes are alive.

        If a thread has ended, every call raises EngineClosedError. If a process has ended or hung, `submit` raises it,
        and the methods that return scores start another process.
        """
        return self._lease.running

    def on_pass(self, listener: PassListener) -> None:
        """Call `listener(PassReport)` after every forward pass, from the thread of the engine that ran it."""
        self._lease.on_pass(listener)

    def describe(self) -> EngineDescription:
        """What runs where: the engine's device, dtype, versions and other facts."""
        return self._lease.engine.describe()

    def close(self) -> None:
        """Give up the engine; the last reranker that uses it ends its thread. Repeating it does nothing."""
        self._lease.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles carry the settings; the copy joins the same engine, or loads its own elsewhere."""
        return _make_again, (type(self), self.settings, self.options)

    def __repr__(self) -> str:
        return f"Reranker(model={str(self.model_path or self.settings.model)!r}, engine={self.engine_name!r})"

    def _run(self, request: Request, show_progress: bool) -> tuple[Prepared, Margins]:
        """One request from its texts to its margins, for a caller who waits."""
        texts = checked(request, self.settings.instruction)
        with _progress(show_progress) as bar:
            if not texts.distinct:
                prepared = self._encoded(texts)
                return prepared, self._submit(prepared).result()
            parts = _parts(texts.distinct) if self._lease.engine.capabilities.encodes_meanwhile else [texts.distinct]
            encoded: list[EncodedRequest] = []
            futures: list[Future[Margins]] = []
            try:
                for part in parts:
                    encoded.append(self._encode(texts, part))
                    futures.append(self._queue(encoded[-1], bar))
                whole = reduce(EncodedRequest.joined, encoded)
                prepared = Prepared(texts.documents, texts.source, whole, texts.started)
                futures[-1].add_done_callback(prepared.stop_clock)
                return prepared, reduce(Margins.joined, [future.result() for future in futures])
            finally:  # if the caller is interrupted meanwhile, the request leaves the queue
                for future in futures:
                    future.cancel()

    def _prepare(self, request: Request) -> Prepared:
        return self._encoded(checked(request, self.settings.instruction))

    def _encoded(self, texts: Texts) -> Prepared:
        encoded = self._encode(texts, texts.distinct) if texts.distinct else EncodedRequest([], [], [])
        return Prepared(texts.documents, texts.source, encoded, texts.started)

    def _encode(self, texts: Texts, distinct: list[str]) -> EncodedRequest:
        with _one_after_the_other():
            return self._encoder.encode(texts.query, distinct, texts.instruction, texts.max_document_tokens)

    def _submit(self, prepared: Prepared, bar: _ProgressBar | None = None, *, restart: bool = True) -> Future[Margins]:
        if not prepared.distinct:
            nothing: Future[Margins] = Future()
            nothing.set_result(Margins(np.empty(0, dtype=np.float32), computed_tokens=0))
            return nothing
        future = self._queue(prepared.encoded, bar, restart=restart)
        future.add_done_callback(prepared.stop_clock)
        return future

    def _queue(self, encoded: EncodedRequest, bar: _ProgressBar | None, *, restart: bool = True) -> Future[Margins]:
        if bar is not None:
            bar.expect(len(encoded.segments))
        return self._lease.submit(encoded, None if bar is None else bar.advance, restart=restart)

    def _run_many(self, requests: Sequence[Request], show_progress: bool) -> list[tuple[Prepared, Margins]]:
        if not isinstance(requests, Sequence):
            raise InvalidInputError("requests", requests, "needs a list of Request")
        for index, request in enumerate(requests):
            if not isinstance(request, Request):
                raise InvalidInputError(f"requests[{index}]", request, "needs a Request(query, documents)")
        prepared: list[Prepared] = []
        futures: list[Future[Margins]] = []
        with _progress(show_progress) as bar:
            try:
                for request in requests:  # the engine works on the first while the next are encoded
                    prepared.append(self._prepare(request))
                    futures.append(self._submit(prepared[-1], bar))
                return [(each, future.result()) for each, future in zip(prepared, futures, strict=True)]
            finally:
                for future in futures:
                    future.cancel()


def _make_again(kind: type[Reranker], settings: RerankerSettings, options: RankingOptions) -> Reranker:
    return kind(**asdict(settings), **asdict(options))


@contextmanager
def _one_after_the_other() -> Iterator[None]:
    """Requests that arrive together are encoded in turns, so that the engine has the first of them soon.

    The tokenizer spreads one batch over all cores; side by side, all batches would be ready when the last one is.
    Nobody waits long for a long request, nor for ever in a process that was forked while a thread held the lock.
    """
    held = _encoding.acquire(timeout=_LONGEST_TURN)
    try:
        yield
    finally:
        if held:
            _encoding.release()


def _parts(texts: list[str]) -> list[list[str]]:
    """The texts in the parts that go to a GPU one after the other; one part if all should go at once."""
    work = list(accumulate(len(text) + _SUFFIX for text in texts))
    if not work or work[-1] < _LONG_REQUEST:
        return [texts]
    ends = [min(bisect_left(work, share * work[-1]) + 1, len(texts)) for share in PARTS]
    return [texts[start:end] for start, end in pairwise([0, *ends]) if start < end]


class _ProgressBar:
    """Documents scored and expected, on standard error."""

    def __init__(self, bar: RichProgress) -> None:
        self._bar = bar
        self._task = bar.add_task("reranking", total=0)
        self._expected = 0

    def expect(self, documents: int) -> None:
        self._expected += documents
        self._bar.update(self._task, total=self._expected)

    def advance(self, documents: int) -> None:
        self._bar.advance(self._task, documents)


@contextmanager
def _progress(show: bool) -> Iterator[_ProgressBar | None]:
    if not show:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reranking"), BarColumn(), MofNCompleteColumn(), TextColumn("documents"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        yield _ProgressBar(bar)
