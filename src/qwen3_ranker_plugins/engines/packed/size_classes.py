"""Runs passes through our decoder: buffers and CUDA graphs for each size class, and their warm-up."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import EngineError
from ...prompt import EncodedRequest
from ..attention.layout import pack
from ..attention.varlen import long_work
from .buffers import PassBuffers, size_class, size_classes

if TYPE_CHECKING:
    from ..attention.layout import PackedPass
    from .decoder import Decoder, DecoderWeights
    from .options import PackedOptions

# Tokens of the longest pass that has a CUDA graph. Longer passes keep the GPU busy for longer than the host needs to
# launch them. For 8192 tokens of the 0.6B shape, the GPU needs at least 9 ms, and launching 170 kernels and 110
# products took 12 ms.
_LONGEST_GRAPH = 8192

# A pass is computed without its graph if the squares of its long documents' lengths add up to this. A graph has our
# attention kernel only. For one document of 4000 tokens, the library's kernel saves about as much as is lost because
# the GPU waits for launches: its time grows with the square of a document's length, that of the launches does not.
_LONG_WORK = 4000**2

_TRITON_CACHE = "TRITON_CACHE_DIR"  # Triton and its child processes take the folder from this variable only


def make_runner(
    weights: DecoderWeights,
    device: torch.device,
    capability: tuple[int, int],
    options: PackedOptions,
    token_budget: int,
    *,
    owns_weights: bool,
) -> SizeClassRunner:
    """A runner of our decoder, with the kernels for the device.

    `attention.gpu_kernels` chooses those of attention. A GPU on which the others do not run would get a module like
    `kernels`, chosen here.

    Args:
        weights: on `device`.
        device, options, token_budget: see `SizeClassRunner`.
        capability: compute capability of the device.
        owns_weights: whether nothing else uses the weights, so that they may be reordered.

    Raises:
        EngineError: see `SizeClassRunner.warm_up`.
    """
    from ..attention.gpu_kernels import kernels_for
    from . import kernels
    from .decoder import Decoder
    from .float8 import Float8Decoder
    from .gated_product import choose_product, interleave_gates

    attend, rows, varlen = kernels_for(capability)
    if options.float8:
        decoder: Decoder = Float8Decoder(weights, kernels, attend, varlen, rows)
    else:
        product = choose_product(weights, capability) if owns_weights else None
        if product is not None:
            interleave_gates(weights)
        decoder = Decoder(weights, kernels, attend, varlen, rows, product)
    runner = SizeClassRunner(decoder, device, options, token_budget)
    if options.warm_up:
        runner.warm_up()
    return runner


class QueuedPass:
    """A pass that was given to the device.

    Args:
        margins: float32 [num_documents], on the host.
        written: CUDA event after which the margins are there; None if they already are.
    """

    def __init__(self, margins: torch.Tensor, written: Any = None) -> None:
        self._margins, self._written = margins, written

    def wait_for_margins(self) -> NDArray[np.float32]:
        """Margins, float32 [num_documents], after the device has computed them.

        Raises:
            RuntimeError: the device failed.
        """
        if self._written is not None:
            self._written.synchronize()
        values: NDArray[np.float32] = self._margins.numpy()
        return values


class SizeClassRunner:
    """Runs passes through a decoder, each in the buffers of its size class.

    Several threads may call `queue`. Passes are queued on one stream, one after another, and share its memory in that
    order: a pass is transferred after the previous one has run, and margins leave for the host before the next pass
    overwrites them.

    Args:
        decoder: its weights are on `device`.
        device: a CPU or a GPU.
        options: resolved for the device.
        token_budget: `warm_up` prepares the size classes of passes of at most this many tokens.
    """

    def __init__(self, decoder: Decoder, device: torch.device, options: PackedOptions, token_budget: int) -> None:
        self.decoder = decoder
        self.device = device
        self.per_octave = options.size_classes or 1
        self.lengths = size_classes(token_budget, self.per_octave)
        self._cuda_graphs = bool(options.cuda_graphs)
        self._cache = options.compile_cache
        self._buffers: dict[int, PassBuffers] = {}
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._queueing = threading.Lock()
        # Graphs never run at the same time, so they may share their memory.
        self._pool = torch.cuda.graph_pool_handle() if self._cuda_graphs else None

    def warm_up(self) -> None:
        """Compile the kernels and record the graphs, with a progress bar if standard error is a terminal.

        Raises:
            EngineError: a kernel cannot be compiled, or a CUDA graph cannot be recorded.
        """
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        lengths = {length for length in self.lengths if self._has_graph(length)}
        lengths.add(self.lengths[-1])  # libraries allocate their workspaces at their largest product
        # The longest first: the memory of its graph is enough for all others.
        missing = sorted(lengths - self._buffers.keys(), reverse=True)
        for length in track(missing, "preparing", console=console, transient=True, disable=not console.is_terminal):
            self._prepare(length)

    @torch.inference_mode()
    def queue(self, packed: PackedPass) -> QueuedPass:
        """Give a pass to the device; on a GPU, without waiting for it.

        Raises:
            EngineError: see `warm_up`.
        """
        with self._queueing, self._on_device():
            margins = self.run(packed)
            if self.device.type != "cuda":
                return QueuedPass(margins)
            # In pinned memory, because the host would wait for a copy to other memory. torch reuses such blocks.
            on_host = torch.empty(margins.shape, dtype=margins.dtype, pin_memory=True)
            on_host.copy_(margins, non_blocking=True)
            written: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            written.record()
            return QueuedPass(on_host, written)

    @torch.inference_mode()
    def run(self, packed: PackedPass) -> torch.Tensor:
        """Margins of a pass, float32 [num_documents], on the device, where the next pass overwrites them.

        Not thread-safe; `queue` is.

        Raises:
            EngineError: see `warm_up`.
        """
        length = size_class(packed.num_tokens, packed.num_documents, self.per_octave, len(packed.blocks))
        if length not in self._buffers:
            self._prepare(length)
        buffers = self._buffers[length]
        shortest_long = self.decoder.shortest_long
        with self._on_device():
            if length in self._graphs and (shortest_long is None or long_work(packed, shortest_long) < _LONG_WORK):
                buffers.write(packed)
                graph, margins = self._graphs[length]
                graph.replay()
            else:
                buffers.write(packed, shortest_long)
                margins = self.decoder(buffers)
        return margins[: packed.num_documents]

    def _has_graph(self, length: int) -> bool:
        return self._cuda_graphs and length <= _LONGEST_GRAPH

    def _prepare(self, length: int) -> None:
        """Make the buffers of a size class, and its graph if it has one. The first pass compiles the kernels."""
        # All size classes use the same kernels, so the first one without a graph compiles those for long documents.
        compiles = not self._has_graph(length) and all(map(self._has_graph, self._buffers))
        with self._on_device(), self._compiling(), torch.inference_mode():
            buffers = PassBuffers(length, self.device, self.decoder.tokens_per_item)
            if compiles or length == self.lengths[-1]:
                # Two passes compile the kernels: a document of the full length, which is long if any document can be,
                # and a short one.
                for document in (length - 1, 1):
                    buffers.write(_one_document(document), self.decoder.shortest_long)
                    self.decoder(buffers)
            if self._has_graph(length):
                buffers.write(_one_document(length - 1))
                self._graphs[length] = self._recorded(buffers)
        self._buffers[length] = buffers

    def _recorded(self, buffers: PassBuffers) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """(the graph of a pass, the tensor of margins that its replay writes)."""
        graph = torch.cuda.CUDAGraph()
        try:
            side: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.decoder(buffers)  # libraries allocate memory at their first call on a stream: not in the graph
            torch.cuda.current_stream().wait_stream(side)
            # Other threads of the process may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                margins = self.decoder(buffers)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise EngineError(
                f"a CUDA graph of {buffers.length} tokens cannot be recorded ({str(error).strip().splitlines()[0]}): "
                "set engine_options['cuda_graphs'] to false"
            ) from error
        return graph, margins

    def _on_device(self) -> AbstractContextManager[object]:
        """Make `device` the current device of this thread: streams and graphs belong to the current device."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """Keep compiled code in the folder that the options name.

        Raises:
            EngineError: the compiler failed.
        """
        before = os.environ.get(_TRITON_CACHE)
        if self._cache is not None:
            os.environ[_TRITON_CACHE] = os.path.abspath(os.path.join(self._cache, "triton"))  # noqa: PTH100, PTH118
        try:
            yield
        except Exception as error:
            if not isinstance(error, (CalledProcessError, *_triton_errors())):
                raise
            raise EngineError(
                f"compiling failed ({type(error).__name__}: {str(error).strip().splitlines()[0]}); it needs Triton, a "
                "C compiler and Python's headers: install them, or set engine_options['compile'] to false"
            ) from error
        finally:
            if self._cache is not None:
                if before is None:
                    del os.environ[_TRITON_CACHE]
                else:
                    os.environ[_TRITON_CACHE] = before


def _one_document(length: int) -> PackedPass:
    return pack([EncodedRequest([0], [[0] * length], [0])])


def _triton_errors() -> tuple[type[Exception], ...]:
    """What Triton raises if it cannot compile or launch a kernel; nothing if it is not installed."""
    try:
        from triton.errors import TritonError
    except ImportError:
        return ()
    return (TritonError,)
