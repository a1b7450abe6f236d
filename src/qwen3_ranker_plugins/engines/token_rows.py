"""One request of vLLM holds a query and many documents, as one row of token ids.

    [last id of the prefix][last id of a document] prefix* document* document* ...

A star says that the last id is replaced by the marker, a control token that no text can produce. So the model finds
where each part ends and puts the last ids back; nothing is computed that a packed pass would not compute, but for the
two tokens in front. Documents of one query end with the same suffix; where they do not, because a template has none,
those with the same last id share a row. If the prefix has no tokens, the marker stands in front of the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, UnsupportedModelError
from ..prompt import EncodedRequest, ModelTokenizer, length_order
from .attention.layout import PackedPass, Row

#: Token ids in front of each row.
PREAMBLE = 2
#: Qwen3's `<|endoftext|>`: a control token that no template of a reranker uses.
MARKER_TOKEN = "<|endoftext|>"  # noqa: S105 - no password


@dataclass(frozen=True)
class TokenRow:
    """What vLLM gets as one prompt.

    Attributes:
        token_ids: as described above.
        documents: the indices of the request's documents, in the order of the row.
    """

    token_ids: list[int]
    documents: list[int]


def marker_id(tokenizer: ModelTokenizer) -> int:
    """Id of the token that ends the parts of a row.

    Raises:
        UnsupportedModelError: the tokenizer has no such token.
    """
    if MARKER_TOKEN not in tokenizer.control:
        raise UnsupportedModelError(
            f"the tokenizer has no {MARKER_TOKEN}, by which many documents in one prompt of vLLM are told apart: use a "
            "Qwen3 tokenizer, or another engine"
        )
    return tokenizer.control[MARKER_TOKEN]


def write_rows(request: EncodedRequest, marker: int, room: int) -> Iterator[TokenRow]:
    """A request as rows of at most `room` token ids, but for a document that is longer and comes alone.

    Documents lie shortest first, so that those of equal length are neighbours.

    Raises:
        EngineError: the prompt itself has the marker.
    """
    if marker in request.prefix or any(marker in segment[:-1] for segment in request.segments):
        raise EngineError(f"the template uses {MARKER_TOKEN}, by which this engine tells documents apart: leave it out")
    by_last_id: dict[int, list[int]] = {}
    for index in length_order(request):
        by_last_id.setdefault(request.segments[index][-1], []).append(index)
    for last_id, indices in by_last_id.items():
        start = [request.prefix[-1], last_id, *request.prefix[:-1], marker] if request.prefix else [marker, last_id]
        row = TokenRow(start.copy(), [])
        for index in indices:
            segment = request.segments[index]
            if row.documents and len(row.token_ids) + len(segment) > room:
                yield row
                row = TokenRow(start.copy(), [])
            row.token_ids.extend(segment)
            row.token_ids[-1] = marker
            row.documents.append(index)
        yield row


def read_rows(token_ids: NDArray[np.int64], positions: NDArray[np.int64], marker: int) -> PackedPass:
    """The layout of a step of vLLM.

    Args:
        token_ids: int64 [tokens], the rows of all requests of the step behind one another.
        positions: int64 [tokens], vLLM's: each row counts from 0.
        marker: id of the marker.

    Returns:
        A pass over as many tokens, `last_positions` in the order of the rows. What is not a row, such as the zeros with
        which vLLM measures its memory, is laid out without a document.
    """
    row = Row()
    starts = np.flatnonzero(positions == 0)
    if not (token_ids == marker).any():  # vLLM's dummy steps also have positions that are all 0
        starts = starts[:1]
    for start, end in zip(starts, [*starts[1:], len(token_ids)], strict=True):
        _read_row(row, token_ids[start:end], marker)
    return row.packed()


def _read_row(row: Row, ids: NDArray[np.int64], marker: int) -> None:
    marks = np.flatnonzero(ids[PREAMBLE:] == marker) + PREAMBLE
    if len(marks) == 0:
        row.begin(ids.tolist())
        return
    restored = ids.copy()
    restored[marks] = ids[1]
    row.begin(restored[:PREAMBLE].tolist())
    begin = PREAMBLE
    if ids[0] != marker:
        prefix_end, marks = marks[0], marks[1:]
        restored[prefix_end] = ids[0]
        row.begin(restored[begin : prefix_end + 1].tolist())
        begin = prefix_end + 1
    else:
        row.begin([])
    values: list[int] = restored.tolist()
    for mark in marks.tolist():
        row.last_positions.append(row.add(values[begin : mark + 1]))
        begin = mark + 1
    if begin < len(values):  # not a row of ours
        row.begin(values[begin:])
