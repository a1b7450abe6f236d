"""Reads the output of a job without loading all of it."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..calibration import Calibration, log_odds_line
from ..checks import check_positive, check_probability
from ..errors import InvalidInputError
from ..ranking import likely_relevant, warn_of_min_confidence
from .writers import confidence, is_packed, relevance_score


@dataclass(frozen=True, slots=True)
class RerankedPair:
    """A pair with its judgement; the fields are those of the output.

    Attributes:
        relevance_score: P(yes) = sigmoid(margin), or the score that the job's calibration gives for the margin.
        margin: logit(yes) - logit(no).
        confidence: |P(yes) - P(no)|.
        rank: rank among the query's documents, from 1.
        truncated: number of tokens cut off the end of the document; None in a TREC run, which does not contain it.
        processing_time: seconds of the pass divided by its pairs; None if it was not written.
        query, document: the texts; None if they were not written.
        piece_start, piece_end: offsets of the piece with the highest score; None unless the job judges documents in
            pieces.
    """

    query_id: str
    doc_id: str
    relevance_score: float
    margin: float
    confidence: float
    rank: int
    truncated: int | None = None
    processing_time: float | None = None
    query: str | None = None
    document: str | None = None
    piece_start: int | None = None
    piece_end: int | None = None


@dataclass(frozen=True)
class Summary:
    """What a job did. Counts cover the whole job; times and `tokens` cover the run that finished it.

    Reading, tokenization and writing overlap with the engine's work, so the times may add up to more than `seconds`.

    Attributes:
        model: name of the model, as it was given.
        model_hash: hash of its configuration, tokenizer and weights.
        engine, device, dtype: what computed the scores; the device is "cuda" for any GPU.
        pairs: number of pairs in the input, unreadable lines included: scored + errors.
        scored, errors: number of pairs with and without a score.
        truncated: number of pairs whose document was cut.
        queries: number of queries with at least one score.
        resumed: number of pairs that earlier runs had scored.
        tokens: number of tokens that went through the model in this run.
        seconds: duration of the run.
        scoring_seconds: time from when the engines were ready to the end of the last pass.
        reading_seconds, tokenization_seconds, engine_seconds, writing_seconds: time spent on each; with several
            engines, the sum over them.
        ordering_seconds: time from the end of the last pass to the finished output.
        mixed_queries: number of query ids that have more than one text; the documents of such an id are ranked in one
            list.
        grown_bytes: number of bytes that were appended to the input while it was read, and are not in the output.
        cache_hits, cache_misses: number of pairs that this run took from the cache, and that it scored although it has
            a cache; both 0 without one.
    """

    model: str
    model_hash: str
    engine: str
    device: str
    dtype: str
    pairs: int
    scored: int
    errors: int
    truncated: int
    queries: int
    resumed: int
    tokens: int
    seconds: float
    scoring_seconds: float
    reading_seconds: float
    tokenization_seconds: float
    engine_seconds: float
    writing_seconds: float
    ordering_seconds: float
    mixed_queries: int = 0
    grown_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0

    def as_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True)
class RerankResults:
    """The output of a finished job.

    Attributes:
        path: the output file.
        format: "jsonl", "csv", "parquet" or "trec".
        errors_path: the file for the pairs without a score; it does not exist if there are none.
        summary: what the job did.
        calibration: the job's calibration. It is needed to read a TREC run, which contains margins but no scores.
    """

    path: Path
    format: str
    errors_path: Path
    summary: Summary
    calibration: Calibration | None = None

    def __len__(self) -> int:
        return self.summary.scored

    def __iter__(self) -> Iterator[RerankedPair]:
        """Yield all pairs in the order of the output, reading them lazily."""
        if self.format == "parquet":
            import pyarrow.parquet as pq

            for batch in pq.ParquetFile(self.path).iter_batches(1024):
                for row in batch.to_pylist():
                    yield RerankedPair(**row)
            return
        with self._open() as stream:
            yield from self._parse(stream)

    def _open(self) -> BinaryIO:
        return cast("BinaryIO", gzip.open(self.path, "rb")) if is_packed(self.path) else self.path.open("rb")

    def get_top_documents(
        self,
        query_id: str,
        top_k: int = 10,
        min_confidence: float | None = None,
        *,
        score_threshold: float | None = None,
    ) -> list[RerankedPair]:
        """The best documents of a query, in order.

        Args:
            query_id: the id of a query with at least one scored pair.
            top_k: maximum number of documents.
            min_confidence: only pairs with a confidence of at least this, in [0, 1]. A confident "no" passes, too: to
                drop irrelevant documents, use score_threshold. A warning is logged when a likely relevant pair is
                dropped.
            score_threshold: only pairs with a relevance score of at least this, in [0, 1].

        Raises:
            InvalidInputError: an argument is unusable, or the output has no such query.
        """
        check_positive("top_k", top_k)
        check_probability("min_confidence", min_confidence)
        check_probability("score_threshold", score_threshold)
        found = iter(self._of_query(query_id))
        first = next(found, None)
        if first is None:
            raise InvalidInputError("query_id", query_id, f"{self.path} has no such query")
        top: list[RerankedPair] = []
        for pair in chain((first,), found):
            if score_threshold is not None and pair.relevance_score < score_threshold:
                break  # pairs are ordered by score
            if min_confidence is None or pair.confidence >= min_confidence:
                top.append(pair)
                if len(top) == top_k:
                    break
            elif pair.relevance_score >= likely_relevant(score_threshold):
                warn_of_min_confidence(min_confidence, score_threshold)
        return top

    def _of_query(self, query_id: str) -> Iterator[RerankedPair]:
        if self.format == "parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(self.path, filters=[("query_id", "=", query_id)])
            yield from (RerankedPair(**row) for row in table.to_pylist())
            return
        index = self.path.with_name(f"{self.path.name}.job") / "queries.jsonl"
        with index.open(encoding="utf-8") as places, self._open() as output:
            prefix = f"[{json.dumps(query_id)},"
            for place in places:
                if place.startswith(prefix):
                    _, offset, rows = json.loads(place)
                    heading = next(csv.reader([output.readline().decode()])) if self.format == "csv" else None
                    output.seek(offset)
                    yield from islice(self._parse(output, heading), rows)

    def _parse(self, stream: BinaryIO, heading: list[str] | None = None) -> Iterator[RerankedPair]:
        """Yield the pairs of a stream. With `heading`, the stream begins after the heading line of a CSV file."""
        lines = (line.decode() for line in stream)
        if self.format == "jsonl":
            for line in lines:
                yield RerankedPair(**json.loads(line))
        elif self.format == "csv":
            yield from map(_pair_of_csv, csv.DictReader(lines, heading))
        else:
            yield from _pairs_of_trec(lines, self.calibration)


def _pairs_of_trec(lines: Iterable[str], calibration: Calibration | None) -> Iterator[RerankedPair]:
    slope, intercept = log_odds_line(calibration)
    for line in lines:
        query_id, _, doc_id, rank, score, _ = line.split()
        margin = float(score)
        odds = slope * margin + intercept
        yield RerankedPair(query_id, doc_id, relevance_score(odds), margin, confidence(odds), int(rank))


def _pair_of_csv(row: Mapping[str, Any]) -> RerankedPair:
    kinds = {"relevance_score": float, "margin": float, "confidence": float, "rank": int, "truncated": int,
             "piece_start": int, "piece_end": int,
             "processing_time": float}  # fmt: skip
    return RerankedPair(**{name: kinds.get(name, str)(value) for name, value in row.items()})


def summary_from(stored: dict[str, Any]) -> Summary:
    """Make a `Summary` from `Checkpoint.summary`; fields that earlier versions did not store get their defaults."""
    return Summary(**{each.name: stored[each.name] for each in fields(Summary) if each.name in stored})
