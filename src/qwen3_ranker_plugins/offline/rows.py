"""A pair after its pass: a row with its score, or a row with the reason why it has none."""

from __future__ import annotations

from typing import NamedTuple


class ScoredRow(NamedTuple):
    """A pair with its margin.

    Attributes:
        position: position of the pair in the input, from 0.
        line: its line in the input; see `Pair`.
        margin: logit(yes) - logit(no).
        truncated: number of tokens cut off the end of the document.
        seconds: duration of the pass, divided by its pairs.
        query, document: the texts; "" unless the job keeps them.
        piece_start, piece_end: the piece with the highest margin, as offsets into the document's text; 0 unless the job
            judges documents in pieces.
    """

    position: int
    line: int | str
    query_id: str
    doc_id: str
    margin: float
    truncated: int
    seconds: float
    query: str = ""
    document: str = ""
    piece_start: int = 0
    piece_end: int = 0


class FailedRow(NamedTuple):
    """A pair without a score."""

    position: int
    line: int | str
    query_id: str
    doc_id: str
    reason: str


Row = ScoredRow | FailedRow
