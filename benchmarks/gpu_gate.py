"""Measure on one Hopper GPU what products with their own epilogues save, and what is left in long passes.

    python benchmarks/gpu_gate.py OUTPUT.json --commit "$(git rev-parse HEAD)" --model FOLDER [--seconds 170]
    python benchmarks/gpu_gate.py OUTPUT.json --commit try --smoke          # on a CPU, without the library

Needs quack-kernels and flash-attn-4, in a folder named site-packages: quack tells its own code from others' by that
name. Each part runs in a process of its own with a time limit; if one fails, the others run. OUTPUT.json is written
after each part.

- compile: every product of quack-kernels once, in several processes, into its cache on disk. Meanwhile the margins in
  float32, with which those of calls are compared.
- kernels: a layer's products and what lies between them, by the device's time, with errors relative to float32.
- titles: passes and calls in bfloat16 of the present decoder, of one with gates inside the product, and with norms too.
- float8: the same of the float8 decoder and of one with gates inside the product.
- long: passes with and without a graph, and calls of long documents with both.
- profile: where a pass of 32,768 tokens spends its time, gaps included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import gpu_bench, gpu_long_documents
from benchmarks.gpu_bench import synchronize
from benchmarks.systems import SHAPES, query, run_apart, write_model

if TYPE_CHECKING:
    from qwen3_ranker_plugins.engines.packed.decoder import Decoder

ROWS = (2944, 8192, 27904, 32768)  # 100 and 1000 titles in their size classes, and full passes
SMALL = 1000  # rows for which products are compared with float32: no multiple of a tile
#: tile_m, tile_n, pingpong, cluster
CONFIGS: dict[str, list[tuple[int, int, bool, tuple[int, int]]]] = {
    "gated": [(128, 192, True, (2, 1)), (128, 192, True, (1, 2)), (128, 256, False, (2, 1)), (256, 192, False, (2, 1)),
              (256, 128, False, (2, 1))],
    "scaled": [(128, 256, False, (2, 1)), (256, 128, False, (2, 1)), (128, 192, True, (2, 1))],
    "added": [(128, 256, False, (2, 1)), (256, 128, False, (2, 1)), (128, 128, True, (2, 1))],
    "gate only": [(128, 192, True, (2, 1)), (128, 256, False, (2, 1)), (256, 192, False, (2, 1))],
    "float8": [(128, 192, True, (2, 1)), (128, 256, False, (2, 1)), (256, 128, False, (2, 1))],
}  # fmt: skip
SECONDS = {"compile": 75, "kernels": 60, "titles": 60, "float8": 60, "long": 75, "profile": 40}
PROCESSES = 12  # of the part compile
LONG = ((1, 4000), (1, 6000), (1, 8000), (2, 4000), (4, 2000), (8, 1000))  # documents and tokens of each
LONG_CALLS = ("4 x 8000 tokens", "mixed", "50 x 6240 tokens")

Keep = Callable[..., None]
Timed = tuple[str, str, Callable[[], Any]]  # name of a product, variant, call


@contextmanager
def try_(keep: Keep, *keys: str) -> Iterator[None]:
    """Keep an exception of the block under `keys` instead of ending the part."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the other measurements do not depend on this one
        traceback.print_exc()
        keep("failed", " / ".join(keys), f"{type(error).__name__}: {error}"[:600])


# --- products -------------------------------------------------------------------------------------------------------


def scaled_swiglu() -> Any:
    """An epilogue for float8: the gate of products times the scales of their rows and columns."""
    from benchmarks.gpu_gate_epilogue import scaled_swiglu as epilogue

    return epilogue


def gated_float8_product(
    states: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor, config: Any
) -> torch.Tensor:
    """The SiLU of every even output times the odd one after it, in bfloat16, of float8 states and weights.

    Args:
        states, weight: float8 [rows, inputs] and [outputs, inputs].
        rows, columns: their scales, float32 [1, rows] and [1, outputs].
        config: see `quack_products.hopper`.
    """
    output = states.new_empty(len(states), len(weight) // 2, dtype=torch.bfloat16)
    scaled_swiglu().gemm(
        states, weight, None, None, epi_args={"rows": rows, "columns": columns, "postact": output},
        tile_M=config.tile_m, tile_N=config.tile_n, cluster_M=config.cluster_m, cluster_N=config.cluster_n,
        pingpong=config.pingpong, post_init_attrs=(("fp8_slow_accum", False),),
    )  # fmt: skip
    return output


def gate_only(states: torch.Tensor, gate_up: torch.Tensor, config: Any) -> torch.Tensor:
    """The SiLU of every even output times the odd one after it."""
    from quack.gemm_interface import gemm_act

    return gemm_act(states, gate_up.t(), activation="swiglu", store_preact=False, tuned=False, config=config)[1]


def quack_call(
    kind: str, config: Any, layer: dict[str, torch.Tensor], rows: int
) -> list[tuple[str, Callable[[], Any]]]:
    """(name, call) of each product of a kind; the name is that of the present path which it would replace."""
    from qwen3_ranker_plugins.engines.packed import quack_products

    if kind in quack_products.CONFIGS:
        quack_products.CONFIGS[kind] = config
    hidden, scales = layer["hidden"][:rows], layer["scales"][:rows]
    attended, fed = layer["attended"][:rows], layer["fed"][:rows]
    if kind == "scaled":
        return [("norm, q/k/v", lambda: quack_products.scaled(hidden, scales, layer["folded_qkv"]))]
    if kind == "gated":
        return [("norm, gate", lambda: quack_products.gated(hidden, scales, layer["folded_gate_up"]))]
    if kind == "added":
        return [
            ("output", lambda: quack_products.added(attended, layer["output"], hidden, 1e-6)),
            ("down", lambda: quack_products.added(fed, layer["down"], hidden, 1e-6)),
        ]
    if kind == "gate only":
        return [("gate", lambda: gate_only(hidden, layer["interleaved"], config))]
    narrow, row_scales, weight, columns = (layer[name] for name in ("narrow", "row_scales", "weight8", "columns"))
    return [
        ("float8 gate", lambda: gated_float8_product(narrow[:rows], row_scales[:, :rows], weight, columns, config)),
    ]


def random_layer(rows: int, device: str, width: int, heads: int, kv_heads: int, feed_forward: int) -> dict[str, Any]:
    """States and matrices with the magnitudes of a layer."""
    from qwen3_ranker_plugins.engines.packed.fused import interleaved

    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator, device=device) * scale).bfloat16()

    made: dict[str, torch.Tensor] = {
        "hidden": random(rows, width),
        "attended": random(rows, heads * 128),
        "fed": random(rows, feed_forward, scale=0.3),
        "norm": 1 + random(width, scale=0.1),
        "qkv": random((heads + 2 * kv_heads) * 128, width, scale=width**-0.5),
        "output": random(width, heads * 128, scale=width**-0.5),
        "gate_up": random(2 * feed_forward, width, scale=width**-0.5),
        "down": random(width, feed_forward, scale=feed_forward**-0.5),
    }
    made["scales"] = torch.rsqrt(made["hidden"].float().square().mean(1) + 1e-6)
    made["interleaved"] = interleaved(made["gate_up"])
    made["folded_qkv"] = (made["qkv"].float() * made["norm"].float()).bfloat16()
    made["folded_gate_up"] = interleaved((made["gate_up"].float() * made["norm"].float()).bfloat16())
    for name, states in (("narrow", made["hidden"]), ("weight8", made["interleaved"])):
        largest = states.float().abs().amax(1, keepdim=True) / 448
        made[name] = (states.float() / largest).to(torch.float8_e4m3fn)
        made["row_scales" if name == "narrow" else "columns"] = largest.t().contiguous()
    return made


def present_calls(layer: dict[str, torch.Tensor], rows: int) -> dict[str, Callable[[], Any]]:
    """What the present decoder does."""
    from benchmarks.gpu_gate_triton import to_float8
    from qwen3_ranker_plugins.engines.packed import kernels

    hidden, attended, fed = (layer[name][:rows] for name in ("hidden", "attended", "fed"))
    into, into_as_well, norm = hidden.clone(), hidden.clone(), layer["norm"]
    narrow, row_scales = layer["narrow"][:rows], layer["row_scales"][0, :rows, None].contiguous()

    def float8_product() -> torch.Tensor:
        return torch._scaled_mm(  # noqa: SLF001
            narrow, layer["weight8"].t(), row_scales, layer["columns"], out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return {
        "gate": lambda: kernels.gated(hidden @ layer["gate_up"].t()),
        "gate, the product": lambda: hidden @ layer["gate_up"].t(),
        "norm, gate": lambda: kernels.gated(kernels.rms_norm(hidden, norm, 1e-6) @ layer["gate_up"].t()),
        "norm, q/k/v": lambda: kernels.rms_norm(hidden, norm, 1e-6) @ layer["qkv"].t(),
        "output": lambda: into.addmm_(attended, layer["output"].t()),
        "down": lambda: into_as_well.addmm_(fed, layer["down"].t()),
        "float8 gate": lambda: kernels.gated_float8(float8_product()),
        "float8 gate, the product": float8_product,
        "float8, rounding the gate": lambda: to_float8(fed),
    }


def triton_calls(layer: dict[str, torch.Tensor], rows: int) -> list[Timed]:
    """(name, variant, call) of the same products by a Triton kernel."""
    from benchmarks.gpu_gate_triton import TILES, gated_product

    hidden, narrow = layer["hidden"][:rows], layer["narrow"][:rows]
    scales = layer["row_scales"][0, :rows], layer["columns"][0]
    made: list[Timed] = []
    for tiles in TILES:
        variant = f"Triton {tiles[0]}x{2 * tiles[1]}"
        made += [
            ("gate", variant, lambda tiles=tiles: gated_product(hidden, layer["interleaved"], tiles)),
            ("float8 gate", variant, lambda tiles=tiles: gated_product(narrow, layer["weight8"], tiles, scales)),
        ]
    return made


def exact(name: str, layer: dict[str, torch.Tensor], rows: int) -> torch.Tensor:
    """A product in float32, of the weights that are not rounded again."""
    torch.backends.cuda.matmul.allow_tf32 = False
    hidden, attended, fed = (layer[each][:rows].float() for each in ("hidden", "attended", "fed"))
    normed = hidden * layer["scales"][:rows, None] * layer["norm"].float()
    if name == "output":
        return hidden + attended @ layer["output"].float().t()
    if name == "down":
        return hidden + fed @ layer["down"].float().t()
    if name == "norm, q/k/v":
        return normed @ layer["qkv"].float().t()
    states = normed if name == "norm, gate" else hidden
    weight = layer["gate_up"].float()
    if name == "float8 gate":
        states = layer["narrow"][:rows].float() * layer["row_scales"][0, :rows, None]
        weight = (layer["weight8"].float() * layer["columns"].t()).unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
    gate, up = (states @ weight.t()).chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def relative_error(found: Any, right: torch.Tensor) -> float:
    """The norm of the difference, divided by that of the right value. NaN if any number is."""
    found = found[0] if isinstance(found, tuple) else found
    return round(float((found.float() - right).norm() / right.norm()), 6)


def quack_variants() -> list[tuple[str, str, Any]]:
    """(kind, name, configuration)."""
    from qwen3_ranker_plugins.engines.packed.quack_products import hopper

    return [
        (kind, f"{tile_m}x{tile_n}{' pingpong' if pingpong else ''} {cluster[0]}x{cluster[1]}",
         hopper(tile_m, tile_n, pingpong=pingpong, cluster=cluster))
        for kind, configs in CONFIGS.items()
        for tile_m, tile_n, pingpong, cluster in configs
    ]  # fmt: skip


def shape_of(arguments: Namespace) -> tuple[int, int, int, int]:
    shape = SHAPES[arguments.shape]
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    width, heads, kv_heads, feed_forward = (shape[name] for name in names)
    return width, heads, kv_heads, feed_forward


def part_compile_some(arguments: Namespace, keep: Keep) -> None:
    """The variants of one of several processes."""
    layer = random_layer(256, arguments.device, *shape_of(arguments))
    for kind, name, config in quack_variants()[arguments.number :: PROCESSES]:
        started = time.perf_counter()
        with try_(keep, "compile", kind, name):
            for _, call in quack_call(kind, config, layer, 256):
                call()
            synchronize(arguments)
            keep("compiled", kind, name, round(time.perf_counter() - started, 1))


def part_compile(arguments: Namespace, keep: Keep) -> None:
    """Start the processes, and keep what each of them kept."""
    running = []
    for number in range(-1, PROCESSES):
        part = arguments.output.with_suffix(f".{number}.jsonl")
        part.write_text("")
        one = "reference" if number < 0 else "compile some"
        command = [*command_of(arguments, one, part), f"--number={number}"]
        with part.with_suffix(".log").open("w") as log:
            running.append((part, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)))  # noqa: S603
    for part, process in running:
        try:
            process.wait(max(0.1, arguments.ends - 5 - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
        for line in kept_lines(part):
            keep(*line)
        if process.returncode:
            log = part.with_suffix(".log").read_text(errors="replace")
            keep("failed", part.suffixes[0], log[-1500:])
            print(log[-1500:])
        part.unlink()
        part.with_suffix(".log").unlink()


def part_kernels(arguments: Namespace, keep: Keep) -> None:
    """Errors and times of the products: as they are now, by Triton, by quack-kernels."""
    layer = random_layer(max(ROWS), arguments.device, *shape_of(arguments))
    names = ("gate", "norm, gate", "norm, q/k/v", "output", "down", "float8 gate")
    right = {name: exact(name, layer, SMALL) for name in names}

    def present(rows: int) -> list[Timed]:
        calls = present_calls(layer, rows)
        # Float8 weights are interleaved here, which the present path does not expect.
        listed = names[:-1] if rows == SMALL else calls
        return [(name, "present", calls[name]) for name in listed]

    def by_quack(rows: int) -> Iterator[Timed]:
        for kind, variant, config in quack_variants():
            for name, call in quack_call(kind, config, layer, rows):
                yield name, variant, call

    for listed in (present, partial(triton_calls, layer), by_quack):
        with try_(keep, getattr(listed, "__name__", "Triton")):
            errors_and_times(keep, listed, right)


def errors_and_times(keep: Keep, listed: Callable[[int], Iterable[Timed]], right: dict[str, torch.Tensor]) -> None:
    """Compare what `listed` makes for a number of rows with the right values, then time what is right."""
    wrong = set()
    for name, variant, call in listed(SMALL):
        with try_(keep, "error", name, variant):
            error = relative_error(call(), right[name])
            keep("errors", name, variant, error)
            if not error < 0.02:  # also true for NaN
                wrong.add((name, variant))
    for rows in ROWS[::-1]:
        for name, variant, call in listed(rows):
            if (name, variant) not in wrong:
                with try_(keep, "time", name, variant, str(rows)):
                    keep("us", str(rows), name, variant, microseconds(call))


def microseconds(call: Callable[[], Any]) -> float:
    """The median time on the device, with a cold L2 cache."""
    from triton.testing import do_bench

    return round(1000 * do_bench(call, 15, 50, return_mode="median"), 1)


def best_configs(output: Path) -> dict[str, tuple[str, Any]]:
    """(name, configuration) of each kind that is the fastest for 27,904 rows, from the results so far."""
    results = json.loads(output.read_text(encoding="utf-8"))["results"] if output.exists() else {}
    times = results.get("kernels", {}).get("us", {}).get("27904", {})
    names = {"gated": ("norm, gate",), "scaled": ("norm, q/k/v",), "added": ("output", "down"), "gate only": ("gate",),
             "float8": ("float8 gate",)}  # fmt: skip
    best: dict[str, tuple[float, str, Any]] = {}
    for kind, variant, config in quack_variants():
        spent = sum(times.get(name, {}).get(variant, 1e9) for name in names[kind])
        if kind not in best or spent < best[kind][0]:
            best[kind] = (spent, variant, config)
    return {kind: (variant, config) for kind, (_, variant, config) in best.items()}


# --- passes ---------------------------------------------------------------------------------------------------------


def decoders(arguments: Namespace, runner: Any, keep: Keep) -> dict[str, Decoder]:
    """The present decoder, one with gates inside the product, and one with norms too."""
    from qwen3_ranker_plugins.engines.packed.decoder import Decoder, LayerWeights
    from qwen3_ranker_plugins.engines.packed.fused import FusedDecoder, interleaved

    present, products = runner.decoder, None
    if arguments.smoke:
        from tests.contract.plain_kernels import FusedProducts

        products = FusedProducts()

        def gate(states: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
            return products.gated(states, torch.ones(len(states)), gate_up)
    else:
        from qwen3_ranker_plugins.engines.packed import quack_products as products

        best = best_configs(arguments.output)
        keep("configurations", {kind: name for kind, (name, _) in best.items()})
        for kind in products.CONFIGS:
            products.CONFIGS[kind] = best[kind][1]

        def gate(states: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
            return gate_only(states, gate_up, best["gate only"][1])

    class GateDecoder(Decoder):
        def _feed_forward(self, hidden: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
            normed = self._kernels.rms_norm(hidden, layer.feed_forward_norm, self.weights.epsilon)
            return hidden.addmm_(gate(normed, layer.gate_up), layer.down.t())

    weights = present.weights
    with_gates = [layer._replace(gate_up=interleaved(layer.gate_up)) for layer in weights.layers]
    parts = (present._kernels, present._attend)  # noqa: SLF001
    rest = (present._varlen, present._rows)  # noqa: SLF001
    return {
        "present": present,
        "gate": GateDecoder(replace(weights, layers=tuple(with_gates)), *parts, *rest),
        "gate and norms": FusedDecoder(weights, *parts, products, *rest),
    }


def runner_of(arguments: Namespace, ranker: Any) -> Any:
    """The engine's runner; on a CPU, one with kernels in plain torch, which the engine takes as its own."""
    engine = ranker._lease.engine  # noqa: SLF001
    if arguments.smoke and engine._runner is None:  # noqa: SLF001
        from qwen3_ranker_plugins.engines.packed.checkpoint import load_model
        from qwen3_ranker_plugins.engines.packed.decoder import Decoder, take_weights
        from qwen3_ranker_plugins.engines.packed.options import PackedOptions
        from qwen3_ranker_plugins.engines.packed.size_classes import SizeClassRunner
        from qwen3_ranker_plugins.models import read_spec
        from qwen3_ranker_plugins.prompt import load_tokenizer
        from tests.contract import plain_kernels

        cpu, folder = torch.device("cpu"), arguments.model
        model = load_model(folder, read_spec(folder), load_tokenizer(folder), torch.float32).decoder
        weights = take_weights(model, engine._direction, cpu)  # noqa: SLF001
        decoder = Decoder(weights, plain_kernels, plain_kernels.attend, plain_kernels.varlen_kernel(60))
        options = PackedOptions(compile=True, size_classes=8, cuda_graphs=False)
        engine._runner = SizeClassRunner(decoder, cpu, options, 4096)  # noqa: SLF001
    return engine._runner  # noqa: SLF001


def use(runner: Any, decoder: Decoder) -> None:
    """Compute with another decoder; graphs of the one before are forgotten."""
    runner.decoder = decoder
    runner._graphs.clear()  # noqa: SLF001
    runner._buffers.clear()  # noqa: SLF001


def wall_ms(arguments: Namespace, call: Callable[[], Any], repeat: int) -> dict[str, Any]:
    """Medians: until the call returned, and until the device was idle."""
    returned, idle = [], []
    for number in range(-3, repeat):
        synchronize(arguments)
        started = time.perf_counter()
        call()
        middle = time.perf_counter()
        synchronize(arguments)
        if number >= 0:
            returned.append(1000 * (middle - started))
            idle.append(1000 * (time.perf_counter() - started))
    return {
        "median_ms": round(statistics.median(idle), 2),
        "host_ms": round(statistics.median(returned), 2),
        "times_ms": [round(each, 2) for each in idle],
    }


def packed_case(ranker: Any, label: str, scale: int) -> tuple[list[str], Any]:
    """(documents, pass) of a case of gpu_bench."""
    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
    from qwen3_ranker_plugins.engines.attention.layout import pack

    documents = gpu_bench.documents_of(label, scale)
    return documents, pack([ranker._encoder.encode(query(label, 0), documents, DEFAULT_INSTRUCTION)])  # noqa: SLF001


def measure_decoders(arguments: Namespace, keep: Keep, ranker: Any, made: dict[str, Decoder]) -> None:
    """Passes of each decoder twice in turns, margins, and calls."""
    runner, scale = runner_of(arguments, ranker), arguments.scale
    cases = {label: packed_case(ranker, label, scale) for label in ("1000 titles", "100 chunks", "100 titles")}
    packed = {"32k, 384": gpu_long_documents.one_length(arguments, ranker._lease.engine, 384)}  # noqa: SLF001
    packed |= {label: case[1] for label, case in cases.items()}
    present: dict[str, Any] = {}
    for turn in ("first", "second"):
        for name, decoder in made.items():
            with try_(keep, "passes", name):
                use(runner, decoder)
                for label, one in packed.items():
                    row = wall_ms(arguments, lambda one=one: runner.run(one), arguments.repeat)
                    margins = runner.run(one).float().cpu().numpy().copy()
                    present.setdefault(label, margins)
                    row["to_present"] = float(np.abs(margins - present[label]).max())
                    keep("passes", turn, label, name, row)
    exact_margins = json.loads(arguments.exact.read_text()) if arguments.exact and arguments.exact.exists() else {}
    with_graphs = runner._cuda_graphs  # noqa: SLF001
    for name, decoder in made.items():
        for label in ("1000 titles", "100 titles"):
            for graphs in (True, False):
                runner._cuda_graphs = with_graphs and graphs  # noqa: SLF001
                kept: list[Any] = []
                with try_(keep, "calls", name, label, str(graphs)):
                    use(runner, decoder)
                    kept.append(measure_call(arguments, ranker, label, cases[label][0], exact_margins))
                    keep("calls", label, name if graphs else f"{name}, no graphs", kept[0])
                if kept:
                    break
    runner._cuda_graphs = with_graphs  # noqa: SLF001


def measure_call(
    arguments: Namespace, ranker: Any, label: str, documents: list[str], exact_margins: dict[str, Any]
) -> dict[str, Any]:
    """The time of a call, and its largest difference of a margin to float32."""
    for number in range(12):  # prepares the size classes that the calls use
        ranker.rerank(query(label, number + 1000), documents)
    row = gpu_bench.milliseconds(lambda number: ranker.rerank(query(label, number), documents), arguments.repeat)
    by_index = {hit.index: hit.margin for hit in ranker.rerank(query(label, 0), documents)}
    right = exact_margins.get(label, {}).get("margins", [])
    return row | {"to_float32": max((abs(by_index[i] - each) for i, each in enumerate(right)), default=None)}


def part_reference(arguments: Namespace, keep: Keep) -> None:
    """Margins in float32."""
    rows = gpu_bench.part_reference(arguments)
    arguments.exact.write_text(json.dumps(rows), encoding="utf-8")
    keep("tokens", {label: row["packed_tokens"] for label, row in rows.items()})


def part_titles(arguments: Namespace, keep: Keep) -> None:
    with gpu_bench.reranker(arguments, **({} if arguments.smoke else {"warm_up": False})) as ranker:
        runner = runner_of(arguments, ranker)
        runner.decoder._varlen = None  # noqa: SLF001 - nothing here is long, and its kernel compiles for seconds
        made = {"present": runner.decoder}
        with try_(keep, "decoders"):
            made = decoders(arguments, runner, keep)
        measure_decoders(arguments, keep, ranker, made)


def part_float8(arguments: Namespace, keep: Keep) -> None:
    from qwen3_ranker_plugins.engines.packed.fused import interleaved

    with gpu_bench.reranker(arguments, **({} if arguments.smoke else {"warm_up": False, "float8": True})) as ranker:
        runner = runner_of(arguments, ranker)
        runner.decoder._varlen = None  # noqa: SLF001 - nothing here is long, and its kernel compiles for seconds
        made = {"present": runner.decoder}
        with try_(keep, "decoders"):
            from benchmarks.gpu_gate_triton import to_float8

            present, config = runner.decoder, best_configs(arguments.output)["float8"][1]

            class GateDecoder(type(present)):  # type: ignore[misc]
                def _gated(self, states: Any, gate_up: Any, _dtype: Any) -> Any:
                    weight, columns = gate_up
                    return to_float8(gated_float8_product(states[0], states[1].view(1, -1), weight, columns, config))

            other = GateDecoder.__new__(GateDecoder)
            other.__dict__ |= present.__dict__
            other._layers = [  # noqa: SLF001
                layer._replace(
                    gate_up=layer.gate_up._replace(
                        matrix=interleaved(layer.gate_up.matrix.view(torch.uint8)).view(torch.float8_e4m3fn),
                        scales=interleaved(layer.gate_up.scales.t()).t().contiguous(),
                    )
                )
                for layer in present._layers  # noqa: SLF001
            ]
            made["gate"] = other
        measure_decoders(arguments, keep, ranker, made)


def part_long(arguments: Namespace, keep: Keep) -> None:
    """Passes of long documents by a graph and without, then calls with both rules."""
    from qwen3_ranker_plugins.engines.attention.layout import pack
    from qwen3_ranker_plugins.engines.packed import size_classes
    from qwen3_ranker_plugins.prompt import EncodedRequest

    never = 1 << 62
    rules = {"graph": never, "now": size_classes._LONG_WORK, "no graph": 0}  # noqa: SLF001
    with gpu_bench.reranker(arguments, **({} if arguments.smoke else {"warm_up": False})) as ranker:
        runner_of(arguments, ranker)
        engine, rng = ranker._lease.engine, np.random.default_rng(5)  # noqa: SLF001
        keep("describe", ranker.describe().as_dict())
        for count, length in LONG:
            documents = rng.integers(0, 100000, size=(count, max(2, length // arguments.scale))).tolist()
            packed = pack([EncodedRequest(rng.integers(0, 100000, size=80).tolist(), documents, [0] * count)])
            first = None
            for name in ("graph", "no graph"):
                with try_(keep, "passes", f"{count} x {length}", name):
                    size_classes._LONG_WORK = rules[name]  # noqa: SLF001
                    row = wall_ms(arguments, lambda packed=packed: engine.forward(packed), arguments.repeat)
                    margins = engine.forward(packed).float().cpu().numpy().copy()
                    first = margins if first is None else first
                    row["between"] = float(np.abs(margins - first).max())
                    keep("passes", f"{count} x {length}", name, row)
        for label in LONG_CALLS:
            documents = gpu_long_documents.documents_of(label, arguments.scale)
            first = None
            for name in ("graph", "now"):
                if name == "graph" and label == "50 x 6240 tokens":
                    continue
                with try_(keep, "calls", label, name):
                    size_classes._LONG_WORK = rules[name]  # noqa: SLF001
                    call = lambda n, d=documents, k=label: ranker.rerank(query(k, n), d)  # noqa: E731
                    for number in range(4):  # prepares the size classes that the calls use
                        call(number + 1000)
                    row = gpu_bench.milliseconds(call, min(arguments.repeat, 5 if label[:2] == "50" else 7))
                    hits = ranker.rerank(query(label, 0), documents)
                    values = np.array([hit.margin for hit in sorted(hits, key=lambda hit: hit.index)])
                    first = values if first is None else first
                    row["between"] = float(np.abs(values - first).max())
                    keep("calls", label, name, row)


def part_profile(arguments: Namespace, keep: Keep) -> None:
    """Kernels of a pass, and the gaps between them."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = arguments.device == "cuda"
    with gpu_bench.reranker(arguments, **({"warm_up": False} if on_gpu else {})) as ranker:
        runner, engine = runner_of(arguments, ranker), ranker._lease.engine  # noqa: SLF001
        cases = {"32k, 384": gpu_long_documents.one_length(arguments, engine, 384)}
        cases["1000 titles"] = packed_case(ranker, "1000 titles", arguments.scale)[1]
        cases["4 x 8000"] = gpu_long_documents.one_length(arguments, engine, 8000)
        for label, packed in cases.items():
            with try_(keep, "profile", label):
                keep("wall", label, wall_ms(arguments, lambda packed=packed: engine.forward(packed), arguments.repeat))
                write = wall_ms(arguments, lambda packed=packed: written(runner, packed), arguments.repeat)
                keep("write", label, write["host_ms"])
                if on_gpu:
                    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
                        engine.forward(packed)
                        torch.cuda.synchronize()
                    keep("profile", label, busy_and_gaps(profiled))


def written(runner: Any, packed: Any) -> None:
    """What `SizeClassRunner.run` does before the first kernel."""
    length = max(length for length in runner._buffers)  # noqa: SLF001
    with torch.inference_mode():
        runner._buffers[length].write(packed, runner.decoder.shortest_long)  # noqa: SLF001


def busy_and_gaps(profiled: Any) -> dict[str, Any]:
    """Milliseconds: from the first to the last kernel, by kernel, and gaps by the kernels around them."""
    events = [each for each in profiled.events() if each.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda each: each.time_range.start)
    kernels: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    gaps: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    end = events[0].time_range.start
    name = ""
    for each in events:
        start = each.time_range.start
        if start > end:
            entry = gaps[f"{name[:40]} -> {each.name[:40]}"]
            entry[0] += 1
            entry[1] += (start - end) / 1000
        entry = kernels[each.name[:90]]
        entry[0] += 1
        entry[1] += (each.time_range.end - start) / 1000
        end, name = max(end, each.time_range.end), each.name

    def longest(found: dict[str, list[float]], most: int) -> list[Any]:
        order = sorted(found.items(), key=lambda item: -item[1][1])
        return [(key, count, round(spent, 3)) for key, (count, spent) in order[:most]]

    return {
        "span_ms": round((end - events[0].time_range.start) / 1000, 3),
        "busy_ms": round(sum(spent for _, spent in kernels.values()), 3),
        "launches": len(events),
        "kernels": longest(kernels, 25),
        "gaps": longest(gaps, 12),
    }


# --- running parts --------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Namespace, Keep], None]] = {
    "compile": part_compile,
    "kernels": part_kernels,
    "titles": part_titles,
    "long": part_long,
    "float8": part_float8,
    "profile": part_profile,
    "reference": part_reference,
    "compile some": part_compile_some,
}
SECONDS |= {"reference": 40, "compile some": 75}


def command_of(arguments: Namespace, part: str, kept: Path) -> list[str]:
    command = [sys.executable, __file__, str(arguments.output), "--commit", arguments.commit, "--one", part]
    command += ["--kept", str(kept), "--left", str(arguments.ends - time.monotonic())]
    for option in ("model", "shape", "device", "scale", "repeat"):
        command += [f"--{option}", str(getattr(arguments, option))]
    return [*command, *(["--smoke"] if arguments.smoke else [])]


def kept_lines(path: Path) -> Iterator[list[Any]]:
    """What a process kept; the last line may be cut off, because it was killed."""
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def run(arguments: Namespace, part: str, results: dict[str, Any]) -> None:
    """Run a part in a process of its own; whatever it kept until it ended is in `results`."""
    kept, log = (arguments.output.with_suffix(f".part.{ending}") for ending in ("jsonl", "log"))
    kept.write_text("")
    started = time.monotonic()
    until, arguments.ends = arguments.ends, min(arguments.ends, started + SECONDS[part] * (3 if arguments.smoke else 1))
    limit = arguments.ends - started
    if limit < 8:
        why: str | None = f"not run, the {arguments.seconds} seconds are over"
    else:
        why = run_apart(command_of(arguments, part, kept), log, limit, {})
    arguments.ends = until
    found: dict[str, Any] = {}
    for *keys, value in kept_lines(kept):
        place = found
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
    kept.unlink()
    found["seconds"] = round(time.monotonic() - started, 1)
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:] if log.exists() else []
    if why:
        found |= {"ended": why, "log": tail}
    results[part] = found
    print(f"{part}: {why or 'done'} after {found['seconds']} s", *(tail if why else []), sep="\n    ", flush=True)
    report = {"about": gpu_long_documents.about(arguments), "results": results}
    arguments.output.write_text(json.dumps(report) + "\n", encoding="utf-8")


def table(results: dict[str, Any]) -> str:
    """The results in lines for people."""
    lines = []
    for part, found in results.items():
        lines += [f"FAILED {part} {key}: {why[:160]}" for key, why in found.get("failed", {}).items()]
    kernels = results.get("kernels", {})
    for name, variants in kernels.get("errors", {}).items():
        lines.append(f"error {name}: " + ", ".join(f"{variant} {error}" for variant, error in variants.items()))
    for rows, names in kernels.get("us", {}).items():
        for name, variants in names.items():
            lines.append(f"{rows} rows, {name}, us: " + ", ".join(f"{each} {us}" for each, us in variants.items()))
    for part in ("titles", "float8"):
        found = results.get(part, {})
        lines.append(f"{part}: {found.get('configurations')}")
        for turn, labels in found.get("passes", {}).items():
            for label, names in labels.items():
                cells = (
                    f"{n} {r['median_ms']} (host {r['host_ms']}, d {r['to_present']:.4f})" for n, r in names.items()
                )
                lines.append(f"{part} pass {label}, {turn}: " + ", ".join(cells))
        for label, names in found.get("calls", {}).items():
            cells = (f"{n} {r['median_ms']} (float32 {r['to_float32']})" for n, r in names.items())
            lines.append(f"{part} call {label}: " + ", ".join(cells))
    return "\n".join([*lines, *long_lines(results.get("long", {})), *profile_lines(results.get("profile", {}))])


def long_lines(long: dict[str, Any]) -> list[str]:
    lines = []
    for kind in ("passes", "calls"):
        for label, names in long.get(kind, {}).items():
            cells = (f"{n} {r['median_ms']} (host {r.get('host_ms')}) d {r['between']:.4f}" for n, r in names.items())
            lines.append(f"long {kind} {label}: " + ", ".join(cells))
    return lines


def profile_lines(profiled: dict[str, Any]) -> list[str]:
    lines = []
    for label, row in profiled.get("profile", {}).items():
        wall, write = profiled["wall"][label], profiled.get("write", {}).get(label)
        lines.append(
            f"profile {label}: wall {wall['median_ms']}, host {wall['host_ms']}, write {write}, span {row['span_ms']}, "
            f"busy {row['busy_ms']}, launches {row['launches']}"
        )
        lines += [f"    gap {ms:.3f} ms in {count}: {key}" for key, count, ms in row["gaps"][:5]]
        lines += [f"    {ms:8.3f} ms in {count}: {key}" for key, count, ms in row["kernels"][:14]]
    return lines


def parse() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a JSON file")
    parser.add_argument("--commit", required=True, help="what is measured; the GPU host may have no repository")
    parser.add_argument("--model", type=Path, help="folder of an earlier run's model, or where to write one")
    parser.add_argument("--tokenizer", type=Path, help="folder of Qwen3's tokenizer; else package dashscope is needed")
    parser.add_argument("--shape", choices=SHAPES, default="0.6B")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--scale", type=int, default=1, help="divides the numbers of documents")
    parser.add_argument("--seconds", type=int, default=170, help="end after this time")
    parser.add_argument("--smoke", action="store_true", help="a try-out on a CPU, with a tiny model")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS][:-2], help="parts to run, in this order")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--kept", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--left", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.smoke:
        arguments.shape, arguments.device, arguments.scale, arguments.repeat = "tiny", "cpu", 200, 1
    arguments.output = arguments.output.resolve()
    arguments.exact = arguments.output.with_suffix(".exact.json")
    arguments.ends = time.monotonic() + (arguments.left or arguments.seconds)
    if arguments.one:
        with arguments.kept.open("a", encoding="utf-8") as stream:

            def keep(*keys_and_value: Any) -> None:
                stream.write(json.dumps(keys_and_value) + "\n")
                stream.flush()

            PARTS[arguments.one](arguments, keep)
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.model = arguments.model or Path(tempfile.gettempdir()) / f"qwen3-random-{arguments.shape}"
    if not (arguments.model / "config.json").exists():
        arguments.model.mkdir(parents=True, exist_ok=True)
        write_model(arguments.model, arguments.shape, arguments.device, arguments.tokenizer)
    results: dict[str, Any] = {}
    for part in arguments.parts:
        run(arguments, part, results)
    print(table(results))


if __name__ == "__main__":
    main()
