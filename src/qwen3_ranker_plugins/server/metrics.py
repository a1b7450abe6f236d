"""Prometheus metrics. One registry per server, so that several can live in one process."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from .._version import __version__
from ..dispatch import PassReport
from .admission import Admission

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_DOCUMENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The metrics; docs/server.md lists them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.requests = self._counter("requests", "Answered requests.", "route", "method", "status")
        self.request_seconds = self._histogram(
            "request_seconds", "From a request's first byte to its answer.", _SECONDS, "route"
        )
        self.rejected = self._counter("rejected", "Requests that were refused or given up, by reason.", "reason")
        self.documents = self._counter("documents", "Documents of answered requests.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of their prompts, each document on its own.")
        self.computed_tokens = self._counter("computed_tokens", "Tokens that were computed for them.")
        self.request_documents = self._histogram("request_documents", "Documents per request.", _DOCUMENTS)
        self.rank_seconds = self._histogram("rank_seconds", "From tokenization to the last score.", _SECONDS)
        self.truncated_documents = self._counter("truncated_documents", "Documents whose end was not read.")
        self.truncated_tokens = self._counter("truncated_tokens", "Tokens that were not read.")
        self.pass_requests = self._histogram("pass_requests", "Requests that shared a forward pass.", _DOCUMENTS)
        self.pass_documents = self._histogram("pass_documents", "Documents per forward pass.", _DOCUMENTS)
        self.pass_tokens = self._histogram("pass_tokens", "Tokens per forward pass.", _TOKENS)
        self.pass_seconds = self._histogram("pass_seconds", "Wall time of a forward pass.", _SECONDS)
        self.engine_errors = self._counter("engine_errors", "Forward passes that failed.")
        self.engine_loads = self._counter("engine_loads", "How often the engine was started.")
        self.engine_up = Gauge("qwen3_ranker_engine_up", "1 if the engine answers.", registry=self.registry)
        self._build = Info("qwen3_ranker_build", "Version, model and engine.", registry=self.registry)

    def describe_build(self, model: str, engine: str) -> None:
        """Set the labels of `build_info`.

        Args:
            model: as configured.
            engine: as configured until the model is loaded, then the engine that was chosen.
        """
        self._build.info({"version": __version__, "model": model, "engine": engine})

    def watch(self, admission: Admission, body_bytes: Callable[[], int]) -> None:
        """Gauges that read the queue whenever they are asked for."""
        for name, help_text, read in (
            ("queue_requests", "Requests accepted and not answered.", lambda: admission.requests),
            ("queue_documents", "Their documents.", lambda: admission.documents),
            ("queue_tokens", "Their tokens.", lambda: admission.tokens),
            ("body_bytes", "Bytes of request bodies in memory.", body_bytes),
        ):
            Gauge(f"qwen3_ranker_{name}", help_text, registry=self.registry).set_function(read)

    def on_pass(self, report: PassReport) -> None:
        """Record a forward pass; called from the engine's thread."""
        if report.error is not None:
            self.engine_errors.inc()
            return
        self.pass_requests.observe(report.requests)
        self.pass_documents.observe(report.documents)
        self.pass_tokens.observe(report.tokens)
        self.pass_seconds.observe(report.seconds)

    def render(self) -> bytes:
        """The text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"qwen3_ranker_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"qwen3_ranker_{name}", help_text, labels, buckets=buckets, registry=self.registry)
