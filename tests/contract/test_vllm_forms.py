"""Forms of checkpoints that vLLM takes, against the packed engine, which tests/contract/test_forms.py proves."""

from __future__ import annotations

import json
import sys
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
    write_packed,
)
from tests.warm_python import WarmPython

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]


#: (form, engine, dtype, tolerance)
CASES = [
    ("classifier", "vllm_score", "float32", 1e-3),
    # added words, a merged adapter and the files of sentence-transformers in one folder
    ("fine-tune", "vllm_score", "float32", 1e-3),
    ("fine-tune", "vllm_generate", "float32", 1e-3),
    ("fine-tune", "vllm_packed", "float32", 1e-3),
    # vLLM's kernel for a CPU asks for bfloat16; transformers' layers in float32 are the reference
    ("int8 with int8 activations", "vllm_score", "bfloat16", 0.1),
    ("AWQ", "vllm_score", "bfloat16", 0.05),
    ("GPTQ", "vllm_score", "bfloat16", 0.05),
]


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Form -> folder."""
    target = tmp_path_factory.mktemp("forms")
    int8 = "int8 with int8 activations"
    return {
        "classifier": write_classifier(tiny, target / "classifier", noise=0.01),
        "fine-tune": write_fine_tune(tiny, target / "fine-tune"),
        int8: write_compressed(tiny, target / "int8", int8),
        "AWQ": write_packed(tiny, target / "awq", "awq", target / "awq_plain"),
        "GPTQ": write_packed(tiny, target / "gptq", "gptq", target / "gptq_plain"),
    }


@pytest.fixture(scope="module")
def found(folders: dict[str, Path], warm_python: WarmPython) -> dict[tuple[str, str], list[float]]:
    """(form, engine) -> margins. All engines run in one process."""
    arguments = [str(each) for form, engine, dtype, _ in CASES for each in (folders[form], engine, dtype)]
    script = Path(__file__).with_name("vllm_forms_script.py")
    done = warm_python.run([sys.executable, script, *arguments])
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {(form, engine): line for (form, engine, *_), line in zip(CASES, lines, strict=True)}


@pytest.mark.parametrize(("form", "engine", "dtype", "tolerance"), CASES)
def test_vllm_takes_it(
    form: str,
    engine: str,
    dtype: str,
    tolerance: float,
    found: dict[tuple[str, str], list[float]],
    folders: dict[str, Path],
) -> None:
    assert found[form, engine] == pytest.approx(margins(folders[form]), abs=tolerance)


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
