"""Weights that change under the same path: no engine and no score of the old ones may be used for the new ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from qwen3_ranker_plugins import EngineError, Reranker
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.engines import create_engine
from qwen3_ranker_plugins.engines.packed.engine import resolve
from qwen3_ranker_plugins.models import model_hash

from ..forms import write_adapter

QUERY = "how do I close a file?"
DOCUMENTS = ["The with statement closes a file.", "Bread needs yeast."]
LONG_AGO = 10**18


def scale(file: Path, word: str, factor: float, time_ns: int) -> None:
    """Multiply some weights. The file gets an old time, as `cp -p`, rsync and tar give it."""
    weights = load_file(file)
    scaled = {name: tensor * factor if word in name else tensor for name, tensor in weights.items()}
    save_file(scaled, file, metadata={"format": "pt"})
    os.utime(file, ns=(time_ns, time_ns))


def margins(model: Path, **settings: Any) -> tuple[list[float], int]:
    with Reranker(model, **settings) as reranker:
        result = reranker.rerank(QUERY, DOCUMENTS)
        return [hit.margin for hit in sorted(result, key=lambda hit: hit.index)], result.usage.cached_documents


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the model, whose engine runs meanwhile."""
    copied = tmp_path / "model"
    shutil.copytree(tiny, copied)
    with Reranker(copied):
        yield copied


def test_weights_with_old_times_are_other_weights(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "scores.cache"
    before, _ = margins(model, cache_path=cache)
    scale(model / "model.safetensors", "down_proj", 1.5, LONG_AGO)
    after, cached = margins(model, cache_path=cache)
    assert cached == 0
    assert after != pytest.approx(before, abs=0.1)
    # Neither is an engine with the old weights left, nor a score of theirs under the name of the new ones.
    moved = model.rename(tmp_path / "moved")
    assert margins(moved)[0] == pytest.approx(after, abs=1e-4)
    moved.rename(model)
    assert margins(model, cache_path=cache) == (after, 2)


def test_an_adapter_that_is_edited_in_place(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(model, tmp_path / "adapter")
    file, cache = adapter / "adapter_model.safetensors", tmp_path / "scores.cache"
    first = file.read_bytes()
    with Reranker(model, adapter=adapter, cache_path=cache) as running:
        before = [hit.margin for hit in sorted(running.rerank(QUERY, DOCUMENTS), key=lambda hit: hit.index)]
        time_ns = file.stat().st_mtime_ns
        scale(file, "lora_B", 2.0, LONG_AGO)
        after, cached = margins(model, adapter=adapter, cache_path=cache)
        assert cached == 0
        assert after != pytest.approx(before, abs=0.01)
    file.write_bytes(first)
    os.utime(file, ns=(time_ns, time_ns))
    assert margins(model, adapter=adapter, cache_path=cache) == (before, 2)


def test_the_configuration_of_an_adapter_is_part_of_its_hash(model: Path, tmp_path: Path) -> None:
    """Even if its folder has a model's configuration, too; of a model, it is not."""
    (model / "adapter_config.json").write_text('{"lora_alpha": 16}')
    before = model_hash(model), model_hash(model, is_adapter=True)
    (model / "adapter_config.json").write_text('{"lora_alpha": 32}')
    assert model_hash(model) == before[0]
    assert model_hash(model, is_adapter=True) != before[1]


def test_an_engine_is_not_restarted_with_other_weights(model: Path) -> None:
    config = resolve("packed", RerankerSettings(str(model), device="cpu", token_budget=512)).config
    create_engine(config).close()
    scale(model / "model.safetensors", "down_proj", 1.5, LONG_AGO)
    with pytest.raises(EngineError, match=r"files in .*model have changed.*make a new one"):
        create_engine(config)
