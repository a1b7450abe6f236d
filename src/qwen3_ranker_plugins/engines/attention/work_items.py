"""How a pass is divided among the thread blocks of an attention kernel of our own, such as `triton_nvidia`.

A work item has a few neighbouring tokens of one request, for all query heads that share a kv head. Its keys are two
ranges: the prefix that the tokens see, and the tokens from where the first of their segments begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .layout import PackedPass

#: Columns of a list of work items, see `list_work_items`.
FIELDS = 5

# Rows of a work item's matrix of queries: tokens times query heads of a kv head.
_ROWS = 64


def tokens_per_item(heads: int, kv_heads: int) -> int:
    """Largest number of tokens of a work item."""
    return _ROWS // (heads // kv_heads)


def most_items(length: int, tokens: int) -> int:
    """Number of work items that a row of `length` tokens has room for, at `tokens` tokens an item.

    Besides those that its tokens fill, a request needs at most two, so this is enough as long as the row has at most
    `length / tokens` requests.
    """
    return 3 * -(-length // tokens)


def list_work_items(packed: PackedPass, tokens: int) -> NDArray[np.int32]:
    """The work items of a pass.

    Args:
        packed: the pass.
        tokens: largest number of tokens of an item, see `tokens_per_item`.

    Returns:
        int32 [items, FIELDS]: first token; end of the tokens; start and end of the prefix that they see, which are
        equal for the tokens of a prefix; start of the segment of the first token.
    """
    prefixes = [(block.prefix_start, block.prefix_end, block.prefix_end, block.prefix_end) for block in packed.blocks]
    documents = [(block.prefix_end, block.end, block.prefix_start, block.prefix_end) for block in packed.blocks]
    regions = np.asarray([*prefixes, *documents], dtype=np.int64)
    items = -(-(regions[:, 1] - regions[:, 0]) // tokens)  # of each region
    of_region = np.repeat(regions, items, axis=0)
    number = np.arange(len(of_region)) - np.repeat(np.cumsum(items) - items, items)  # within the region
    first = of_region[:, 0] + number * tokens
    end = np.minimum(first + tokens, of_region[:, 1])
    return np.stack([first, end, of_region[:, 2], of_region[:, 3], packed.segment_start[first]], axis=1).astype(
        np.int32
    )
