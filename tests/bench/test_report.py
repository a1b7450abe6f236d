"""How reports call a model."""

from __future__ import annotations

import pytest

from qwen3_ranker_plugins.bench.report import model_name, random_weights


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-Reranker-0.6B", "Qwen/Qwen3-Reranker-0.6B"),
        ("bundled:tiny", "bundled:tiny"),
        ("/models/qwen3-random-0.6B", "qwen3-random-0.6B"),
        ("./checkpoints/mine", "mine"),
        ("models/rerankers/mine", "mine"),
        ("~/mine", "mine"),
    ],
)
def test_a_folder_is_called_by_its_own_name(model: str, name: str) -> None:
    assert model_name(model) == name


def test_random_weights_are_recognised_by_the_name() -> None:
    assert random_weights("/models/qwen3-random-0.6B")
    assert not random_weights("/random/Qwen3-Reranker-0.6B")
    assert not random_weights("someone/randomness")
