"""What is the plugin's alone; its margins are in test_engines.py, with those of all engines."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from qwen3_ranker_plugins import DEFAULT_INSTRUCTION, EngineError, InvalidInputError, Reranker
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.engines.vllm.packed import register
from qwen3_ranker_plugins.engines.vllm.remedies import remedy
from qwen3_ranker_plugins.engines.vllm.worker_engine import VllmEngine
from qwen3_ranker_plugins.prompt import EncodedRequest, ModelTokenizer, PromptEncoder
from tests.forms import write_shallow

from .conftest import needs_vllm

pytestmark = needs_vllm

Reference = Callable[[EncodedRequest], NDArray[np.float32]]
QUERY = "how do I close a file in Python?"


def test_options_that_mean_nothing_to_it_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="engine 'vllm_packed' has no such option"):
        Reranker("bundled:tiny", engine="vllm_packed", engine_options={"block_size": 32})


def test_vllm_finds_the_plugin() -> None:
    [found] = [each for each in entry_points(group="vllm.general_plugins") if each.name == "qwen3_ranker"]
    assert found.load() is register


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: ModelTokenizer) -> PromptEncoder:
    return PromptEncoder(tiny_tokenizer)


def test_a_list_that_is_longer_than_a_row(
    vllm_packed: VllmEngine, encoder: PromptEncoder, one_at_a_time: Reference
) -> None:
    documents = [f"document {number} about files " * (number % 40 + 1) for number in range(120)]
    request = encoder.encode(QUERY, documents, DEFAULT_INSTRUCTION)
    assert request.num_tokens > 8194  # the most that a row holds here
    [margins] = vllm_packed.score([request])
    np.testing.assert_allclose(margins.values, one_at_a_time(request), rtol=0, atol=1e-4)
    assert margins.computed_tokens > request.num_tokens  # the prefix once in each row


def test_a_document_that_vllm_refuses_fails_alone(
    vllm_packed: VllmEngine, encoder: PromptEncoder, one_at_a_time: Reference
) -> None:
    good = encoder.encode("q", ["a text"], DEFAULT_INSTRUCTION)
    bad = EncodedRequest(good.prefix, [good.segments[0], [5] * 9000, good.segments[0]], [0, 0, 0])
    first, second = vllm_packed.score([bad, good])
    assert list(first.failures) == [1]
    assert "8194" in first.failures[1]
    expected = one_at_a_time(good)[0]
    np.testing.assert_allclose(first.values[[0, 2]], expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(second.values, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("template", ["<|im_start|>{query}\n{document}", "compact"])
def test_other_templates(
    vllm_packed: VllmEngine, tiny_tokenizer: ModelTokenizer, one_at_a_time: Reference, template: str
) -> None:
    """The first has no suffix, so that documents end in ids of their own."""
    request = PromptEncoder(tiny_tokenizer, template).encode(QUERY, ["one", "two", "the one"], "Find it")
    [margins] = vllm_packed.score([request])
    np.testing.assert_allclose(margins.values, one_at_a_time(request), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("warm_workers")
def test_two_processes_that_share_the_model(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor parallelism as on two GPUs: vLLM finds the plugin in each process, and each has half of the heads."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|0")
    documents = ["The with statement closes it.", "A list.", "close() closes it, and flushes it."] * 4
    options = {"engine_kwargs": {"tensor_parallel_size": 2}}
    with Reranker("bundled:tiny", engine="vllm_packed", engine_options=options) as parallel:
        assert parallel.describe().details["tensor_parallel_size"] == "2"
        found = [hit.margin for hit in parallel.rerank(QUERY, documents)]
    expected = [hit.margin for hit in reranker.rerank(QUERY, documents)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("vllm_packed")
def test_doctor_proves_that_it_works() -> None:
    done = CliRunner().invoke(app, ["doctor", "--engine", "vllm_packed", "--model", "bundled:tiny"])
    assert done.exit_code == 0, done.output
    assert "shared prefix" in done.stdout
    assert done.stdout.rstrip().endswith("usable")


@pytest.mark.usefixtures("warm_workers")
def test_compiled_by_vllm_with_an_output_matrix_of_its_own(tiny: Path, tmp_path: Path) -> None:
    """As on a GPU, where `enforce_eager` is off: torch.compile must not trace into our attention.

    Two layers, since the compiler takes seconds for each.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    folder = write_shallow(tiny, tmp_path / "model", layers=2)
    config = AutoConfig.from_pretrained(folder, tie_word_embeddings=False, dtype="float32")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    documents = ["one", "two", "three", "The with statement closes it.", "close() closes it, and flushes it."]
    options = {"enforce_eager": False}
    with Reranker(folder) as packed, Reranker(folder, engine="vllm_packed", engine_options=options) as compiled:
        for query in (QUERY, "another query, of another length"):
            expected, found = (each.score(query, documents) for each in (packed, compiled))
            assert np.ptp(expected) > 0
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_an_argument_that_vllm_lacks_and_a_release_that_is_too_old_say_so(vllm_release: dict[str, Any]) -> None:
    assert "unexpected keyword argument 'seeds'" in vllm_release["unknown_argument"]
    assert "engine_kwargs has an argument that this release" in remedy(vllm_release["unknown_argument"])
    assert "vLLM 0.12.0 is too old for the engine 'vllm_packed'" in vllm_release["older_release"]


def test_the_marker_in_a_template_is_an_error(vllm_packed: VllmEngine) -> None:
    with (
        Reranker("bundled:tiny", engine="vllm_packed", template="<|endoftext|>{query}{document}<|im_end|>") as reranker,
        pytest.raises(EngineError, match="leave it out"),
    ):
        reranker.rerank(QUERY, ["text"])
