"""Qwen3 without transformers: the same margins, and only for checkpoints that are exactly in the plain form."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.engines.packed.qwen3 import load
from qwen3_ranker_plugins.models import resolve_model

QUERY = "how do I close a file in Python?"
DOCUMENTS = ["Use the with statement: it closes the file.", "Tigers sleep.", "", "生成器 " * 200, "many words " * 300]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(resolve_model("bundled:tiny"), folder)
    return folder


def change(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | settings
    file.write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}), encoding="utf-8")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_margins_are_those_of_the_layers_of_transformers(copy: Path, dtype: str) -> None:
    """A factor of 1 changes nothing in the arithmetic, and is a form that goes through transformers."""
    change(copy, rope_scaling={"rope_type": "linear", "factor": 1.0})
    margins = []
    for model, layers in ((str(copy), "transformers"), ("bundled:tiny", "plain")):
        with Reranker(model, dtype=dtype, device="cpu") as reranker:
            assert reranker.describe().details["layers"] == layers
            hits = sorted(reranker.rerank(QUERY, DOCUMENTS), key=lambda hit: hit.index)
            margins.append([hit.margin for hit in hits])
    assert margins[0] == pytest.approx(margins[1], abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"rope_theta": "absent"},
        {"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"hidden_act": "gelu"},
        {"quantization_config": {"quant_method": "fp8"}},
        {"use_sliding_window": True},
        {"layer_types": ["full_attention"] * 5 + ["sliding_attention"]},
        {"tie_word_embeddings": "absent"},
        {"tie_word_embeddings": False},
        {"num_hidden_layers": 5},
        {"num_hidden_layers": 7},
        {"vocab_size": 14463},
        {"attention_bias": True},
    ],
)
def test_other_forms_go_through_transformers(copy: Path, settings: dict[str, Any]) -> None:
    """It refuses them or knows their arithmetic; here nothing is guessed."""
    assert load(copy, torch.float32) is not None
    change(copy, **settings)
    assert load(copy, torch.float32) is None


def test_whole_number_weights_are_another_form(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert load(copy, torch.float32) is None


def test_an_output_matrix_of_its_own_is_used(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    change(copy, tie_word_embeddings=False)
    model = load(copy, torch.float32)
    assert model is not None
    assert torch.equal(model.get_output_embeddings().weight, weights["lm_head.weight"].float())


def test_a_file_that_is_written_to_later_changes_no_weight(copy: Path) -> None:
    model = load(copy, torch.bfloat16)
    assert model is not None
    before = model.model.norm.weight.clone()
    file = copy / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size // 2)
        opened.write(bytes(size - size // 2))
    assert torch.equal(model.model.norm.weight, before)
    assert all(weight.abs().sum() > 0 for weight in model.parameters())


def test_scoring_imports_neither_transformers_nor_the_compiler_of_torch() -> None:
    """They take longer to import than torch does, and the bundled model needs none of them."""
    code = (
        "import sys; from qwen3_ranker_plugins import Reranker\n"
        "with Reranker('bundled:tiny', device='cpu') as reranker: reranker.rerank('q', ['a', 'b'])\n"
        "loaded = {'transformers', 'torch._dynamo', 'sklearn', 'scipy', 'pandas', 'sympy'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
