"""The engine that asks a service. Its own thread runs an event loop, so that a request can be broken off."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import httpx

from ...config import EngineConfig, RerankerSettings
from ...models import resolve_tokenizer
from ...prompt import EncodedRequest, Encoder, PromptEncoder, load_tokenizer
from .. import ResolvedSettings
from ..base import Engine, EngineCapabilities, EngineDescription, Margins
from ..token_rows import marker_id
from .client import HttpClient
from .options import RemoteOptions
from .texts import RenderedEncoder, TextEncoder
from .wire import margins, request_body

#: About 1 MB of text in one HTTP request.
_TOKEN_BUDGET = 250_000
#: Of a row of documents, which to vLLM is one prompt: what docs/engines.md starts `vllm serve` with, less some room.
_ROW_BUDGET = 32_000


class RemoteEngine(Engine):
    """Scores over HTTP, `options.concurrency` requests at a time.

    Callers wait in threads for requests that run in the engine's own event loop: cancelling a call closes its
    connections at once, total timeouts hold whatever a server does, and it does not matter in which loop, or in how
    many one after the other, the callers live.

    Args:
        options: see `RemoteOptions`.
        token_budget: tokens of one HTTP request, estimated where texts go out; None for about 1 MB of text, or on route
            "packed" for a row of 32,000 tokens.

    Raises:
        InvalidInputError: the variable with the key is not set, or holds what no header can.
    """

    name = "remote"

    def __init__(self, options: RemoteOptions, *, token_budget: int | None = None) -> None:
        self.options = options
        budget = _ROW_BUDGET if options.route == "packed" else _TOKEN_BUDGET
        self.capabilities = EngineCapabilities(
            token_budget=budget if token_budget is None else token_budget,
            documents_per_pass=options.documents_per_request,
            workers=options.concurrency,
        )
        api_key = options.api_key()
        self._has_key = api_key is not None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qwen3-ranker-remote-http", daemon=True)
        self._thread.start()
        self._client = asyncio.run_coroutine_threadsafe(self._connect(api_key), self._loop).result()

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        """One HTTP request each, at the same time.

        Raises:
            RemoteError: the service cannot be reached, refuses, or answers what cannot be used.
        """
        return self.score_until(requests, Future())

    def score_until(self, requests: Sequence[EncodedRequest], settled: Future[Margins]) -> list[Margins]:
        """`score`; once `settled` is, connections are closed and no new attempt is made.

        Raises:
            RemoteError: as `score`.
            CancelledError: it was broken off.
        """
        answers = asyncio.run_coroutine_threadsafe(self._score(requests), self._loop)
        settled.add_done_callback(lambda _: answers.cancel())
        return answers.result()

    def close(self) -> None:
        """Close all connections and end the event loop."""
        asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def describe(self) -> EngineDescription:
        """Which service is asked, for what, and whether with a key."""
        return EngineDescription(
            engine=self.name,
            device=self.options.endpoint,
            dtype="the service's precision",
            details={
                "kind": self.options.kind,
                "served_model": self.options.served_model or "as served",
                "prompts": "ours" if self.options.prompts_are_ours else "the service's",
                "api_key": f"from {self.options.api_key_env}" if self._has_key else "none",
            },
            versions={"httpx": httpx.__version__},
        )

    async def _connect(self, api_key: str | None) -> HttpClient:
        self._places = asyncio.Semaphore(self.options.concurrency)  # so that no timeout runs before there is a place
        return HttpClient(self.options, api_key)

    async def _disconnect(self) -> None:
        broken_off = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*broken_off, return_exceptions=True)
        await self._client.close()
        await self._loop.shutdown_default_executor()  # it looked up the service's name

    async def _score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        asked = [asyncio.ensure_future(self._ask(request)) for request in requests]
        try:
            return await asyncio.gather(*asked)
        finally:
            for each in asked:
                each.cancel()

    async def _ask(self, request: EncodedRequest) -> Margins:
        async with self._places:
            answer = await self._client.post(request_body(self.options, request))
        return margins(self.options, request, answer)


def resolve(engine: str, settings: RerankerSettings) -> ResolvedSettings:
    """See `EngineModule`. The folder is the tokenizer's; it is None if the service makes the prompts.

    Rerankers with an equal configuration share connections and the limit of concurrent requests.
    """
    options = RemoteOptions.of(settings)
    folder = resolve_tokenizer(settings.model) if options.prompts_are_ours else None
    encoder: Encoder = TextEncoder(options)
    if folder is not None:
        tokenizer = load_tokenizer(folder)
        prompts = PromptEncoder(tokenizer, settings.template, settings.max_length)
        encoder = prompts if options.sends_ids else RenderedEncoder(prompts)
        if options.route == "packed" and options.marker_id is None:
            options = replace(options, marker_id=marker_id(tokenizer))
    config = EngineConfig(
        engine=engine,
        folder=None,
        device="remote",
        dtype="remote",
        token_budget=settings.token_budget,
        options=options.as_json(),
    )
    return ResolvedSettings(folder=folder, encoder=encoder, config=config)


def create(config: EngineConfig) -> RemoteEngine:
    """See `EngineModule`."""
    return RemoteEngine(RemoteOptions.from_config(config), token_budget=config.token_budget)
