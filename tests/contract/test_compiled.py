"""The compiled path where there is no GPU: the same decoder, compiled for the CPU or traced with a backend that counts.

What only a GPU has (CUDA graphs, pinned memory, Triton) is in the tests at the end, which are skipped without one.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch._higher_order_ops.flex_attention import flex_attention as flex_attention_hop

from qwen3_ranker_plugins import DEFAULT_INSTRUCTION, EngineError, InvalidInputError, Reranker
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.engines.attention.layout import pack
from qwen3_ranker_plugins.engines.packed import decoder as decoder_module
from qwen3_ranker_plugins.engines.packed.buffers import TOKENS_PER_DOCUMENT, StaticRow, row_length, row_lengths
from qwen3_ranker_plugins.engines.packed.decoder import Decoder, take_weights
from qwen3_ranker_plugins.engines.packed.engine import PackedEngine, _load, resolve
from qwen3_ranker_plugins.engines.packed.options import PackedOptions
from qwen3_ranker_plugins.engines.packed.runner import CompiledPasses
from qwen3_ranker_plugins.prompt import EncodedRequest, ModelTokenizer, PromptEncoder

Reference = Callable[[EncodedRequest], NDArray[np.float32]]
CPU = torch.device("cpu")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile for a CPU needs g++")
# of the compiler's own code, which differ by release
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class CountingBackend:
    """Counts graphs and runs them as they were traced, attention with a matrix of all scores.

    Args:
        attends: False puts zeros in the place of attention, where only counting matters.
    """

    def __init__(self, *, attends: bool = True) -> None:
        self.compiled = 0
        self._attends = attends

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        self.compiled += 1
        if self._attends or not any(node.target is flex_attention_hop for node in graph.graph.nodes):
            return graph
        output = graph.graph.output_node().args[0][0].meta["example_value"]
        return lambda *_: [torch.zeros(tuple(output.shape))]


def requests(rng: np.random.Generator, encoder: PromptEncoder, counts: list[int], longest: int) -> list[EncodedRequest]:
    words = "the with statement closes a file when block ends exception raised 短袖 list <|im_end|>".split()
    return [
        encoder.encode(
            f"query {number} " * (1 + 20 * (number % 2)),
            [" ".join(rng.choice(words, size=size)) for size in rng.integers(0, longest, size=count)],
            DEFAULT_INSTRUCTION,
        )
        for number, count in enumerate(counts)
    ]


def passes(
    tiny: Path, engine: PackedEngine, backend: Any, budget: int, layers: int | None = None, **options: Any
) -> CompiledPasses:
    weights = take_weights(_load(tiny, torch.float32).model, engine._label_direction, CPU)
    weights = replace(weights, layers=weights.layers[:layers])
    return CompiledPasses(
        Decoder(weights, backend), CPU, PackedOptions(compile=True, **options).resolved("cpu", "float32"), budget
    )


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: ModelTokenizer) -> PromptEncoder:
    return PromptEncoder(tiny_tokenizer)


@quiet
@needs_compiler
def test_margins_of_the_compiled_path(tiny: Path, encoder: PromptEncoder, one_at_a_time: Reference) -> None:
    """Through the reranker, and so through its options and its dispatcher's thread."""
    rng = np.random.default_rng(7)
    options = {"compile": True, "warm_up": False, "size_classes": 1}
    with Reranker("bundled:tiny", device="cpu", engine_options=options) as reranker:
        engine = reranker._lease.engine
        assert isinstance(engine, PackedEngine)
        mixed = requests(rng, encoder, [3, 1, 8], longest=40)
        for request, margins in zip(mixed, engine.score(mixed), strict=True):
            np.testing.assert_allclose(margins.values, one_at_a_time(request), rtol=0, atol=1e-4)
        documents = [f"document number {n}" for n in range(40)]
        expected = one_at_a_time(encoder.encode("a", documents, DEFAULT_INSTRUCTION))
        hits = reranker.rerank("a", [*documents, documents[0]])
        for hit in hits:
            assert abs(hit.margin - expected[hit.index % 40]) < 1e-4
        assert engine._compiled is not None
        assert list(engine._compiled._rows) == [1024], "one size class, to compile once"
        assert '"size_classes": 1' in reranker.describe().details["options"]


def test_no_size_compiles_anything_after_the_warm_up(tiny: Path, tiny_engine: PackedEngine) -> None:
    backend = CountingBackend(attends=False)
    compiled = passes(tiny, tiny_engine, backend, budget=768, layers=2, size_classes=4)
    assert backend.compiled == 2  # the norm and the gate, for any number of rows
    compiled.warm_up()
    assert backend.compiled == 2 + len(compiled.lengths)  # the attention, for each size class
    for size in range(15, 765, 15):
        documents = [[7 + n % 50] * (5 + n % 3) for n in range(size // 10)]
        prefix = size - sum(map(len, documents))
        made = [EncodedRequest([5] * prefix, documents, [0] * len(documents))]
        if size > 250:  # two requests
            made = [
                replace(made[0], prefix=[5] * (prefix - 9), segments=documents[1:]),
                replace(made[0], prefix=[6] * 9, segments=documents[:1]),
            ]
        packed = pack(made)
        assert packed.num_tokens == size
        assert torch.isfinite(compiled.margins(packed)).all()
    assert backend.compiled == 2 + len(compiled.lengths)


def test_passes_that_several_threads_begin_have_their_own_margins(tiny: Path, tiny_engine: PackedEngine) -> None:
    """As the dispatcher's two workers do for a GPU; here, a pass is computed where it begins."""
    compiled = passes(tiny, tiny_engine, CountingBackend(), budget=256, size_classes=1)
    made = [EncodedRequest([5, 6 + n], [[7 + n] * (3 + n % 7)] * (1 + n % 5), [0] * (1 + n % 5)) for n in range(24)]
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda one: compiled.begin(pack([one])).wait(), made))
    for one, values in zip(made, several, strict=True):
        np.testing.assert_allclose(values, tiny_engine.score([one])[0].values, rtol=0, atol=1e-4)


def test_a_pass_above_the_budget_and_one_of_tiny_documents_are_right(tiny: Path, tiny_engine: PackedEngine) -> None:
    """Size classes that the warm-up does not know, and more documents than the row of a size class has room for."""
    compiled = passes(tiny, tiny_engine, CountingBackend(), budget=128)
    for request in (
        EncodedRequest([5] * 30, [[7] * 300], [0]),
        EncodedRequest([5, 6], [[7 + n % 9] * (1 + n % 2) for n in range(60)], [0] * 60),
    ):
        packed = pack([request])
        length = row_length(packed.num_tokens, packed.num_documents, 8)
        assert length > 300
        expected = tiny_engine.score([request])[0].values
        np.testing.assert_allclose(compiled.margins(packed).numpy(), expected, rtol=0, atol=1e-4)


def test_fused_weights_are_the_separate_ones_and_nothing_is_in_memory_twice(
    tiny: Path, tiny_engine: PackedEngine
) -> None:
    model = _load(tiny, torch.float32).model
    originals = [weakref.ref(weight) for name, weight in model.named_parameters() if "proj" in name]
    layer = model.layers[0]
    hidden = torch.randn(5, model.config.hidden_size)
    with torch.no_grad():
        attention = [
            project(hidden) for project in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        ]
        gate = layer.mlp.act_fn(layer.mlp.gate_proj(hidden)) * layer.mlp.up_proj(hidden)
        norm = layer.input_layernorm(hidden)
    del layer
    weights = take_weights(model, tiny_engine._label_direction, CPU)
    first = weights.layers[0]
    torch.testing.assert_close(hidden @ first.query_key_value.t(), torch.cat(attention, dim=1))
    torch.testing.assert_close(decoder_module.gated(hidden @ first.gate_up.t()), gate)
    torch.testing.assert_close(decoder_module.rms_norm(hidden, first.input_norm, weights.epsilon), norm)
    gc.collect()
    alive = [weight() for weight in originals if weight() is not None]
    # Those that need no fusing are the checkpoint's own on a CPU.
    assert {weight.data_ptr() for weight in alive} <= {
        matrix.data_ptr() for layer in weights.layers for matrix in (layer.output, layer.down)
    }


def test_size_classes() -> None:
    for per_octave, padding in ((1, 0.45), (4, 0.12), (8, 0.06)):
        lengths = row_lengths(32768, per_octave)
        assert lengths[-1] == 32768
        for tokens in range(1, 32769, 7):
            assert row_length(tokens, 1, per_octave) == next(length for length in lengths if length >= tokens)
        sizes = np.arange(1024, 32769)
        waste = np.mean([row_length(int(size), 1, per_octave) / size - 1 for size in sizes[::37]])
        assert waste < padding
    assert row_length(100, 100, 8) == 896  # one document in eight tokens


def test_a_row_refuses_what_does_not_fit() -> None:
    row = StaticRow(128, CPU)
    with pytest.raises(ValueError, match="129 tokens and 1 documents in a row for 128 and 16"):
        row.write(pack([EncodedRequest([1], [[1] * 128], [0])]))
    many = EncodedRequest([], [[1]] * (128 // TOKENS_PER_DOCUMENT + 1), [0] * 17)
    with pytest.raises(ValueError, match="17 documents"):
        row.write(pack([many]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"warp": 9},
            "engine_options['warp']=9: engine 'packed' has no such option: use one of compile, float8, warm_up",
        ),
        ({"compile": 1}, "engine_options['compile']=1: use true or false"),
        ({"compile": None}, "engine_options['compile']=None: leave it out"),
        ({"compile": True, "warm_up": "no"}, "engine_options['warm_up']='no': use true or false"),
        ({"compile": True, "size_classes": 3}, "engine_options['size_classes']=3: use one of 1, 2, 4, 8, 16, 32, 64"),
        ({"compile": True, "size_classes": True}, "use one of 1, 2, 4, 8, 16"),
        ({"compile": True, "float8": True}, "engine_options['float8']=True: needs dtype='bfloat16' and a GPU of"),
        ({"compile": True, "compile_cache": " "}, "engine_options['compile_cache']=' '"),
        ({"compile": True, "cuda_graphs": True}, "engine_options['cuda_graphs']=True: device 'cpu' has none"),
        ({"warm_up": True}, "engine_options['warm_up']=True: is for compiled pieces, which are the default in half"),
        ({"compile": False, "compile_cache": "somewhere"}, "says nothing without compile"),
    ],
)
def test_unusable_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        PackedOptions.parse("packed", options).resolved("cpu", "float32")
    assert message in str(caught.value)


def test_settings_that_mean_the_same_share_an_engine(tiny: Path) -> None:
    def configured(**options: object) -> object:
        return resolve("packed", RerankerSettings("bundled:tiny", device="cpu", engine_options=options)).config

    assert configured() == configured(compile=False)
    assert configured(compile=True) == configured(compile=True, warm_up=True, size_classes=8, cuda_graphs=False)
    assert configured(compile=True) != configured()
    assert configured(compile=True) != configured(compile=True, compile_cache="/somewhere")


def test_what_cannot_be_compiled_says_what_is_missing(tiny: Path, tiny_engine: PackedEngine) -> None:
    compiled = passes(tiny, tiny_engine, CountingBackend(attends=False), budget=128, layers=1)
    before = dict(os.environ)
    says = r"compiling failed \(CalledProcessError: .*gcc.*set engine_options\['compile'\]"
    with pytest.raises(EngineError, match=says), compiled._compiling():
        subprocess.run(["sh", "-c", "exit 1; gcc"], check=True)
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("dtype", "capability", "expected"),
    [
        ("bfloat16", (9, 0), (True, 64)),
        ("float16", (8, 0), (True, 64)),
        ("float16", (7, 5), (False, None)),
        ("float32", (9, 0), (False, None)),
    ],
)
def test_compiled_pieces_are_the_default_where_our_kernels_run(
    monkeypatch: pytest.MonkeyPatch, dtype: str, capability: tuple[int, int], expected: tuple[bool, int | None]
) -> None:
    monkeypatch.setattr("qwen3_ranker_plugins.engines.packed.options.can_compile", lambda: True)
    options = PackedOptions().resolved("cuda:0", dtype, capability)
    assert (options.compile, options.size_classes) == expected
    asked = PackedOptions(compile=True).resolved("cuda:0", dtype, capability)
    assert (asked.compile, asked.cuda_graphs, asked.size_classes) == (True, True, expected[1] or 8)
    monkeypatch.setattr("qwen3_ranker_plugins.engines.packed.options.can_compile", lambda: False)
    assert PackedOptions().resolved("cuda:0", dtype, capability) == PackedOptions(compile=False)


def test_float8_is_for_gpus_that_have_it() -> None:
    asked = PackedOptions(compile=True, float8=True)
    assert asked.resolved("cuda:0", "bfloat16", (8, 9)).float8
    for dtype, capability in (("float16", (9, 0)), ("bfloat16", (8, 6))):
        with pytest.raises(InvalidInputError, match=r"needs dtype='bfloat16' and a GPU of compute capability 8\.9"):
            asked.resolved("cuda:0", dtype, capability)


@quiet
@needs_compiler
@pytest.mark.slow
def test_another_process_finds_compiled_code_in_the_cache_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from qwen3_ranker_plugins import Reranker; from torch._dynamo.utils import counters\n"
        "options = {'compile': True, 'size_classes': 1, 'compile_cache': sys.argv[1]}\n"
        "with Reranker('bundled:tiny', device='cpu', token_budget=128, engine_options=options) as reranker:\n"
        "    reranker.score('a', ['b'])\n"
        "print(counters['inductor']['fxgraph_cache_miss'], counters['inductor']['fxgraph_cache_hit'])\n"
    )
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "unused")}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "cache")],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        ).stdout.split()
        for _ in range(2)
    ]
    assert outputs == [["3", "0"], ["0", "3"]]  # norm, gate, and the attention of 128 tokens
    assert not [path for path in (tmp_path / "unused").rglob("*") if path.is_file()]


@pytest.mark.gpu
@needs_gpu
@quiet
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05), ("float16", 0.05)])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_margins_on_a_gpu(
    tiny: Path, encoder: PromptEncoder, one_at_a_time: Reference, dtype: str, tolerance: float, cuda_graphs: bool
) -> None:
    """Each pass twice, in another order: a graph's replay must not read what the pass before left behind."""
    options = PackedOptions(compile=True, size_classes=1, cuda_graphs=cuda_graphs)
    engine = PackedEngine(tiny, device="cuda", dtype=dtype, token_budget=2048, options=options)
    rng = np.random.default_rng(7)
    mixed = [requests(rng, encoder, counts, longest=60) for counts in ([3, 1, 12], [1], [30, 20])]
    for one in [*mixed, *reversed(mixed)]:
        for request, margins in zip(one, engine.score(one), strict=True):
            np.testing.assert_allclose(margins.values, one_at_a_time(request), rtol=0, atol=tolerance)
    engine.close()


@pytest.mark.gpu
@needs_gpu
@quiet
def test_no_size_compiles_a_kernel_after_the_warm_up(tiny: Path, encoder: PromptEncoder) -> None:
    """Fifty sizes, below and above what graphs are recorded for."""
    from qwen3_ranker_plugins.engines.attention import kernels

    def compiled() -> int:
        made = (kernels._attend, kernels._turn_keys, kernels._rms_norm, kernels._gated)
        return sum(len(caches[0]) for kernel in made for caches in kernel.device_caches.values())

    engine = PackedEngine(tiny, device="cuda", token_budget=16384, options=PackedOptions(compile=True))
    ready = compiled()
    assert ready >= 4
    for size in range(1, 251, 5):
        request = encoder.encode("a query", [f"document {n} of them " * (1 + n % 9) for n in range(size)], "judge")
        assert np.isfinite(engine.score([request])[0].values).all()
    assert compiled() == ready
    engine.close()


@pytest.mark.gpu
@needs_gpu
@quiet
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_passes_in_flight_on_a_gpu_have_their_own_margins(
    tiny: Path, encoder: PromptEncoder, one_at_a_time: Reference, dtype: str, tolerance: float, cuda_graphs: bool
) -> None:
    """Of one size class and of several, begun before the first is read, and by threads that do not wait for each other.

    A busy GPU makes all of them wait in its queue, so that whatever is written too early would be seen.
    """
    options = PackedOptions(compile=True, size_classes=1, cuda_graphs=cuda_graphs)
    engine = PackedEngine(tiny, device="cuda", dtype=dtype, token_budget=2048, options=options)
    assert engine._compiled is not None
    assert engine.capabilities.passes_in_flight == 2
    rng = np.random.default_rng(8)
    made = [requests(rng, encoder, [count], longest=60)[0] for count in (12, 13, 11, 1, 30, 12, 2, 14)]
    expected = [one_at_a_time(request) for request in made]
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(3):
        for _ in range(50):
            busy = busy @ busy / 64
        begun = [engine._compiled.begin(pack([request])) for request in made]
        for pending, values in zip(begun, expected, strict=True):
            np.testing.assert_allclose(pending.wait(), values, rtol=0, atol=tolerance)
    with ThreadPoolExecutor(2) as pool:
        several = list(pool.map(lambda request: engine.score([request])[0].values, made * 10))
    for values, right in zip(several, expected * 10, strict=True):
        np.testing.assert_allclose(values, right, rtol=0, atol=tolerance)
    engine.close()


@pytest.mark.gpu
@needs_gpu
@quiet
@pytest.mark.timeout(900)
def test_a_pass_on_a_gpu_does_not_wait_for_it(tiny: Path, encoder: PromptEncoder) -> None:
    options = PackedOptions(compile=True, size_classes=1, cuda_graphs=False)
    engine = PackedEngine(tiny, device="cuda", token_budget=512, options=options)
    assert engine._compiled is not None
    packed = pack(requests(np.random.default_rng(7), encoder, [5], longest=20))
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = engine._compiled.begin(packed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pending.wait().shape == (5,)
    engine.close()
