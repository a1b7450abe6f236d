"""Prometheus metrics. One registry per server, so that several can live in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from .._version import __version__
from ..cache import CacheStatistics
from ..dispatch import PassReport, ReplicaState
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
            "request_seconds", "Seconds from a request's first byte to its answer.", _SECONDS, "route"
        )
        self.rejected = self._counter("rejected", "Requests that were refused or abandoned, by reason.", "reason")
        self.documents = self._counter("documents", "Documents of answered requests.")
        self.pieces = self._counter("pieces", "Judged texts: pieces of documents, or whole documents.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of all prompts, as if each text had its own.")
        self.computed_tokens = self._counter("computed_tokens", "Tokens that went through the model.")
        self.request_documents = self._histogram("request_documents", "Documents per request.", _DOCUMENTS)
        self.rank_seconds = self._histogram("rank_seconds", "Seconds from tokenization to the last score.", _SECONDS)
        self.truncated_documents = self._counter("truncated_documents", "Documents that were cut at their end.")
        self.truncated_tokens = self._counter("truncated_tokens", "Tokens that were cut off.")
        self.pass_requests = self._histogram("pass_requests", "Requests that shared a forward pass.", _DOCUMENTS)
        self.pass_documents = self._histogram("pass_documents", "Documents per forward pass.", _DOCUMENTS)
        self.pass_tokens = self._histogram("pass_tokens", "Tokens per forward pass.", _TOKENS)
        self.pass_seconds = self._histogram("pass_seconds", "Wall time of a forward pass in seconds.", _SECONDS)
        self.engine_errors = self._counter("engine_errors", "Forward passes that failed.")
        self.engine_loads = self._counter("engine_loads", "Number of times that the engine was started.")
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
        """Add gauges that read the queue at each scrape."""
        for name, help_text, read in (
            ("queue_requests", "Requests that are accepted but not answered.", lambda: admission.requests),
            ("queue_documents", "Documents of requests that are not answered.", lambda: admission.documents),
            ("queue_tokens", "Tokens of requests that are not answered.", lambda: admission.tokens),
            ("body_bytes", "Bytes of request bodies in memory.", body_bytes),
        ):
            Gauge(f"qwen3_ranker_{name}", help_text, registry=self.registry).set_function(read)

    def watch_replicas(self, replicas: Callable[[], list[ReplicaState]], admission: Admission, model: str) -> None:
        """Add metrics of each replica, and the gauges of vLLM that gateways read; both are read at each scrape.

        Args:
            replicas: returns the states of the replicas.
            admission: counts the requests that are accepted but not answered.
            model: the model's name on the wire.
        """
        self.registry.register(_Replicas(replicas, admission, model))

    def watch_cache(self, statistics: Callable[[], CacheStatistics | None]) -> None:
        """Add metrics of the cache of scores, which are read at each scrape; without a cache there are none."""
        self.registry.register(_Cache(statistics))

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
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"qwen3_ranker_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"qwen3_ranker_{name}", help_text, labels, buckets=buckets, registry=self.registry)


class _Cache(Collector):
    """See `Metrics.watch_cache`."""

    def __init__(self, statistics: Callable[[], CacheStatistics | None]) -> None:
        self._statistics = statistics

    def describe(self) -> list[Metric]:
        """Empty, so that registering the collector does not read the values."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called for every scrape."""
        if (now := self._statistics()) is None:
            return
        for name, help_text, count in (
            ("hits", "Documents whose score came from the cache.", now.hits),
            ("misses", "Documents whose score was not in the cache.", now.misses),
            ("evictions", "Scores that were evicted to make room for others.", now.evictions),
        ):
            yield CounterMetricFamily(f"qwen3_ranker_cache_{name}", help_text, value=count)
        for name, help_text, value in (
            ("entries", "Scores in the cache.", now.entries),
            ("bytes", "Bytes of the cache in use.", now.bytes),
            ("limit_bytes", "Maximum size of the cache in bytes.", now.limit),
            (
                "failed",
                "1 if the file of the cache has failed, so that all scores are computed.",
                now.failure is not None,
            ),
        ):
            yield GaugeMetricFamily(f"qwen3_ranker_cache_{name}", help_text, value=value)


class _Replicas(Collector):
    """See `Metrics.watch_replicas`."""

    def __init__(self, replicas: Callable[[], list[ReplicaState]], admission: Admission, model: str) -> None:
        self._replicas = replicas
        self._admission = admission
        self._model = model

    def describe(self) -> list[Metric]:
        """Empty, so that registering the collector does not read the values."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called for every scrape."""
        states = self._replicas()
        labels = ("replica", "device")
        up = GaugeMetricFamily("qwen3_ranker_replica_up", "1 if the replica can score.", labels=labels)
        requests = GaugeMetricFamily("qwen3_ranker_replica_requests", "Requests in its forward passes.", labels=labels)
        rate = GaugeMetricFamily(
            "qwen3_ranker_replica_documents_per_second", "Average over about ten seconds.", labels=labels
        )
        passes = CounterMetricFamily("qwen3_ranker_replica_passes", "Forward passes.", labels=labels)
        documents = CounterMetricFamily("qwen3_ranker_replica_documents", "Documents that it scored.", labels=labels)
        tokens = CounterMetricFamily("qwen3_ranker_replica_tokens", "Tokens that it computed.", labels=labels)
        errors = CounterMetricFamily("qwen3_ranker_replica_errors", "Forward passes that failed.", labels=labels)
        restarts = CounterMetricFamily(
            "qwen3_ranker_replica_restarts", "Number of times that it was restarted.", labels=labels
        )
        for state in states:
            of_this = (str(state.number), state.device)
            up.add_metric(of_this, float(state.status == "running"))
            requests.add_metric(of_this, state.requests)
            rate.add_metric(of_this, state.documents_per_second)
            passes.add_metric(of_this, state.passes)
            documents.add_metric(of_this, state.documents)
            tokens.add_metric(of_this, state.tokens)
            errors.add_metric(of_this, state.failed_passes)
            restarts.add_metric(of_this, state.restarts)
        yield from (up, requests, rate, passes, documents, tokens, errors, restarts)
        running = min(sum(state.requests for state in states), self._admission.requests)
        for name, help_text, value in (
            ("vllm:num_requests_running", "Requests in forward passes, under vLLM's name.", running),
            (
                "vllm:num_requests_waiting",
                "Accepted requests that are not in a forward pass, under vLLM's name.",
                self._admission.requests - running,
            ),
        ):
            gauge = GaugeMetricFamily(name, help_text, labels=("model_name",))
            gauge.add_metric((self._model,), value)
            yield gauge
