"""GPUs older than Ampere: the kernels are compiled for them here, tried by the engine at its start, and given up."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3_ranker_plugins import DEFAULT_INSTRUCTION, EngineError, Reranker
from qwen3_ranker_plugins.engines.attention.layout import pack
from qwen3_ranker_plugins.engines.attention.sdpa import SdpaLayout
from qwen3_ranker_plugins.engines.packed import engine as packed_engine
from qwen3_ranker_plugins.engines.packed.engine import PackedEngine
from qwen3_ranker_plugins.engines.packed.trial import needs_trial, trial_pass
from qwen3_ranker_plugins.prompt import EncodedRequest, ModelTokenizer, PromptEncoder
from tests.forms import change_weights, copy_of

TOOL = Path(__file__).parents[2] / "tools" / "compile_kernels.py"
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which is in the group test")


@pytest.fixture
def request_(tiny_tokenizer: ModelTokenizer) -> EncodedRequest:
    documents = ["Magma rises through the crust.", "Knitting needles come in sizes.", ""]
    return PromptEncoder(tiny_tokenizer).encode("how are volcanoes formed?", documents, DEFAULT_INSTRUCTION)


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux")
def test_every_kernel_fits_a_t4(tmp_path: Path) -> None:
    output = tmp_path / "kernels.json"
    command = [sys.executable, TOOL, "--capability", "75", "--shape", "Qwen3-Reranker-0.6B", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert {row["kernel"] for row in rows} == {"_attend", "_gated", "_gather_keys", "_rms_norm", "_rotate"}
    assert all(row["shared"] <= 64 * 1024 and row["stack"] == 0 and not row["error"] for row in rows)


@needs_triton
def test_a_decoder_that_cannot_run_gives_way_to_the_models_layers(
    tiny: Path,
    tiny_engine: PackedEngine,
    request_: EncodedRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On a machine that is told that it has a T4, Triton finds no driver, as on one whose driver is too old."""
    monkeypatch.setattr(packed_engine, "capability", lambda _device: (7, 5))
    monkeypatch.setattr("qwen3_ranker_plugins.engines.packed.options.can_compile", lambda: True)
    engine = PackedEngine(tiny, device="cpu", dtype="float16")
    [warning] = caplog.messages
    assert "our decoder cannot be used on this GPU" in warning
    assert "the model's own layers run instead" in warning
    facts = engine.describe().as_dict()
    assert facts["fallback"] in warning
    assert facts["layers"] == "plain"
    assert engine.capabilities.passes_in_flight == 1
    found, expected = engine.score([request_]), tiny_engine.score([request_])
    np.testing.assert_allclose(found[0].values, expected[0].values, atol=0.05)
    engine.close()


def test_what_was_never_run_is_tried() -> None:
    assert needs_trial((7, 5))
    assert not needs_trial((8, 0))
    assert not needs_trial(None)
    assert trial_pass().num_documents == 4


def test_copied_heads_attend_like_shared_ones(request_: EncodedRequest) -> None:
    """SDPA's kernels for other devices take as many kv heads as query heads."""
    long = EncodedRequest([1] * 20, [[2] * 600], [0])
    packed = pack([request_, long])
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, packed.num_tokens, 32, generator=generator) for heads in (4, 2, 2)
    )  # fmt: skip
    shared, copied = (SdpaLayout(packed, copy_heads=each).attend(query, key, value, 0.2) for each in (False, True))
    torch.testing.assert_close(shared, copied)


def test_an_overflow_in_float16_is_an_error_and_no_score(tiny: Path, tmp_path: Path) -> None:
    """float16 ends at 65,504. A score of a document whose numbers left that range would be made of nothing."""
    folder = copy_of(tiny, tmp_path / "model")
    from safetensors.torch import load_file

    name = "model.layers.3.mlp.down_proj.weight"
    change_weights(folder, **{name.replace(".", "__"): load_file(folder / "model.safetensors")[name] * 30_000})
    documents = ["Magma rises through the crust.", "Lava."]
    with Reranker(folder, device="cpu", dtype="float32") as reranker:
        assert np.isfinite(reranker.score("how are volcanoes formed?", documents)).all()
    with (
        Reranker(folder, device="cpu", dtype="float16") as reranker,
        pytest.raises(EngineError, match=r"margin is (nan|inf|-inf)"),
    ):
        reranker.score("how are volcanoes formed?", documents)
