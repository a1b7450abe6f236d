"""Pairs per second, latency, memory and quality over the number of pairs in one call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..config import RerankerSettings, check_positive
from ..data.collection import Collection
from ..reranker import Reranker
from ..types import Request
from .figures import SweepPoint, throughput_panels
from .measures import MAIN_MEASURE, decisions, means, per_query, reranked
from .memory import PeakMemory
from .report import Report, Table
from .results import Result, device_line, environment, new_result, version_line
from .stats import summary

Progress = Callable[[int], None]


def measure_throughput(
    collection: Collection,
    settings: RerankerSettings,
    batch_sizes: Sequence[int],
    *,
    repeat: int = 3,
    progress: Progress | None = None,
) -> Result:
    """Score all pairs of a collection with each batch size.

    A batch is what one call hands over: so many pairs in the order of the collection, whose queries may change in the
    middle, as in the seed. The batch sizes take turns in every round, so that what else runs on the machine disturbs
    all of them; each has one call without a clock before its first.

    Args:
        collection: labelled pairs.
        settings: of the reranker.
        batch_sizes: pairs in one call.
        repeat: rounds.
        progress: called with the number of pairs after every call.

    Raises:
        InvalidInputError: a number is not positive. Others as `Reranker` and `score_many`.
    """
    check_positive("repeat", repeat)
    for size in batch_sizes:
        check_positive("batch_sizes", size)
    sizes = sorted(set(batch_sizes))
    about = environment()
    pairs = collection.pairs
    rows: dict[int, dict[str, Any]] = {size: {"batch_size": size, "call_seconds": [], "memory": []} for size in sizes}
    with Reranker(**asdict(settings)) as reranker:
        facts = reranker.describe()
        for round_number in range(repeat):
            for size in sizes:
                if not round_number:
                    reranker.score_many(_requests(collection, pairs[:size]))
                with PeakMemory(on_gpu=facts.device != "cpu") as memory:
                    seconds, margins = _score(reranker, collection, pairs, size, progress)
                row = rows[size]
                row["call_seconds"].append(seconds)
                row["memory"].append(memory.as_dict())
                row.setdefault("margins", margins)  # every round gives the same
    result = new_result("throughput", about, settings={**asdict(settings), "batch_sizes": sizes, "repeat": repeat},
                        seed=None, facts=facts.as_dict())  # fmt: skip
    result["collection"] = {
        "name": collection.name,
        "first_stage": collection.first_stage,
        "relevant_from": collection.relevant_from,
        "pairs": [list(pair) for pair in pairs],
        "qrels": {query_id: dict(grades) for query_id, grades in collection.qrels.items()},
    }
    result["rows"] = [rows[size] for size in sizes]
    result["figures"] = evaluate(result)
    return result


def _score(
    reranker: Reranker,
    collection: Collection,
    pairs: Sequence[tuple[str, str, int]],
    size: int,
    progress: Progress | None,
) -> tuple[list[float], list[float]]:
    """(seconds of each call, margin of each pair)."""
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
    """One request per query among the pairs, which stand together."""
    grouped: dict[str, list[str]] = {}
    for query_id, doc_id, _ in pairs:
        grouped.setdefault(query_id, []).append(collection.texts[doc_id])
    return [Request(collection.queries[query_id], texts) for query_id, texts in grouped.items()]


def evaluate(result: Result) -> list[dict[str, Any]]:
    """One entry per batch size, from the raw values of a result.

    Returns:
        "pairs_per_second" (median over rounds) and its "rounds"; "call_ms": `summary` over all calls of all rounds;
        "host_mib", "device_mib": the largest of all rounds; the measures, and `decisions`.
    """
    collection = result["collection"]
    pairs = collection["pairs"]
    relevant = [grade >= collection["relevant_from"] for _, _, grade in pairs]
    entries = []
    for row in result["rows"]:
        rounds = [len(pairs) / sum(seconds) for seconds in row["call_seconds"]]
        calls = [1000 * each for seconds in row["call_seconds"] for each in seconds]
        devices = [each["device_mib"] for each in row["memory"] if each["device_mib"] is not None]
        entries.append(
            {
                "batch_size": row["batch_size"],
                "pairs_per_second": statistics.median(rounds),
                "rounds": rounds,
                "call_ms": summary(calls),
                "host_mib": max(each["host_mib"] for each in row["memory"]),
                "device_mib": max(devices) if devices else None,
                "measures": means(_measures(collection, row["margins"])),
                **decisions(relevant, row["margins"]),
            }
        )
    return entries


def _measures(collection: Mapping[str, Any], margins: Sequence[float]) -> dict[str, dict[str, float]]:
    candidates: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    for (query_id, doc_id, _), margin in zip(collection["pairs"], margins, strict=True):
        candidates.setdefault(query_id, []).append(doc_id)
        scores.setdefault(query_id, []).append(margin)
    run = {each: reranked(candidates[each], scores[each]) for each in candidates}
    return per_query(
        collection["qrels"],
        run,
        relevant_from=collection["relevant_from"],
        depth=max(map(len, candidates.values())),
    )


def throughput_report(result: Result) -> Report:
    """Everything that is shown, computed from the raw values."""
    entries, collection, settings = evaluate(result), result["collection"], result["settings"]
    title = f"Throughput of {settings['model']} ({result['about']['engine']['engine']} engine)"
    lines = [
        f"{len(collection['pairs'])} labelled pairs of {len(collection['qrels'])} queries: {collection['name']}",
        f"candidates: {collection['first_stage']}",
        f"{settings['repeat']} rounds, the batch sizes taking turns",
        f"template {settings['template']!r}, max_length {settings['max_length']}",
        device_line(result),
        version_line(result),
        f"command: {result['about']['command']}",
    ]
    footer = [device_line(result), version_line(result), f"{len(collection['pairs'])} pairs: {collection['name']}"]
    words = "Throughput, latency, memory and quality over batch size"
    return Report(
        title,
        lines,
        [_speed(entries), _quality(result, entries)],
        (throughput_panels(list(_points(entries)), title, footer), words),
    )


def _points(entries: Sequence[Mapping[str, Any]]) -> Iterator[SweepPoint]:
    for each in entries:
        yield SweepPoint(
            each["batch_size"],
            each["rounds"],
            {name: each["call_ms"][name] for name in ("p50", "p95", "p99")},
            each["host_mib"],
            each["device_mib"],
            {
                MAIN_MEASURE: each["measures"][MAIN_MEASURE],
                "accuracy": each["accuracy"],
                "base rate": each["base_rate"],
            },
        )


def _speed(entries: Sequence[Mapping[str, Any]]) -> Table:
    best = max(each["pairs_per_second"] for each in entries)
    rows = [
        [
            str(each["batch_size"]),
            f"{each['pairs_per_second']:.1f}",
            f"{min(each['rounds']):.1f} - {max(each['rounds']):.1f}",
            f"{each['pairs_per_second'] / best:.0%}",
            *(f"{each['call_ms'][name]:.1f}" for name in ("p50", "p90", "p95", "p99")),
            f"{each['host_mib']:,.0f}",
            "-" if each["device_mib"] is None else f"{each['device_mib']:,.0f}",
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


def _quality(result: Result, entries: Sequence[Mapping[str, Any]]) -> Table:
    reference = np.asarray(result["rows"][0]["margins"])
    names = [MAIN_MEASURE, "MRR@10"]
    rows = []
    for row, each in zip(result["rows"], entries, strict=True):
        difference = np.abs(_sigmoid(np.asarray(row["margins"])) - _sigmoid(reference)).max()
        rows.append(
            [
                str(each["batch_size"]),
                *(f"{each['measures'][name]:.4f}" for name in names),
                f"{each['accuracy']:.1%}",
                f"{each['base_rate']:.1%}",
                f"{each['balanced_accuracy']:.1%}",
                f"{difference:.1e}",
            ]
        )
    relevant = entries[0]["relevant"]
    note = (
        f"Accuracy: share of pairs where 'P(yes) >= 0.5' agrees with the judgement. {relevant:.1%} of the pairs are "
        f"relevant, so always giving the more common answer is right in {entries[0]['base_rate']:.1%} (base rate). "
        "Balanced: mean over relevant and other pairs, chance is 50%. The batch size is no reason for another score: "
        "the last column is the largest difference of P(yes) to the first row."
    )
    header = ["batch size", *names, "accuracy", "base rate", "balanced", "max |ΔP(yes)|"]
    return Table("Quality", header, rows, note)


def _sigmoid(margins: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * margins)))
