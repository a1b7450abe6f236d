"""Our own decoder where there is no GPU, with kernels in plain torch: its weights, size classes and options.

The tests at the end need a GPU, for CUDA graphs, pinned memory and Triton's compiler. `test_kernels` runs the Triton
kernels in Triton's interpreter.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import silu

from qwen3_ranker_plugins import DEFAULT_INSTRUCTION, EngineError, InvalidInputError
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.engines.attention import varlen_kernels
from qwen3_ranker_plugins.engines.attention.layout import pack
from qwen3_ranker_plugins.engines.packed.buffers import TOKENS_PER_DOCUMENT, PassBuffers, size_class, size_classes
from qwen3_ranker_plugins.engines.packed.checkpoint import load_model
from qwen3_ranker_plugins.engines.packed.decoder import Decoder, take_weights
from qwen3_ranker_plugins.engines.packed.engine import PackedEngine, resolve
from qwen3_ranker_plugins.engines.packed.gated_product import GatedProduct, check, choose_product, interleave_gates
from qwen3_ranker_plugins.engines.packed.options import PackedOptions
from qwen3_ranker_plugins.engines.packed.size_classes import SizeClassRunner
from qwen3_ranker_plugins.models import read_spec
from qwen3_ranker_plugins.pip_command import pip_install
from qwen3_ranker_plugins.prompt import EncodedRequest, ModelTokenizer, PromptEncoder, load_tokenizer

from . import plain_kernels

Reference = Callable[[EncodedRequest], NDArray[np.float32]]
CPU = torch.device("cpu")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")
# of the compiler's own code, which differ by release
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning")


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


def plain_runner(
    tiny: Path, engine: PackedEngine, budget: int, size_classes: int, shortest_long: int | None = None
) -> SizeClassRunner:
    """As the engine makes it on a GPU, on the CPU."""
    varlen = None if shortest_long is None else plain_kernels.varlen_kernel(shortest_long)
    weights = take_weights(
        load_model(tiny, read_spec(tiny), load_tokenizer(tiny), torch.float32).decoder, engine._direction, CPU
    )
    options = PackedOptions(compile=True, size_classes=size_classes, cuda_graphs=False)
    return SizeClassRunner(Decoder(weights, plain_kernels, plain_kernels.attend, varlen), CPU, options, budget)


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: ModelTokenizer) -> PromptEncoder:
    return PromptEncoder(tiny_tokenizer)


def test_margins_of_the_decoder(
    tiny: Path, tiny_engine: PackedEngine, encoder: PromptEncoder, one_at_a_time: Reference
) -> None:
    """One size class, whose buffers hold another pass each time."""
    runner = plain_runner(tiny, tiny_engine, budget=1024, size_classes=1)
    rng = np.random.default_rng(7)
    for counts in ([3, 1, 8], [12], [3, 1, 2]):
        mixed = requests(rng, encoder, counts, longest=40)
        margins = np.split(runner.run(pack(mixed)).numpy(), np.cumsum(counts)[:-1])
        for request, found in zip(mixed, margins, strict=True):
            np.testing.assert_allclose(found, one_at_a_time(request), rtol=0, atol=1e-4)


def test_margins_with_gates_inside_the_products(
    tiny: Path, tiny_engine: PackedEngine, encoder: PromptEncoder, one_at_a_time: Reference
) -> None:
    runner = plain_runner(tiny, tiny_engine, budget=1024, size_classes=1)
    weights, product = runner.decoder.weights, GatedProduct("plain torch", plain_kernels.gated_product)
    interleave_gates(weights)
    runner.decoder = Decoder(weights, plain_kernels, plain_kernels.attend, gated_product=product)
    assert runner.decoder.description == "ours, with our kernels and gates inside the products of plain torch"
    mixed = requests(np.random.default_rng(7), encoder, [3, 1, 8], longest=40)
    margins = np.split(runner.run(pack(mixed)).numpy(), np.cumsum([3, 1, 8])[:-1])
    for request, found in zip(mixed, margins, strict=True):
        np.testing.assert_allclose(found, one_at_a_time(request), rtol=0, atol=1e-4)


def test_a_product_that_computes_something_else_is_noticed() -> None:
    gate_up = torch.randn(96, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    before = gate_up.clone()
    check(GatedProduct("right", plain_kernels.gated_product), gate_up)
    for wrong in (
        lambda states, matrix: plain_kernels.gated(states @ matrix.t()),  # halves, though the rows are interleaved
        lambda states, matrix: plain_kernels.gated_product(states, matrix) * torch.nan,
    ):
        with pytest.raises(ArithmeticError, match="differ from plain torch's by"):
            check(GatedProduct("wrong", wrong), gate_up)
    assert torch.equal(gate_up, before)


def test_a_product_that_cannot_be_imported_is_said_and_not_used(
    tiny: Path,
    tiny_engine: PackedEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights = plain_runner(tiny, tiny_engine, budget=1024, size_classes=1).decoder.weights
    on_hopper = replace(weights, embedding=weights.embedding.bfloat16())
    assert choose_product(on_hopper, (8, 0)) is None
    assert choose_product(weights, (9, 0)) is None  # float32
    installed = tmp_path / "quack_kernels-0.6.5.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: quack-kernels\nVersion: 0.6.5\n")
    (tmp_path / "quack").mkdir()
    (tmp_path / "quack" / "__init__.py").write_text("raise OSError('libcute.so: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not caplog.messages
    assert choose_product(on_hopper, (9, 0)) is None
    [said] = caplog.messages
    assert "quack-kernels 0.6.5 cannot be used (OSError: libcute.so" in said
    assert "pip uninstall quack-kernels" in said


def test_long_documents_take_their_own_path_and_keep_their_margins(
    tiny: Path, tiny_engine: PackedEngine, encoder: PromptEncoder, one_at_a_time: Reference
) -> None:
    """Requests with long documents only, with none, with both, and one whose prefix is longer than its documents."""
    runner = plain_runner(tiny, tiny_engine, budget=1024, size_classes=1, shortest_long=40)
    plain = plain_runner(tiny, tiny_engine, budget=1024, size_classes=1)
    rng = np.random.default_rng(7)
    for counts, longest in (([3, 1, 8], 60), ([4], 10), ([1], 200), ([2, 5, 2], 80)):
        mixed = requests(rng, encoder, counts, longest)
        packed = pack(mixed)
        margins = runner.run(packed).numpy().copy()
        np.testing.assert_allclose(margins, plain.run(packed).numpy(), rtol=0, atol=1e-4)
        for request, found in zip(mixed, np.split(margins, np.cumsum(counts)[:-1]), strict=True):
            np.testing.assert_allclose(found, one_at_a_time(request), rtol=0, atol=1e-4)
    assert "plain torch for documents of 40 tokens or more" in runner.decoder.description


def test_the_margin_of_a_document_does_not_depend_on_the_path_of_its_neighbours(
    tiny: Path, tiny_engine: PackedEngine
) -> None:
    runner = plain_runner(tiny, tiny_engine, budget=1024, size_classes=1, shortest_long=40)
    prefix, short, long = [5, 6, 7], [[8 + n] * (4 + n) for n in range(5)], [[9 + n] * (40 + 7 * n) for n in range(5)]
    [alone_short] = np.split(runner.run(pack([EncodedRequest(prefix, short, [0] * 5)])).numpy().copy(), 1)
    [alone_long] = np.split(runner.run(pack([EncodedRequest(prefix, long, [0] * 5)])).numpy().copy(), 1)
    together = runner.run(pack([EncodedRequest(prefix, [*short, *long], [0] * 10)])).numpy()
    np.testing.assert_allclose(together, [*alone_short, *alone_long], rtol=0, atol=1e-4)


class RecordedPass:
    """Stands in for a CUDA graph: a replay computes the buffers again, all with the kernels of the recording."""

    def __init__(self, runner: SizeClassRunner, length: int) -> None:
        self.replays = 0
        self._runner, self._length = runner, length
        self.margins = torch.zeros(length // TOKENS_PER_DOCUMENT)

    def replay(self) -> None:
        buffers = self._runner._buffers[self._length]
        assert buffers.long is None  # a graph would go on reading the tensors of the pass that it was recorded with
        self.margins.copy_(self._runner.decoder(buffers))
        self.replays += 1


def test_a_pass_is_computed_without_its_graph_where_long_documents_dominate(
    tiny: Path, tiny_engine: PackedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = plain_runner(tiny, tiny_engine, budget=1024, size_classes=1, shortest_long=40)
    runner.warm_up()
    graph = RecordedPass(runner, 1024)
    runner._graphs[1024] = (graph, graph.margins)  # type: ignore[assignment]
    monkeypatch.setattr("qwen3_ranker_plugins.engines.packed.size_classes._LONG_WORK", 2 * 200**2)
    replays = 0
    many, few = ([199] * 2, True), ([300, 3, 100], False)
    for lengths, replayed in (([200] * 2, False), many, ([30] * 20, True), few, ([5] * 80, True)):
        documents = [[8 + n % 9] * length for n, length in enumerate(lengths)]
        request = EncodedRequest([5, 6, 7] * 60, documents, [0] * len(documents))
        expected = tiny_engine.score([request])[0].values
        np.testing.assert_allclose(runner.run(pack([request])), expected, rtol=0, atol=1e-4)
        replays += replayed
        assert graph.replays == replays


def test_the_warm_up_prepares_the_longest_size_class_and_others_come_when_needed(
    tiny: Path, tiny_engine: PackedEngine
) -> None:
    runner = plain_runner(tiny, tiny_engine, budget=768, size_classes=4)
    runner.warm_up()
    assert list(runner._buffers) == [768]
    assert runner.run(pack([EncodedRequest([5] * 60, [[7] * 9], [0])])).isfinite().all()
    assert sorted(runner._buffers) == [128, 768]


def test_passes_that_several_threads_queue_have_their_own_margins(tiny: Path, tiny_engine: PackedEngine) -> None:
    """The dispatcher's two workers do this on a GPU; on a CPU a pass is computed by the thread that queues it."""
    runner = plain_runner(tiny, tiny_engine, budget=256, size_classes=1)
    made = [EncodedRequest([5, 6 + n], [[7 + n] * (3 + n % 7)] * (1 + n % 5), [0] * (1 + n % 5)) for n in range(24)]
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda one: runner.queue(pack([one])).wait_for_margins(), made))
    for one, values in zip(made, several, strict=True):
        np.testing.assert_allclose(values, tiny_engine.score([one])[0].values, rtol=0, atol=1e-4)


def test_a_pass_above_the_budget_and_one_of_tiny_documents_are_right(tiny: Path, tiny_engine: PackedEngine) -> None:
    """Size classes that the warm-up does not know, and more documents than a size class has room for."""
    runner = plain_runner(tiny, tiny_engine, budget=128, size_classes=8)
    for request in (
        EncodedRequest([5] * 30, [[7] * 300], [0]),
        EncodedRequest([5, 6], [[7 + n % 9] * (1 + n % 2) for n in range(60)], [0] * 60),
    ):
        packed = pack([request])
        length = size_class(packed.num_tokens, packed.num_documents, 8)
        assert length > 300
        expected = tiny_engine.score([request])[0].values
        np.testing.assert_allclose(runner.run(packed).numpy(), expected, rtol=0, atol=1e-4)


def test_fused_weights_are_the_separate_ones_and_nothing_is_in_memory_twice(
    tiny: Path, tiny_engine: PackedEngine
) -> None:
    model = load_model(tiny, read_spec(tiny), load_tokenizer(tiny), torch.float32).decoder
    originals = [weakref.ref(weight) for name, weight in model.named_parameters() if "proj" in name]
    layer = model.layers[0]
    hidden = torch.randn(5, model.config.hidden_size)
    with torch.no_grad():
        attention = [
            project(hidden) for project in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        ]
        gate = silu(layer.mlp.gate_proj(hidden)) * layer.mlp.up_proj(hidden)
        norm = layer.input_layernorm(hidden)
    del layer
    weights = take_weights(model, tiny_engine._direction, CPU)
    first = weights.layers[0]
    torch.testing.assert_close(hidden @ first.query_key_value.t(), torch.cat(attention, dim=1))
    torch.testing.assert_close(plain_kernels.gated(hidden @ first.gate_up.t()), gate)
    torch.testing.assert_close(plain_kernels.rms_norm(hidden, first.input_norm, weights.epsilon), norm)
    gc.collect()
    alive = [weight() for weight in originals if weight() is not None]
    # Those that need no fusing are the checkpoint's own on a CPU.
    assert {weight.data_ptr() for weight in alive} <= {
        matrix.data_ptr() for layer in weights.layers for matrix in (layer.output, layer.down)
    }


def test_size_classes() -> None:
    for per_octave, padding in ((1, 0.45), (4, 0.12), (8, 0.06)):
        lengths = size_classes(32768, per_octave)
        assert lengths[-1] == 32768
        for tokens in range(1, 32769, 7):
            assert size_class(tokens, 1, per_octave) == next(length for length in lengths if length >= tokens)
        sizes = np.arange(1024, 32769)
        waste = np.mean([size_class(int(size), 1, per_octave) / size - 1 for size in sizes[::37]])
        assert waste < padding
    assert size_class(100, 100, 8) == 896  # one document in eight tokens


def test_buffers_refuse_what_does_not_fit() -> None:
    buffers = PassBuffers(128, CPU, tokens_per_item=32)
    with pytest.raises(ValueError, match="129 tokens and 1 documents in buffers for 128 and 16"):
        buffers.write(pack([EncodedRequest([1], [[1] * 128], [0])]))
    many = EncodedRequest([], [[1]] * (128 // TOKENS_PER_DOCUMENT + 1), [0] * 17)
    with pytest.raises(ValueError, match="17 documents"):
        buffers.write(pack([many]))


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
        ({"compile": True, "compile_cache": " "}, "engine_options['compile_cache']=' '"),
        (
            {"compile": True},
            "engine_options['compile']=True: our decoder needs an NVIDIA GPU (here: cpu): leave it out",
        ),
        (
            {"warm_up": True},
            "engine_options['warm_up']=True: has no effect on the model's own layers, which run",
        ),
        ({"compile": False, "compile_cache": "somewhere"}, "has no effect unless compile is true"),
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


def test_what_cannot_be_compiled_says_what_is_missing(tiny: Path, tiny_engine: PackedEngine) -> None:
    runner = plain_runner(tiny, tiny_engine, budget=128, size_classes=1)
    before = dict(os.environ)
    says = r"compiling failed \(CalledProcessError: .*gcc.*set engine_options\['compile'\]"
    with pytest.raises(EngineError, match=says), runner._compiling():
        subprocess.run(["sh", "-c", "exit 1; gcc"], check=True)
    assert dict(os.environ) == before


def model(**changed: object) -> SimpleNamespace:
    """What the options read of a model's configuration, in the shape of Qwen3-Reranker-0.6B."""
    shape = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    return SimpleNamespace(**(shape | {"hidden_act": "silu", "attention_bias": False} | changed))


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has Triton and a C compiler."""
    monkeypatch.setattr("qwen3_ranker_plugins.engines.packed.options.can_compile", lambda: True)


@pytest.mark.usefixtures("compilers")
@pytest.mark.parametrize(
    ("dtype", "capability", "changed", "obstacle"),
    [
        ("bfloat16", (9, 0), {}, None),
        ("float16", (8, 0), {}, None),
        ("bfloat16", (12, 0), {"num_attention_heads": 32, "head_dim": 64}, None),
        ("float16", (7, 5), {}, None),
        ("float16", (7, 0), {}, "compute capability 7.5 or more (here: 7.0)"),
        ("float32", (9, 0), {}, "half precision (here: float32)"),
        ("bfloat16", (9, 0), {"head_dim": 80}, "no kernels for 16 heads, 8 kv heads and head_dim=80"),
        ("bfloat16", (9, 0), {"num_attention_heads": 24}, "no kernels for 24 heads, 8 kv heads"),
        ("bfloat16", (9, 0), {"hidden_act": "gelu"}, "SiLU only (here: hidden_act='gelu'"),
        ("bfloat16", (9, 0), {"attention_bias": True}, "attention_bias=True"),
    ],
)
def test_our_decoder_is_the_default_where_it_runs_and_refused_where_it_does_not(
    dtype: str, capability: tuple[int, int], changed: dict[str, object], obstacle: str | None
) -> None:
    given = ("cuda:0", dtype, capability, model(**changed))
    options = PackedOptions().resolved(*given)
    if obstacle is None:
        assert (options.compile, options.size_classes, options.cuda_graphs, options.warm_up) == (True, 64, True, True)
        assert PackedOptions(compile=True).resolved(*given) == options
        assert PackedOptions(compile=True, size_classes=1).resolved(*given).size_classes == 1
        return
    assert options == PackedOptions(compile=False)
    for asked in (PackedOptions(compile=True), PackedOptions(size_classes=4)):
        with pytest.raises(InvalidInputError, match="leave it out") as caught:
            asked.resolved(*given)
        assert obstacle in str(caught.value)


def test_without_a_compiler_the_models_layers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3_ranker_plugins.engines.packed.options.can_compile", lambda: False)
    given = ("cuda:0", "bfloat16", (9, 0), model())
    assert PackedOptions().resolved(*given) == PackedOptions(compile=False)
    with pytest.raises(InvalidInputError, match="Triton, a C compiler and Python's headers"):
        PackedOptions(compile=True).resolved(*given)


def test_a_flash_attention_that_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "flash_attn_4-4.0.0b36.dist-info").mkdir()
    (tmp_path / "flash_attn_4-4.0.0b36.dist-info" / "METADATA").write_text("Name: flash-attn-4\nVersion: 4.0.0b36\n")
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn" / "cute" / "__init__.py").write_text("import cutlass_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert varlen_kernels.choose_kernel((9, 0)) is None
    [warning] = caplog.messages
    assert "flash-attn-4 4.0.0b36 cannot be imported (ModuleNotFoundError: No module named 'cutlass_that" in warning
    assert f"{pip_install('flash')} --upgrade" in warning
    caplog.clear()
    assert varlen_kernels.choose_kernel((8, 6)) is None
    assert not caplog.messages


@pytest.mark.usefixtures("compilers")
def test_float8_is_for_gpus_that_have_it() -> None:
    asked = PackedOptions(compile=True, float8=True)
    assert asked.resolved("cuda:0", "bfloat16", (8, 9), model()).float8
    for dtype, capability in (("float16", (9, 0)), ("bfloat16", (8, 6))):
        with pytest.raises(InvalidInputError, match=r"needs dtype='bfloat16' and a GPU of compute capability 8\.9"):
            asked.resolved("cuda:0", dtype, capability, model())


@pytest.mark.gpu
@needs_gpu
@quiet
@pytest.mark.slow
def test_another_process_finds_compiled_code_in_the_cache_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from qwen3_ranker_plugins import Reranker\n"
        "options = {'size_classes': 1, 'compile_cache': sys.argv[1]}\n"
        "with Reranker('bundled:tiny', device='cuda', token_budget=128, engine_options=options) as reranker:\n"
        "    reranker.score('a', ['b'])\n"
    )
    cache = tmp_path / "cache" / "triton"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "unused")}

    def compiled() -> set[Path]:
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "cache")], check=True, env=environment)
        return set(cache.rglob("*"))

    first = compiled()
    assert any(path.suffix == ".cubin" for path in first)
    assert compiled() == first
    assert not (tmp_path / "unused").exists()


@pytest.mark.gpu
@needs_gpu
@quiet
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_margins_on_a_gpu(
    tiny: Path, encoder: PromptEncoder, one_at_a_time: Reference, dtype: str, cuda_graphs: bool
) -> None:
    """Each pass twice, in another order: a graph's replay must not read what the pass before left behind."""
    options = PackedOptions(compile=True, size_classes=1, cuda_graphs=cuda_graphs)
    engine = PackedEngine(tiny, device="cuda", dtype=dtype, token_budget=2048, options=options)
    rng = np.random.default_rng(7)
    mixed = [requests(rng, encoder, counts, longest=60) for counts in ([3, 1, 12], [1], [30, 20])]
    for one in [*mixed, *reversed(mixed)]:
        for request, margins in zip(one, engine.score(one), strict=True):
            np.testing.assert_allclose(margins.values, one_at_a_time(request), rtol=0, atol=0.05)
    engine.close()


@pytest.mark.gpu
@needs_gpu
@quiet
@pytest.mark.filterwarnings("ignore:Argument aux_data:UserWarning")  # of flash-attn-4 while it compiles
@pytest.mark.timeout(900)
def test_margins_of_long_documents_on_a_gpu(
    tiny: Path, encoder: PromptEncoder, one_at_a_time: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short and long documents of several requests in one pass, and the same documents in passes of their own."""
    pytest.importorskip("flash_attn.cute", reason="needs the extra flash")
    varlen = replace(varlen_kernels.flash_attention_4(), shortest=200)
    monkeypatch.setattr(varlen_kernels, "choose_kernel", lambda _capability: varlen)
    options = PackedOptions(compile=True, size_classes=1, cuda_graphs=False)
    engine = PackedEngine(tiny, device="cuda", token_budget=4096, options=options)
    rng = np.random.default_rng(7)
    mixed = requests(rng, encoder, [9, 1, 12], longest=500)
    for one in (mixed, *([request] for request in mixed), [requests(rng, encoder, [5], longest=20)[0], mixed[1]]):
        for request, margins in zip(one, engine.score(one), strict=True):
            np.testing.assert_allclose(margins.values, one_at_a_time(request), rtol=0, atol=0.05)
    engine.close()


@pytest.mark.gpu
@needs_gpu
@quiet
def test_no_size_compiles_a_kernel_after_the_warm_up(tiny: Path, encoder: PromptEncoder) -> None:
    """Fifty sizes, below and above what graphs are recorded for."""
    from qwen3_ranker_plugins.engines.attention import triton_nvidia
    from qwen3_ranker_plugins.engines.packed import kernels

    def compiled() -> int:
        made = (triton_nvidia._attend, kernels._rotate, kernels._rms_norm, kernels._gated)
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
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_passes_in_flight_on_a_gpu_have_their_own_margins(
    tiny: Path, encoder: PromptEncoder, one_at_a_time: Reference, cuda_graphs: bool
) -> None:
    """Of one size class and of several, begun before the first is read, and by threads that do not wait for each other.

    A busy GPU makes all of them wait in its queue, so that whatever is written too early would be seen.
    """
    options = PackedOptions(compile=True, size_classes=1, cuda_graphs=cuda_graphs)
    engine = PackedEngine(tiny, device="cuda", token_budget=2048, options=options)
    assert engine._runner is not None
    assert engine.capabilities.passes_in_flight == 2
    rng = np.random.default_rng(8)
    made = [requests(rng, encoder, [count], longest=60)[0] for count in (12, 13, 11, 1, 30, 12, 2, 14)]
    expected = [one_at_a_time(request) for request in made]
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(3):
        for _ in range(50):
            busy = busy @ busy / 64
        begun = [engine._runner.queue(pack([request])) for request in made]
        for pending, values in zip(begun, expected, strict=True):
            np.testing.assert_allclose(pending.wait_for_margins(), values, rtol=0, atol=0.05)
    with ThreadPoolExecutor(2) as pool:
        several = list(pool.map(lambda request: engine.score([request])[0].values, made * 10))
    for values, right in zip(several, expected * 10, strict=True):
        np.testing.assert_allclose(values, right, rtol=0, atol=0.05)
    engine.close()


@pytest.mark.gpu
@needs_gpu
@quiet
@pytest.mark.timeout(900)
def test_a_pass_on_a_gpu_does_not_wait_for_it(tiny: Path, encoder: PromptEncoder) -> None:
    options = PackedOptions(compile=True, size_classes=1, cuda_graphs=False)
    engine = PackedEngine(tiny, device="cuda", token_budget=512, options=options)
    assert engine._runner is not None
    packed = pack(requests(np.random.default_rng(7), encoder, [5], longest=20))
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = engine._runner.queue(packed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pending.wait_for_margins().shape == (5,)
    engine.close()
