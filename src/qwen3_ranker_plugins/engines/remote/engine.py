"""The engine that asks a service over HTTP. docs/remote.md says what is sent to which service."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import httpx

from ...checks import check_json
from ...config import EngineConfig, RerankerSettings
from ...models import resolve_tokenizer
from ...prompt import EncodedRequest, Encoder, PromptEncoder, load_tokenizer
from .. import ResolvedSettings
from ..base import Engine, EngineCapabilities, EngineDescription, Margins
from ..token_rows import marker_id
from .client import HttpClient
from .options import RemoteOptions
from .request_body import request_body
from .response import read_margins
from .text_encoders import RenderedEncoder, TextEncoder

#: Tokens in one HTTP request: about 1 MB of text.
_TOKEN_BUDGET = 250_000
#: Tokens in a row of documents, which is one prompt of vLLM: a little less than docs/engines.md allows `vllm serve`.
_ROW_BUDGET = 32_000


class RemoteEngine(Engine):
    """Scores over HTTP, with at most `options.concurrency` requests at the same time.

    The requests run in an event loop in a thread of the engine, and callers wait for them in their own threads. So
    cancelling a call closes its connections at once, total timeouts do not depend on the service, and callers may use
    any event loop, or several in turn.

    Args:
        options: see `RemoteOptions`.
        token_budget: tokens of one HTTP request, estimated if texts are sent; None for about 1 MB of text, or for a row
            of 32,000 tokens on route "packed".

    Raises:
        InvalidInputError: the environment variable with the key is not set, or its value cannot be sent in a header.
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
        """The margins of each request, from one HTTP request each; all are sent at the same time.

        Raises:
            RemoteError: the service cannot be reached, refuses, or gives an unusable answer.
        """
        return self.score_until(requests, Future())

    def score_until(self, requests: Sequence[EncodedRequest], settled: Future[Margins]) -> list[Margins]:
        """`score`, cancelled as soon as `settled` is done: connections are closed and no attempt follows.

        Raises:
            RemoteError: as `score`.
            CancelledError: `settled` was done first.
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
        """The service's address, kind and name of the model, who makes the prompts, and where the key comes from."""
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
        self._places = asyncio.Semaphore(self.options.concurrency)  # timeouts start when a request has a place
        return HttpClient(self.options, api_key)

    async def _disconnect(self) -> None:
        cancelled = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*cancelled, return_exceptions=True)
        await self._client.close()
        await self._loop.shutdown_default_executor()  # its threads resolve the service's host name

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
        return read_margins(self.options, request, answer)


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
        options=check_json("engine_options", options.as_dict),
    )
    return ResolvedSettings(folder=folder, encoder=encoder, config=config)


def create(config: EngineConfig) -> RemoteEngine:
    """See `EngineModule`."""
    return RemoteEngine(RemoteOptions.from_config(config), token_budget=config.token_budget)
