"""The outcome of a pass of a job: margins, failures, and what the cache stores of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..cache import Entry, Segment
from ..prompt import EncodedRequest, Piece


@dataclass
class Outcome:
    """The outcome of a pass so far. Positions are those of pairs in the window.

    Attributes:
        margins: margin of each position, and the piece that has it.
        failures: the reason for each position without a score.
        segments: prefix length and segments of each text, named by the first position of its pairs; for the cache.
        tokens: number of tokens that went through the model.
        was_split: whether an engine's call failed, so that smaller ones followed.
    """

    margins: dict[int, tuple[float, Piece | None]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    segments: dict[int, tuple[int, list[Segment]]] = field(default_factory=dict)
    tokens: int = 0
    was_split: bool = False

    def add(self, same: Sequence[int], margin: float, piece: Piece | None) -> None:
        """Add the margin of a document, or of one of its pieces, for all pairs with this text."""
        for index in same:
            if index not in self.margins or _comes_before(margin, piece, *self.margins[index]):
                self.margins[index] = margin, piece

    def keep(self, same: Sequence[int], request: EncodedRequest, place: int, margin: float) -> None:
        """Keep the margin of a segment for the cache.

        Args:
            same: positions of the pairs with its document.
            request: request that holds the segment.
            place: position of the segment in it.
            margin: its margin.
        """
        segment = Segment(margin, request.lengths[place], request.truncated_tokens[place])
        if request.pieces is not None:
            segment = segment._replace(start=request.pieces[place].start, end=request.pieces[place].end)
        self.segments.setdefault(same[0], (request.prefix_length, []))[1].append(segment)

    def take_from_cache(self, indices: Sequence[Sequence[Sequence[int]]], entries: Mapping[int, Entry]) -> None:
        """Add the margins that the cache has of a whole pass.

        Args:
            indices: for each segment of each request, the positions of the pairs with its document.
            entries: entry of each text, named by the first of these positions.
        """
        for same in {places[0]: places for of_request in indices for places in of_request}.values():
            entry = entries[same[0]]
            for segment in entry.segments:
                piece = Piece(0, segment.start, segment.end) if entry.has_pieces else None
                self.add(same, segment.margin, piece)

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """First position and cache entry of each text that has a score."""
        for first, (prefix_length, segments) in self.segments.items():
            if first in self.margins:
                has_pieces = self.margins[first][1] is not None
                yield first, Entry(prefix_length, sorted(segments, key=lambda each: each.start), has_pieces)


def _comes_before(margin: float, piece: Piece | None, other_margin: float, other_piece: Piece | None) -> bool:
    """Whether the first piece takes precedence: it has the higher margin, or the same margin and comes first."""
    if piece is None or other_piece is None:
        return False
    return (margin, -piece.start) > (other_margin, -other_piece.start)
