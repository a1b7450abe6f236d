"""How a pass is divided among the thread blocks of an attention kernel of our own, such as `triton_nvidia`.

A work item is a few neighbouring tokens of one request, for all query heads that share a kv head. Its keys are two
ranges: the prefix that the tokens see, and all tokens from the start of the first token's segment to the last token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .varlen import is_long

if TYPE_CHECKING:
    from .layout import Block, PackedPass

#: Columns of a list of work items, see `list_work_items`.
FIELDS = 5

#: Rows of a work item's matrix of queries: tokens times query heads of a kv head.
ROWS = 64


def tokens_per_item(heads: int, kv_heads: int, rows: int = ROWS) -> int:
    """Largest number of tokens of a work item whose matrix of queries has at most `rows` rows."""
    return rows // (heads // kv_heads)


def most_items(length: int, tokens: int) -> int:
    """Upper bound of the number of work items of a row of `length` tokens, with `tokens` tokens an item.

    Besides the items that its tokens fill, each request needs at most two, so the bound holds if the row has at most
    `length / tokens` requests.
    """
    return 3 * -(-length // tokens)


def list_work_items(packed: PackedPass, tokens: int, shortest_long: int | None = None) -> NDArray[np.int32]:
    """The work items of a pass.

    Args:
        packed: the pass.
        tokens: largest number of tokens of an item, see `tokens_per_item`.
        shortest_long: leave out the documents that are long, see `varlen.is_long`; None lists all.

    Returns:
        int32 [items, FIELDS]: first token; end of the tokens; start and end of the prefix that they see, which are
        equal for the tokens of a prefix; start of the segment of the first token.
    """
    prefixes = [(block.prefix_start, block.prefix_end, block.prefix_end, block.prefix_end) for block in packed.blocks]
    documents = [
        (start, end, block.prefix_start, block.prefix_end)
        for block in packed.blocks
        for start, end in _listed_ranges(block, shortest_long)
    ]
    regions = np.asarray([*prefixes, *documents], dtype=np.int64)
    items = -(-(regions[:, 1] - regions[:, 0]) // tokens)  # of each region
    of_region = np.repeat(regions, items, axis=0)
    number = np.arange(len(of_region)) - np.repeat(np.cumsum(items) - items, items)  # within the region
    first = of_region[:, 0] + number * tokens
    end = np.minimum(first + tokens, of_region[:, 1])
    return np.stack([first, end, of_region[:, 2], of_region[:, 3], packed.segment_start[first]], axis=1).astype(
        np.int32
    )


def _listed_ranges(block: Block, shortest_long: int | None) -> Iterator[tuple[int, int]]:
    """The ranges of neighbouring documents that are not long."""
    start = block.prefix_end
    for group in block.groups:
        if shortest_long is not None and is_long(block, group, shortest_long):
            if start < group.start:
                yield start, group.start
            start = group.end
    if start < block.end:
        yield start, block.end
