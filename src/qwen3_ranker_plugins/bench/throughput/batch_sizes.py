"""Measures pairs per second, latency, memory and quality over the number of pairs in one call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ...checks import check_positive
from ...config import RerankerSettings
from ...data.collection import Collection
from ...ranking import sigmoid
from ...reranker import Reranker
from ...types import Request
from ..figures import SweepPoint, throughput_panels
from ..machine import environment
from ..peak_memory import MemoryPeak, PeakMemory
from ..quality.metrics import MAIN_MEASURE, decisions, means, per_query, reranked
from ..report import Report, Table, about_lines, model_name, random_weights
from ..results import Result, plain
from ..statistics import summary

Progress = Callable[[int], None]


@dataclass(frozen=True)
class JudgedPairs:
    """The pairs that were scored.

    Attributes:
        name, first_stage, relevant_from: see `Collection`.
        pairs: (query id, document id, grade), query by query.
        qrels: query id -> document id -> grade.
    """

    name: str
    first_stage: str
    relevant_from: int
    pairs: list[tuple[str, str, int]]
    qrels: dict[str, dict[str, int]]


@dataclass(frozen=True)
class BatchSizeRow:
    """Raw values of one batch size.

    Attributes:
        batch_size: number of pairs in one call.
        call_seconds: duration of each call, round by round.
        memory: peak memory of each round.
        margins: margin of each pair, which is the same in every round.
    """

    batch_size: int
    call_seconds: list[list[float]] = field(default_factory=list)
    memory: list[MemoryPeak] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ThroughputResult(Result):
    """Raw values of all batch sizes, with the figures that `evaluate` computes from them."""

    kind: ClassVar[str] = "throughput"

    collection: JudgedPairs
    rows: list[BatchSizeRow]
    figures: Any = None


@dataclass(frozen=True)
class BatchSizeFigures:
    """The figures that are computed from the raw values of one batch size.

    Attributes:
        pairs_per_second: median over `rounds`.
        call_ms: `summary` over all calls of all rounds.
        host_mib, device_mib: the largest peak of all rounds in MiB.
        measures: measure -> mean over queries.
        accuracy, base_rate, balanced_accuracy, relevant: see `decisions`.
    """

    batch_size: int
    pairs_per_second: float
    rounds: list[float]
    call_ms: dict[str, float]
    host_mib: float
    device_mib: float | None
    measures: dict[str, float]
    accuracy: float
    base_rate: float
    balanced_accuracy: float
    relevant: float


def measure_throughput(
    collection: Collection,
    settings: RerankerSettings,
    batch_sizes: Sequence[int],
    *,
    repeat: int = 3,
    progress: Progress | None = None,
) -> ThroughputResult:
    """Score all pairs of a collection with each batch size.

    A batch is the pairs of one call, in the order of the collection: it may contain the end of one query's list and the
    beginning of the next.

    The batch sizes take turns in every round, so that other programs on the machine disturb all of them alike. Each has
    one untimed call before its first timed one.

    Args:
        collection: labelled pairs.
        settings: settings of the reranker.
        batch_sizes: numbers of pairs in one call.
        repeat: number of rounds.
        progress: called with the number of pairs after every call.

    Raises:
        InvalidInputError: a number is not positive. Further errors as for `Reranker` and `score_many`.
    """
    check_positive("repeat", repeat)
    for size in batch_sizes:
        check_positive("batch_sizes", size)
    sizes = sorted(set(batch_sizes))
    about = environment()
    pairs = collection.pairs
    rows = {size: BatchSizeRow(size) for size in sizes}
    with Reranker(**asdict(settings)) as reranker:
        facts = reranker.describe().as_dict()
        for round_number in range(repeat):
            for size in sizes:
                if not round_number:
                    reranker.score_many(_requests(collection, pairs[:size]))
                with PeakMemory(on_gpu=facts.get("device", "cpu") != "cpu") as memory:
                    seconds, margins = _score(reranker, collection, pairs, size, progress)
                row = rows[size]
                row.call_seconds.append(seconds)
                row.memory.append(memory.peak)
                row.margins[:] = margins
    result = ThroughputResult(
        about=about.after(facts),
        settings={**asdict(settings), "batch_sizes": sizes, "repeat": repeat},
        seed=None,
        collection=JudgedPairs(
            name=collection.name,
            first_stage=collection.first_stage,
            relevant_from=collection.relevant_from,
            pairs=pairs,
            qrels={query_id: dict(grades) for query_id, grades in collection.qrels.items()},
        ),
        rows=[rows[size] for size in sizes],
    )
    return replace(result, figures=plain(evaluate(result)))


def _score(
    reranker: Reranker,
    collection: Collection,
    pairs: Sequence[tuple[str, str, int]],
    size: int,
    progress: Progress | None,
) -> tuple[list[float], list[float]]:
    """Returns (seconds of each call, margin of each pair)."""
    seconds: list[float] = []
    margins: list[float] = []
    for start in range(0, len(pairs), size):
        requests = _requests(collection, pairs[start : start + size])
        started = time.perf_counter()
        results = reranker.rerank_many(requests)
        seconds.append(time.perf_counter() - started)
        for found in results:
            margins += [hit.margin for hit in sorted(found, key=lambda hit: hit.index)]
        if progress is not None:
            progress(len(pairs[start : start + size]))
    return seconds, margins


def _requests(collection: Collection, pairs: Sequence[tuple[str, str, int]]) -> list[Request]:
    """One request for each query of the pairs; pairs of the same query are consecutive."""
    grouped: dict[str, list[str]] = {}
    for query_id, doc_id, _ in pairs:
        grouped.setdefault(query_id, []).append(collection.texts[doc_id])
    return [Request(collection.queries[query_id], texts) for query_id, texts in grouped.items()]


def evaluate(result: ThroughputResult) -> list[BatchSizeFigures]:
    """Compute the figures of each batch size from the raw values of a result."""
    collection = result.collection
    relevant = [grade >= collection.relevant_from for _, _, grade in collection.pairs]
    entries = []
    for row in result.rows:
        rounds = [len(collection.pairs) / sum(seconds) for seconds in row.call_seconds]
        calls = [1000 * each for seconds in row.call_seconds for each in seconds]
        devices = [each.device_mib for each in row.memory if each.device_mib is not None]
        entries.append(
            BatchSizeFigures(
                batch_size=row.batch_size,
                pairs_per_second=statistics.median(rounds),
                rounds=rounds,
                call_ms=summary(calls),
                host_mib=max(each.host_mib or 0.0 for each in row.memory),
                device_mib=max(devices) if devices else None,
                measures=means(_measures(collection, row.margins)),
                **decisions(relevant, row.margins),
            )
        )
    return entries


def _measures(collection: JudgedPairs, margins: Sequence[float]) -> dict[str, dict[str, float]]:
    candidates: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    for (query_id, doc_id, _), margin in zip(collection.pairs, margins, strict=True):
        candidates.setdefault(query_id, []).append(doc_id)
        scores.setdefault(query_id, []).append(margin)
    run = {each: reranked(candidates[each], scores[each]) for each in candidates}
    return per_query(
        collection.qrels, run, relevant_from=collection.relevant_from, depth=max(map(len, candidates.values()))
    )


def throughput_report(result: ThroughputResult) -> Report:
    """Everything that is shown, computed from the raw values."""
    entries, collection, settings = evaluate(result), result.collection, result.settings
    title = f"Throughput of {model_name(settings['model'])} ({result.about.engine['engine']} engine)"
    lines = [
        f"{len(collection.pairs)} labelled pairs of {len(collection.qrels)} queries: {collection.name}",
        f"candidates: {collection.first_stage}",
        f"{settings['repeat']} rounds, the batch sizes taking turns",
        f"template {settings['template']!r}, max_length {settings['max_length']}",
        *about_lines(result.about),
    ]
    if random_weights(settings["model"]):
        lines.append("the weights are random: times are those of the shape, and quality is chance")
    pairs = f"{len(collection.pairs)} pairs: {collection.name}"
    footer = [result.about.device_line, result.about.version_line, pairs]
    words = "Throughput, latency, memory and quality over batch size"
    return Report(
        title,
        lines,
        [_speed(entries), _quality(result, entries)],
        (throughput_panels(list(_points(entries, random_weights(settings["model"]))), title, footer), words),
    )


def _points(entries: Sequence[BatchSizeFigures], weights_are_random: bool) -> Iterator[SweepPoint]:
    for each in entries:
        quality = {MAIN_MEASURE: each.measures[MAIN_MEASURE], "balanced accuracy": each.balanced_accuracy}
        yield SweepPoint(
            each.batch_size,
            each.rounds,
            {name: each.call_ms[name] for name in ("p50", "p95", "p99")},
            each.host_mib,
            each.device_mib,
            {} if weights_are_random else quality,
        )


def _speed(entries: Sequence[BatchSizeFigures]) -> Table:
    best = max(each.pairs_per_second for each in entries)
    rows = [
        [
            str(each.batch_size),
            f"{each.pairs_per_second:.1f}",
            f"{min(each.rounds):.1f} - {max(each.rounds):.1f}",
            f"{each.pairs_per_second / best:.0%}",
            *(f"{each.call_ms[name]:.1f}" for name in ("p50", "p90", "p95", "p99")),
            f"{each.host_mib:,.0f}",
            "-" if each.device_mib is None else f"{each.device_mib:,.0f}",
        ]
        for each in entries
    ]
    header = ["batch size", "pairs/s", "rounds", "of best", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "host MiB",
              "device MiB"]  # fmt: skip
    note = (
        "Pairs/s: median of the rounds. Milliseconds: of one call, over all calls of all rounds. Memory: peak while "
        "scoring, model included; how it was read is in the JSON file."
    )
    return Table("Speed and memory", header, rows, note)


def _quality(result: ThroughputResult, entries: Sequence[BatchSizeFigures]) -> Table:
    reference = np.asarray(result.rows[0].margins)
    names = [MAIN_MEASURE, "MRR@10"]
    rows = []
    for row, each in zip(result.rows, entries, strict=True):
        difference = np.abs(sigmoid(np.asarray(row.margins)) - sigmoid(reference)).max()
        rows.append(
            [
                str(each.batch_size),
                *(f"{each.measures[name]:.4f}" for name in names),
                f"{each.accuracy:.1%}",
                f"{each.base_rate:.1%}",
                f"{each.balanced_accuracy:.1%}",
                f"{difference:.1e}",
            ]
        )
    relevant = entries[0].relevant
    note = (
        f"Accuracy: share of pairs where 'P(yes) >= 0.5' agrees with the judgement. {relevant:.1%} of the pairs are "
        f"relevant, so always giving the more common answer is right in {entries[0].base_rate:.1%} (base rate). "
        "Balanced: mean over relevant and other pairs, chance is 50%. The batch size should not change a score: "
        "the last column is the largest difference of P(yes) to the first row."
    )
    header = ["batch size", *names, "accuracy", "base rate", "balanced", "max |ΔP(yes)|"]
    return Table("Quality", header, rows, note)
