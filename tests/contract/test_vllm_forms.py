"""Forms of checkpoints that vLLM takes, against the packed engine, which tests/contract/test_forms.py proves."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from qwen3_ranker_plugins import Reranker, UnsupportedModelError
from tests.contract.test_forms import margins
from tests.forms import (
    change_weights,
    copy_of,
    write_classifier,
    write_compressed,
    write_fine_tune,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]


def write(form: str, tiny: Path, target: Path) -> Path:
    if form == "classifier":
        return write_classifier(tiny, target, noise=0.01)
    if form == "fine-tune":
        return write_fine_tune(tiny, target)
    return write_compressed(tiny, target, form)


@pytest.mark.parametrize(
    ("form", "engine"),
    [
        ("classifier", "vllm_score"),
        # added words, a merged adapter and the files of sentence-transformers in one folder: one start for all
        ("fine-tune", "vllm_score"),
        ("fine-tune", "vllm_generate"),
        ("fine-tune", "vllm_packed"),
    ],
)
def test_vllm_takes_it(form: str, engine: str, tiny: Path, tmp_path: Path) -> None:
    folder = write(form, tiny, tmp_path / "model")
    assert margins(folder, engine=engine) == pytest.approx(margins(folder), abs=1e-3)


def test_vllm_score_computes_with_int8_weights_and_activations(tiny: Path, tmp_path: Path) -> None:
    """In bfloat16, which its CPU kernel asks for; transformers' layers in float32 are the reference."""
    folder = write("int8 with int8 activations", tiny, tmp_path / "model")
    assert margins(folder, engine="vllm_score", dtype="bfloat16") == pytest.approx(margins(folder), abs=0.1)


def test_a_bias_that_vllm_would_leave_out_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = write_classifier(tiny, tmp_path / "model")
    change_weights(folder, score__bias=torch.tensor([0.75]))
    with pytest.raises(UnsupportedModelError, match=r"bias.*engine='packed'"):
        Reranker(folder, engine="vllm_score", device="cpu")


@pytest.mark.parametrize("engine", ["vllm_generate", "vllm_packed"])
def test_other_engines_on_vllm_refuse_a_classifier(engine: str, tiny: Path, tmp_path: Path) -> None:
    folder = write_classifier(tiny, tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=r"Qwen3ForSequenceClassification.*engine='packed'"):
        Reranker(folder, engine=engine, device="cpu")


def test_an_output_matrix_that_vllm_would_leave_out_is_refused(tiny: Path, tmp_path: Path) -> None:
    """transformers reads lm_head.weight although the configuration ties it to the embeddings; vLLM does not."""
    folder = copy_of(tiny, tmp_path / "model")
    change_weights(folder, lm_head__weight=torch.randn(14464, 256) / 10)
    with pytest.raises(UnsupportedModelError, match=r"lm_head.weight that differs.*engine='packed'"):
        Reranker(folder, engine="vllm_score", device="cpu")
