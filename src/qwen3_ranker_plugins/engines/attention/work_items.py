"""Which tokens each program of the attention kernel has, and which keys: what a pass tells `kernels.attend`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .layout import PackedPass

#: Rows of a program: tokens times query heads of a kv head.
ROWS = 64
#: Numbers that say what a program does, see `plan`.
FIELDS = 5


def tokens_of_a_program(heads: int, kv_heads: int) -> int:
    """Tokens whose query heads are the rows of one program."""
    return ROWS // (heads // kv_heads)


def room_for(length: int, tokens: int) -> int:
    """Programs that a row of `length` tokens may need.

    A request needs up to two more than its tokens fill, so this is enough for a request in `tokens` of the row.
    """
    return 3 * -(-length // tokens)


def plan(packed: PackedPass, tokens: int) -> NDArray[np.int32]:
    """What each program does, int32 [programs, FIELDS].

    Returns:
        First token, end of its tokens, start and end of the prefix that they see, first token after the prefix that any
        of them sees. The tokens of a prefix see no prefix.
    """
    prefixes = [(block.prefix_start, block.prefix_end, block.prefix_end, block.prefix_end) for block in packed.blocks]
    documents = [(block.prefix_end, block.end, block.prefix_start, block.prefix_end) for block in packed.blocks]
    regions = np.asarray([*prefixes, *documents], dtype=np.int64)
    programs = -(-(regions[:, 1] - regions[:, 0]) // tokens)
    of_region = np.repeat(regions, programs, axis=0)
    number = np.arange(len(of_region)) - np.repeat(np.cumsum(programs) - programs, programs)
    first = of_region[:, 0] + number * tokens
    end = np.minimum(first + tokens, of_region[:, 1])
    return np.stack([first, end, of_region[:, 2], of_region[:, 3], packed.segment_start[first]], axis=1).astype(
        np.int32
    )
