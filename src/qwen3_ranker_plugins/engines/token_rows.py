"""A query and many documents as one row of token ids, which is one prompt for vLLM.

    [last id of the prefix][last id of a document] prefix* document* document* ...

A star means that the last id is replaced by the marker, a control token that no text can produce. The markers show the
model where the prefix and the documents end, and the two ids in front tell it what to restore there. So a row has two
tokens more than a packed pass. All documents of a row must end in the same id. They do if the template has a suffix;
otherwise only documents that end in the same id share a row. If the prefix is empty, the row begins with the marker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, UnsupportedModelError
from ..prompt import EncodedRequest, ModelTokenizer, length_order
from .attention.layout import PackedPass, PassBuilder

#: Number of token ids before the prefix.
PREAMBLE = 2
#: A control token of Qwen3 that no template of a reranker uses.
MARKER_TOKEN = "<|endoftext|>"  # noqa: S105 - no password


@dataclass(frozen=True)
class TokenRow:
    """One prompt for vLLM.

    Attributes:
        token_ids: see the module's docstring.
        documents: indices of the request's documents, in the order of the row.
    """

    token_ids: list[int]
    documents: list[int]


def marker_id(tokenizer: ModelTokenizer) -> int:
    """Id of the token that marks the ends of prefix and documents.

    Raises:
        UnsupportedModelError: the tokenizer has no such token.
    """
    if MARKER_TOKEN not in tokenizer.control:
        raise UnsupportedModelError(
            f"the tokenizer lacks {MARKER_TOKEN}, which separates the documents in one prompt of vLLM: use a Qwen3 "
            "tokenizer, or another engine"
        )
    return tokenizer.control[MARKER_TOKEN]


def write_rows(request: EncodedRequest, marker: int, room: int) -> Iterator[TokenRow]:
    """A request as rows of at most `room` token ids; a document that is too long for that gets a row of its own.

    Documents are sorted by length, so that those of equal length are neighbours.

    Raises:
        EngineError: the template contains the marker.
    """
    if marker in request.prefix or any(marker in segment[:-1] for segment in request.segments):
        raise EngineError(f"the template uses {MARKER_TOKEN}, which separates documents for this engine: leave it out")
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
        token_ids: int64 [tokens], the rows of the step, concatenated.
        positions: int64 [tokens], as vLLM counts them: from 0 in each row.
        marker: id of the marker.

    Returns:
        A pass of the same tokens, with `last_positions` in the order of the rows. Other prompts, such as the zeros with
        which vLLM measures its memory, have no documents.
    """
    builder = PassBuilder()
    starts = np.flatnonzero(positions == 0)
    if not (token_ids == marker).any():  # vLLM's dummy steps also have positions that are all 0
        starts = starts[:1]
    for start, end in zip(starts, [*starts[1:], len(token_ids)], strict=True):
        _read_row(builder, token_ids[start:end], marker)
    return builder.build()


def _read_row(builder: PassBuilder, ids: NDArray[np.int64], marker: int) -> None:
    marks = np.flatnonzero(ids[PREAMBLE:] == marker) + PREAMBLE
    if len(marks) == 0:
        builder.start_request(ids.tolist())
        return
    restored = ids.copy()
    restored[marks] = ids[1]
    builder.start_request(restored[:PREAMBLE].tolist())
    begin = PREAMBLE
    if ids[0] != marker:
        prefix_end, marks = marks[0], marks[1:]
        restored[prefix_end] = ids[0]
        builder.start_request(restored[begin : prefix_end + 1].tolist())
        begin = prefix_end + 1
    else:
        builder.start_request([])
    values: list[int] = restored.tolist()
    for mark in marks.tolist():
        builder.last_positions.append(builder.add_segment(values[begin : mark + 1]))
        begin = mark + 1
    if begin < len(values):  # `write_rows` did not make this prompt
        builder.start_request(values[begin:])
