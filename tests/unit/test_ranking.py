"""The order of a ranking, in the two forms that calls and offline jobs use."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen3_ranker_plugins.ranking import best_first, rank_key

MARGINS = st.lists(st.sampled_from([-2.5, -0.0, 0.0, 1.0, 1.0000001, 30.0]) | st.floats(-50, 50, width=32))


@given(MARGINS)
def test_an_array_and_a_sort_by_key_have_the_same_order(margins: list[float]) -> None:
    by_key = sorted(range(len(margins)), key=lambda position: rank_key(margins[position], position))
    assert best_first(np.asarray(margins)).tolist() == by_key


def test_equal_margins_keep_their_input_order() -> None:
    assert best_first(np.asarray([1.0, 2.0, 1.0, 2.0], dtype=np.float32)).tolist() == [1, 3, 0, 2]
