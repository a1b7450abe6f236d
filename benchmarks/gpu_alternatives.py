"""Other ways through a layer than the compiled path's, for `gpu_bench.py --part alternatives`.

Each is a `Decoder` that changes one thing, so that its time and its margins can be compared with the engine's own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from qwen3_ranker_plugins.engines.packed.runner import CompiledPasses
from torch.nn.functional import embedding

from benchmarks.gpu_vllm_systems import query
from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
from qwen3_ranker_plugins.engines.attention.flex import TILE
from qwen3_ranker_plugins.engines.attention.layout import PackedPass, Row, length_order, pack
from qwen3_ranker_plugins.engines.packed.buffers import StaticRow, row_length
from qwen3_ranker_plugins.engines.packed.decoder import (
    Decoder,
    DecoderWeights,
    LayerWeights,
    attended,
    gated,
    rms_norm,
    rotated,
)
from qwen3_ranker_plugins.engines.packed.float8 import to_float8
from qwen3_ranker_plugins.prompt import EncodedRequest

Rotation = tuple[torch.Tensor, torch.Tensor]


class Flex(Decoder):
    """Pieces that torch compiles, with FlexAttention, in the place of our own kernels."""

    allows_kernels = False


class WholeLayer(Flex):
    """One compiled function for a whole layer, products included: the residual is added in a kernel of its own."""

    def __init__(self, weights: DecoderWeights, backend: str | Callable[..., Any] = "inductor") -> None:
        super().__init__(weights, backend)
        self._layers = torch.compile(_layers, fullgraph=True, dynamic=False, backend=backend)

    def __call__(self, row: StaticRow) -> torch.Tensor:
        hidden, rotation = embedding(row.token_ids, self.weights.embedding), self._rotation(row)
        *layers, final_layer = self.weights.layers
        sizes = self.weights.heads, self.weights.kv_heads, self.weights.epsilon
        for some in self._parts(layers):
            hidden = self._layers(hidden, some, *rotation, row.mask, *sizes)
        return self._margins(hidden, final_layer, rotation, row)

    def _parts(self, layers: list[LayerWeights]) -> list[tuple[LayerWeights, ...]]:
        return [(layer,) for layer in layers]


class WholeModel(WholeLayer):
    """All layers but the final one in one compiled function."""

    def _parts(self, layers: list[LayerWeights]) -> list[tuple[LayerWeights, ...]]:
        return [tuple(layers)]


def _layer(
    hidden: torch.Tensor, layer: LayerWeights, cosines: torch.Tensor, sines: torch.Tensor, mask: Any,
    heads: int, kv_heads: int, epsilon: float,
) -> torch.Tensor:  # fmt: skip
    products = rms_norm(hidden, layer.input_norm, epsilon) @ layer.query_key_value.t()
    head_dim = len(layer.query_norm)
    # Cut by columns of the matrix and not of its product, see `Decoder._attention`; one product all the same on a GPU.
    query, key, value = (
        part.contiguous().view(1, len(hidden), -1, head_dim)
        for part in products.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    )
    seen = attended(query, key, value, cosines, sines, layer.query_norm, layer.key_norm, mask, epsilon)
    hidden = hidden + seen @ layer.output.t()
    gate_up = rms_norm(hidden, layer.feed_forward_norm, epsilon) @ layer.gate_up.t()
    return hidden + gated(gate_up) @ layer.down.t()


def _layers(
    hidden: torch.Tensor, layers: tuple[LayerWeights, ...], cosines: torch.Tensor, sines: torch.Tensor, mask: Any,
    heads: int, kv_heads: int, epsilon: float,
) -> torch.Tensor:  # fmt: skip
    for layer in layers:
        hidden = _layer(hidden, layer, cosines, sines, mask, heads, kv_heads, epsilon)
    return hidden


class RowChunks(Decoder):
    """The feed-forward part in chunks of rows, so that what one kernel writes is in the L2 cache for the next."""

    rows = 4096

    def _feed_forward(self, hidden: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        for part in hidden.split(self.rows):
            super()._feed_forward(part, layer)  # in place
        return hidden


class Float8(Decoder):
    """Products of float8 (e4m3) with one scale for each row of either side, through torch._scaled_mm."""

    def __init__(self, weights: DecoderWeights, backend: str | Callable[..., Any] = "inductor") -> None:
        names = ("query_key_value", "output", "gate_up", "down")
        layers = []
        self._scales: dict[int, torch.Tensor] = {}
        for layer in weights.layers:
            narrow = {}
            for name in names:
                narrow[name], scales = to_float8(getattr(layer, name))
                self._scales[id(narrow[name])] = scales
            layers.append(layer._replace(**narrow))
        super().__init__(replace(weights, layers=tuple(layers)), backend)
        self._to_float8 = torch.compile(to_float8, fullgraph=True, dynamic=False, backend=backend)

    def compile_for_any_length(self) -> None:
        first = self.weights.layers[0]
        for width in {first.query_key_value.shape[1], first.output.shape[1], first.down.shape[1]}:
            states = first.input_norm.new_zeros(4096, width)
            torch._dynamo.mark_dynamic(states, 0)  # noqa: SLF001
            self._to_float8(states)
        super().compile_for_any_length()

    def _product(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        narrow, scales = self._to_float8(states)
        product: torch.Tensor = torch._scaled_mm(  # noqa: SLF001
            narrow, weight.t(), scales.t(), self._scales[id(weight)], out_dtype=states.dtype, use_fast_accum=True
        )
        return product

    def _add_product(self, hidden: torch.Tensor, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return hidden.add_(self._product(states, weight))


class Varlen(Flex):
    """Two calls of flash attention on sequences of any lengths, their results merged by log-sum-exp.

    One call has every segment attend to itself, causally; the other has the documents of each request attend to their
    prefix. Needs the pass, so call `for_pass` in front of the decoder.
    """

    def __init__(self, weights: DecoderWeights, backend: str | Callable[..., Any] = "inductor") -> None:
        super().__init__(weights, backend)
        self._turned = torch.compile(_turned, fullgraph=True, dynamic=False, backend=backend)
        self._merged = torch.compile(merged, fullgraph=True, dynamic=False, backend=backend)
        self._sequences: tuple[Any, ...] = ()

    def for_pass(self, packed: PackedPass, length: int) -> None:
        """Say where sequences begin and end; outside of what is timed as the forward pass."""
        device = self.weights.embedding.device
        # The padding is one more segment, of a request without a prefix.
        starts = [
            *np.unique(packed.segment_start).tolist(),
            *([packed.num_tokens] if packed.num_tokens < length else []),
        ]
        own = [*starts, length]
        queries, keys, heads = [0], [0], []
        for block in packed.blocks:
            queries += [block.prefix_end, block.end]  # a prefix, which looks at no prefix, and the documents
            keys += [keys[-1], keys[-1] + block.prefix_length]
            heads.append(np.arange(block.prefix_start, block.prefix_end))
        if packed.num_tokens < length:
            queries.append(length)
            keys.append(keys[-1])

        def moved(values: Any) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values), dtype=torch.int32, device=device)

        is_document = np.zeros(length, dtype=bool)
        for block in packed.blocks:
            is_document[block.prefix_end : block.end] = block.prefix_length > 0
        longest = max(b - a for a, b in pairwise(own))
        self._sequences = (
            (moved(own), moved(own), longest, longest),
            (
                moved(queries),
                moved(keys),
                max(b - a for a, b in pairwise(queries)),
                max(b - a for a, b in pairwise(keys)),
            ),
            moved(np.concatenate(heads)),
            torch.as_tensor(is_document, device=device),
        )

    def _attention(self, hidden: torch.Tensor, layer: LayerWeights, rotation: Rotation, row: StaticRow) -> torch.Tensor:  # noqa: ARG002
        weights = self.weights
        products = self._product(self._normed(hidden, layer.input_norm, weights.epsilon), layer.query_key_value)
        by_head = products.view(len(hidden), -1, weights.head_dim)
        query, key, value = torch.split(by_head, [weights.heads, weights.kv_heads, weights.kv_heads], dim=1)
        query, key = self._turned(query, key, *rotation, layer.query_norm, layer.key_norm, weights.epsilon)
        own, to_heads, heads, is_document = self._sequences
        scale = weights.head_dim**-0.5
        one = flash(query, key, value, *own, causal=True, scale=scale)
        other = flash(
            query, key.index_select(0, heads), value.index_select(0, heads), *to_heads, causal=False, scale=scale
        )
        return self._merged(*one, *other, is_document).view(len(hidden), -1)


def _turned(
    query: torch.Tensor, key: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor,
    query_norm: torch.Tensor, key_norm: torch.Tensor, epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    return rotated(query, query_norm, cosines, sines, epsilon), rotated(key, key_norm, cosines, sines, epsilon)


def merged(
    one: torch.Tensor, one_lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor, both: torch.Tensor
) -> torch.Tensor:
    """Attention over two sets of keys: [tokens, heads, head_dim], log-sum-exps [heads, tokens]; `both` [tokens]."""
    share = torch.sigmoid(other_lse - one_lse).t()[:, :, None]
    share = torch.where(both[:, None, None], share, 0.0)
    # Where there is no second set, its result may be anything.
    return (one.float() * (1 - share) + torch.where(both[:, None, None], other.float(), 0.0) * share).to(one.dtype)


def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, query_ends: torch.Tensor, key_ends: torch.Tensor,
    longest_query: int, longest_key: int, *, causal: bool, scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(output [tokens, heads, head_dim], log-sum-exp [heads, tokens]); on a CPU sequence by sequence."""
    if query.is_cuda:
        output, lse, *_ = torch.ops.aten._flash_attention_forward(  # noqa: SLF001
            query, key, value, query_ends, key_ends, longest_query, longest_key, 0.0, causal, False, scale=scale
        )
        return output, lse
    output, lse = torch.zeros_like(query), query.new_full((query.shape[1], len(query)), -torch.inf)
    groups = query.shape[1] // key.shape[1]
    for (start, end), (first, last) in zip(pairwise(query_ends.tolist()), pairwise(key_ends.tolist()), strict=True):
        if start == end or first == last:
            continue
        keys, values = (states[first:last].repeat_interleave(groups, dim=1) for states in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[start:end], keys) * scale
        if causal:
            scores = scores + torch.full_like(scores[0], -torch.inf).triu(diagonal=1)
        lse[:, start:end] = scores.logsumexp(dim=-1)
        output[start:end] = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), values)
    return output, lse


class NarrowTiles(Flex):
    """Block masks whose tiles have half as many columns, to be used with such a row: fewer keys that nobody sees."""

    kernel_options = {"BLOCK_M": 128, "BLOCK_N": 64}  # noqa: RUF012 - nothing changes it


class SharedBeginningRow(StaticRow):
    """A row of `pack_shared`: all tokens see its first `shared` ones, too."""

    def __init__(self, length: int, device: torch.device, shared: int) -> None:
        self.shared = shared
        super().__init__(length, device)
        inner = self.mask.mask_mod

        def sees(batch: torch.Tensor, head: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
            return inner(batch, head, row, column) | ((column < shared) & (column <= row))

        self.mask.mask_mod = sees

    def _tiles(self, *bounds: NDArray[np.int32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        partial, full = super()._tiles(*bounds)
        row, column = (np.arange(self.length // TILE) for _ in range(2))
        return (partial | ((column[None] * TILE < self.shared) & (column[None] <= row[:, None]))) & ~full, full


def shared_beginning(requests: list[EncodedRequest]) -> int:
    """Tokens that the heads of all requests begin with: the system part and an instruction that all have."""
    prefixes = [request.prefix for request in requests]
    shortest = min(map(len, prefixes))
    return next((place for place in range(shortest) if len({prefix[place] for prefix in prefixes}) > 1), shortest)


def pack_shared(requests: list[EncodedRequest]) -> tuple[PackedPass, int]:
    """(a pass that holds what all heads begin with once, in front of everything; how many tokens that is)."""
    shared = shared_beginning(requests)
    row = Row()
    row.begin(requests[0].prefix[:shared])
    for request in requests:
        row.begin(request.prefix[shared:])
        ends = {index: row.add(request.segments[index]) for index in length_order(request)}
        row.last_positions += [ends[index] for index in range(len(ends))]
    packed = row.packed()
    packed.position_ids[shared:] += shared
    return packed, shared


#: Launches of our attention kernel: tokens of a program, keys of a block, warps, stages.
LAUNCHES = (
    *((64, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2), (64, 32, 8, 3), (64, 64, 8, 3), (64, 128, 8, 2)),
    *((32, 64, 4, 2), (32, 32, 4, 3), (32, 64, 4, 3), (128, 64, 8, 2)),
)


def launch(tokens: int, keys: int, warps: int, stages: int) -> type[Decoder]:
    class Launched(Decoder):
        kernel_options = {"tokens": tokens, "block_keys": keys, "num_warps": warps, "num_stages": stages}  # noqa: RUF012

    return Launched


DECODERS: dict[str, type[Decoder]] = {
    "none": Decoder,
    "flex": Flex,
    "whole-layer": WholeLayer,
    "whole-model": WholeModel,
    "row-chunks": RowChunks,
    "narrow-tiles": NarrowTiles,
    "float8": Float8,
    "varlen": Varlen,
    "shared-beginning": Flex,
}


def alternative_rows(name: str, ranker: Any, documents: dict[str, list[str]], repeat: int) -> dict[str, dict[str, Any]]:
    """Label -> time of a pass on the device and margins; `ranker` has the compiled path's weights."""
    engine = ranker._lease.engine  # noqa: SLF001
    passes, encoder = engine._compiled, ranker._encoder  # noqa: SLF001
    requests = {
        label: [encoder.encode(query(label, 0), texts, DEFAULT_INSTRUCTION)] for label, texts in documents.items()
    }
    if name == "whole-model":  # each size class takes minutes to compile
        requests = {"1000 titles": requests["1000 titles"]}
    if name == "shared-beginning":
        titles = documents["1000 titles"][: 10 * max(2, len(documents["1000 titles"]) * 80 // 1000)]
        many = [
            encoder.encode(query("many", n), titles[10 * n : 10 * n + 10] or titles[:10], DEFAULT_INSTRUCTION)
            for n in range(80)
        ][: max(2, len(titles) // 10)]
        requests = {"each head whole": many, "their beginning once": many}
    rows = {}
    with passes._compiling(), torch.inference_mode():  # noqa: SLF001
        if name == "launches":
            for numbers in LAUNCHES:
                decoder = launch(*numbers)(passes.decoder.weights)
                for label in ("100 titles", "1000 titles", "100 chunks"):
                    key = f"{label}, {numbers[0]} tokens, {numbers[1]} keys, {numbers[2]} warps, {numbers[3]} stages"
                    rows[key] = _timed(decoder, requests[label], passes, repeat)
                    print(key, rows[key]["median_ms"], flush=True)
            return rows
        decoder = DECODERS[name](passes.decoder.weights)
        decoder.compile_for_any_length()
        for label, made in requests.items():
            rows[label] = _timed(decoder, made, passes, repeat, once=label == "their beginning once")
            print(name, label, rows[label]["median_ms"], flush=True)
    return rows


def _timed(
    decoder: Decoder, made: list[EncodedRequest], passes: CompiledPasses, repeat: int, *, once: bool = False
) -> dict[str, Any]:
    """A pass of these requests; `once` has what their heads begin with in front of everything."""
    packed, shared = pack_shared(made) if once else (pack(made), 0)
    classes = 8 if decoder.tokens_per_program is None else passes.per_octave
    length = row_length(packed.num_tokens, packed.num_documents, classes, len(packed.blocks))
    columns = TILE // 2 if isinstance(decoder, NarrowTiles) else TILE
    row = (
        SharedBeginningRow(length, passes.device, shared)
        if shared
        else StaticRow(length, passes.device, columns, decoder.tokens_per_program)
    )
    row.write(packed)
    if isinstance(decoder, Varlen):
        decoder.for_pass(packed, length)
    times = [device_milliseconds(decoder, row) for _ in range(repeat + 3)][3:]
    return {
        "median_ms": round(statistics.median(times), 3),
        "times_ms": [round(each, 3) for each in times],
        "packed_tokens": packed.num_tokens,
        "padded_tokens": length,
        "margins": decoder(row)[: min(20, packed.num_documents)].tolist(),
    }


def device_milliseconds(decoder: Decoder, row: StaticRow) -> float:
    """From the first kernel to the last; on a CPU the wall time."""
    if row.token_ids.device.type == "cpu":
        started = time.perf_counter()
        decoder(row)
        return 1000 * (time.perf_counter() - started)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    decoder(row)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
