"""What a job wrote, read again without loading it whole."""

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
from ..config import check_positive, check_probability
from ..errors import InvalidInputError
from ..ranking import likely_relevant, warn_of_min_confidence
from .writers import confidence, is_packed, relevance_score


@dataclass(frozen=True, slots=True)
class RerankedPair:
    """A pair with its judgement; the fields are those of the output.

    Attributes:
        relevance_score: P(yes) = sigmoid(margin), or what the job's calibration makes of the margin.
        margin: logit(yes) - logit(no).
        confidence: |P(yes) - P(no)|.
        rank: among the query's documents, from 1.
        truncated: tokens cut off the end of the document; None in a TREC run, which does not say.
        processing_time: seconds of the pass divided by its pairs; None if it was not written.
        query, document: None if they were not written.
        piece_start, piece_end: offsets of the piece that decided; None unless the job judges documents in pieces.
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
    """What a job did. Counts are of the whole job, times of the run that finished it.

    Reading, tokenization and writing overlap with the engine's work, so the times may add up to more than `seconds`.

    Attributes:
        model: its name, as it was given.
        model_hash: of its configuration, tokenizer and weights.
        engine, device, dtype: what scored; "cuda" for any GPU.
        pairs: in the input, unreadable lines included; scored + errors.
        resumed: pairs that earlier runs had scored.
        truncated: pairs whose document was cut.
        queries: with at least one score.
        tokens: that went through the model in this run.
        reading_seconds, tokenization_seconds, engine_seconds, writing_seconds: spent on each; of several engines
            the sum.
        scoring_seconds: from engines that are ready to the last pass.
        ordering_seconds: from the last pass to the finished output.
        mixed_queries: query ids that stand for more than one text; their documents are ranked in one list.
        grown_bytes: that were appended to the input while it was read, and are not in the output.
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

    def as_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True)
class RerankResults:
    """The output of a finished job.

    Attributes:
        path: of the output.
        format: "jsonl", "csv", "parquet" or "trec".
        errors_path: of the pairs without a score; empty if there are none.
        summary: what was done.
        calibration: of the job; a TREC run holds margins only, of which scores are made when it is read.
    """

    path: Path
    format: str
    errors_path: Path
    summary: Summary
    calibration: Calibration | None = None

    def __len__(self) -> int:
        return self.summary.scored

    def __iter__(self) -> Iterator[RerankedPair]:
        """All pairs in the order of the output, read as they are asked for."""
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
            query_id: one without scored pairs is refused.
            top_k: at most this many.
            min_confidence: only pairs with a confidence of at least this, in [0, 1]. A confident "no" passes: to drop
                what is irrelevant, use score_threshold. A warning is logged when a likely relevant pair is dropped.
            score_threshold: only pairs with a relevance score of at least this, in [0, 1].

        Raises:
            InvalidInputError: an argument is unusable.
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
                break  # the best come first
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
        """The pairs of a stream; with a heading, it begins after its own."""
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
    """A summary as `Checkpoint.summary` gives it, with what earlier versions did not keep."""
    return Summary(**{each.name: stored[each.name] for each in fields(Summary) if each.name in stored})
