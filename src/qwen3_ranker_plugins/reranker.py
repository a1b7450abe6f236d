"""Reranker: whole calls, for sync and async callers.

Every call takes the same path, whose steps are in `steps`: `prepare` checks a request, `submit` encodes and queues it,
and the prepared request ranks its documents when the engine has scored them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .checks import canonical_devices, canonical_size, plain
from .config import DEFAULT_MODEL, RankingOptions, RerankerSettings
from .errors import InvalidInputError
from .explanation import Explain, check_explain
from .progress_bar import ProgressBar
from .prompt import DEFAULT_MAX_LENGTH
from .ranking import PreparedRequest
from .steps import RerankingSteps
from .types import DEFAULT_PIECES, Request, RerankResult


class Reranker(RerankingSteps):
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
        super().__init__(settings, RankingOptions(top_k, score_threshold, min_confidence))

    @classmethod
    def from_settings(cls, settings: RerankerSettings, options: RankingOptions | None = None) -> Self:
        """Make a reranker from settings, which are checked already, and default options of `rerank`.

        Raises: as `Reranker`.
        """
        made = cls.__new__(cls)
        RerankingSteps.__init__(made, settings, RankingOptions() if options is None else options)
        return made

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

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles carry the settings; a copy shares the engine, or loads its own in another process."""
        return _make_again, (type(self), self.settings, self.options)

    def __repr__(self) -> str:
        return f"Reranker(model={str(self.model_path or self.settings.model)!r}, engine={self.engine_name!r})"

    @contextmanager
    def _submitted(self, requests: Sequence[Request], show_progress: bool) -> Iterator[list[PreparedRequest]]:
        """Requests after `submit`. When the block ends, even by an interrupt, those that wait are cancelled."""
        prepared: list[PreparedRequest] = []
        bar = ProgressBar() if show_progress else None
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


def _make_again(kind: type[Reranker], settings: RerankerSettings, options: RankingOptions) -> Reranker:
    return kind.from_settings(settings, options)


def _checked_requests(requests: Sequence[Request]) -> Sequence[Request]:
    if not isinstance(requests, Sequence):
        raise InvalidInputError("requests", requests, "needs a list of Request")
    for index, request in enumerate(requests):
        if not isinstance(request, Request):
            raise InvalidInputError(f"requests[{index}]", request, "needs a Request(query, documents)")
    return requests
