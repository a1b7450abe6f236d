"""What every engine has to do: the margins of one-pair-at-a-time transformers, in the order asked for.

A new engine adds itself to `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
from qwen3_ranker_plugins.engines.base import Engine
from qwen3_ranker_plugins.engines.packed.engine import PackedEngine
from qwen3_ranker_plugins.prompt import EncodedRequest, ModelTokenizer, PromptEncoder

from .conftest import needs_vllm

Reference = Callable[[EncodedRequest], NDArray[np.float32]]

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]


@dataclass(frozen=True)
class Case:
    """An engine to make, and the largest margin difference allowed."""

    device: str
    dtype: str
    tolerance: float
    engine: str = "packed"

    def __str__(self) -> str:
        return f"{self.engine}-{self.device}-{self.dtype}"


#: bfloat16 has 8 bits: the bundled model's margins, from -5 to 5, were up to 0.051 from those in float32. A margin that
#: depends more on rounding may differ by this multiple of its difference in float16, which rounds an eighth as much.
_OF_FLOAT16 = 12
CASES = [
    Case("cpu", "float32", 1e-4),
    Case("cpu", "bfloat16", 0.08),
    Case("cpu", "float32", 1e-4, "remote"),
    pytest.param(Case("cuda", "float32", 1e-4), marks=needs_gpu),
    pytest.param(Case("cuda", "bfloat16", 0.08), marks=needs_gpu),
    pytest.param(Case("cuda", "float16", 0.05), marks=needs_gpu),
    pytest.param(Case("cpu", "float32", 1e-3, "vllm_score"), marks=needs_vllm),
    pytest.param(Case("cpu", "float32", 1e-3, "vllm_generate"), marks=needs_vllm),
    pytest.param(Case("cpu", "float32", 1e-4, "vllm_packed"), marks=needs_vllm),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def engine(request: pytest.FixtureRequest, tiny: Path) -> Iterator[tuple[Engine, Reference]]:
    """The engine, and the largest difference allowed for each margin of a request."""
    case: Case = request.param
    reference: Reference = request.getfixturevalue("one_at_a_time")

    def allowed(asked: EncodedRequest) -> NDArray[np.float32]:
        most = np.full(len(asked.segments), case.tolerance, np.float32)
        if case.dtype != "bfloat16":
            return most
        in_float16: Reference = request.getfixturevalue("one_at_a_time_in_float16")
        return np.maximum(most, _OF_FLOAT16 * abs(in_float16(asked) - reference(asked)))

    if case.engine != "packed":
        yield request.getfixturevalue(case.engine), allowed  # started once for all tests, and closed there
        return
    made = PackedEngine(tiny, device=case.device, dtype=case.dtype)
    yield made, allowed
    made.close()


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: ModelTokenizer) -> PromptEncoder:
    return PromptEncoder(tiny_tokenizer)


WORDS = (
    "the with statement closes a file when block ends exception raised list dict async await lambda "
    "神经网络 短袖 numbers 3.14 <|im_end|> class instance attribute 'quoted' \n"
).split(" ")


def texts(rng: np.random.Generator, lengths: list[int]) -> list[str]:
    return [" ".join(rng.choice(WORDS, size=length)) for length in lengths]


def check(engine: tuple[Engine, Reference], requests: list[EncodedRequest], reference: Reference) -> None:
    made, allowed = engine
    results = made.score(requests)
    assert len(results) == len(requests)
    for request, margins in zip(requests, results, strict=True):
        assert margins.values.dtype == np.float32
        assert not margins.failures
        expected = reference(request)
        differences = abs(margins.values - expected)
        assert (differences <= allowed(request)).all(), (differences, margins.values, expected)


def test_mixed_lengths_and_duplicates(
    engine: tuple[Engine, Reference], encoder: PromptEncoder, one_at_a_time: Reference
) -> None:
    rng = np.random.default_rng(1)
    documents = texts(rng, [0, 1, 1, 2, 5, 5, 5, 30, 30, 100, 7, 1])
    check(
        engine,
        [encoder.encode("how do I close a file?", documents + documents[:3], DEFAULT_INSTRUCTION)],
        one_at_a_time,
    )


def test_several_requests_in_one_pass(
    engine: tuple[Engine, Reference], encoder: PromptEncoder, one_at_a_time: Reference
) -> None:
    rng = np.random.default_rng(2)
    requests = [
        encoder.encode(query, texts(rng, rng.integers(1, 60, size=count).tolist()), instruction)
        for query, count, instruction in [
            ("what is a class?", 1, DEFAULT_INSTRUCTION),
            ("列表", 12, "Find the passage"),
            ("a much longer query " * 20, 5, DEFAULT_INSTRUCTION),
            ("what is a class?", 7, DEFAULT_INSTRUCTION),
        ]
    ]
    check(engine, requests, one_at_a_time)


def test_one_token(engine: tuple[Engine, Reference], encoder: PromptEncoder, one_at_a_time: Reference) -> None:
    check(engine, [encoder.encode("q", ["a"], DEFAULT_INSTRUCTION)], one_at_a_time)


def test_hundreds_of_documents(
    engine: tuple[Engine, Reference], encoder: PromptEncoder, one_at_a_time: Reference
) -> None:
    """More than one step of vLLM takes, and more than one request to a service carries: both take 256."""
    rng = np.random.default_rng(8)
    documents = texts(rng, rng.integers(1, 25, size=300).tolist())
    check(engine, [encoder.encode("短袖", documents, DEFAULT_INSTRUCTION)], one_at_a_time)


def test_the_longest_document(
    engine: tuple[Engine, Reference], tiny_tokenizer: ModelTokenizer, one_at_a_time: Reference
) -> None:
    """8192 tokens, beside a short one: documents too long for a mask take another way through the attention."""
    rng = np.random.default_rng(4)
    encoder = PromptEncoder(tiny_tokenizer, max_length=8192)
    request = encoder.encode("q", texts(rng, [9000, 3, 600, 600]), DEFAULT_INSTRUCTION)
    assert len(request.prompt(0)) == 8192
    assert request.truncated_tokens[0] > 0
    check(engine, [request], one_at_a_time)


def test_a_document_sees_neither_its_neighbours_nor_another_prefix(
    engine: tuple[Engine, Reference], encoder: PromptEncoder
) -> None:
    made, allowed = engine
    rng = np.random.default_rng(5)
    document = texts(rng, [40])
    alone = made.score([encoder.encode("a query", document, DEFAULT_INSTRUCTION)])[0].values
    for other in range(3):
        crowd = texts(np.random.default_rng(other), [40, 40, 3, 90, 40])
        request = encoder.encode("a query", crowd + document, DEFAULT_INSTRUCTION)
        crowded = made.score([encoder.encode("another query", crowd, "another instruction"), request])[1].values
        assert abs(crowded[-1] - alone[0]) <= allowed(request)[-1]


def test_pairs_that_are_further_apart_than_the_tolerance_keep_their_order(
    engine: tuple[Engine, Reference], encoder: PromptEncoder, one_at_a_time: Reference
) -> None:
    made, _ = engine
    documents = texts(np.random.default_rng(6), [20] * 60)
    request = encoder.encode("how do I close a file?", documents, DEFAULT_INSTRUCTION)
    expected, values = one_at_a_time(request), made.score([request])[0].values
    apart = expected[:, None] - expected[None, :] > 0.05
    assert apart.sum() > 1000
    assert (values[:, None] > values[None, :])[apart].all()


def test_computed_tokens_count_what_is_shared_once(engine: tuple[Engine, Reference], encoder: PromptEncoder) -> None:
    made, _ = engine
    documents = ["one", "two words", "three more words"]
    request = encoder.encode(f"never asked before of {made.name}", documents, DEFAULT_INSTRUCTION)
    everything = len(request.prefix) + sum(len(segment) for segment in request.segments)
    computed = made.score([request])[0].computed_tokens
    if made.name == "packed":
        assert computed == everything
    elif made.name == "vllm_packed":  # and two tokens in front of the row
        assert computed == everything + 2
    elif made.name == "remote":  # as the service counts, which scores pairs
        assert computed == everything + 2 * len(request.prefix)
    else:  # vLLM shares whole blocks of 32 tokens, and this prefix has two of them
        assert everything - 64 <= computed <= everything + 2 * (len(request.prefix) % 32)
