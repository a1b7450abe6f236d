"""The passes of the packed engine's own decoder: size classes, their warm-up, and CUDA graphs for the small ones."""

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
from torch._dynamo.exc import TorchDynamoException

from ...errors import EngineError
from ...prompt import EncodedRequest
from ..attention.flex import many_lengths
from ..attention.layout import pack
from .buffers import StaticRow, row_length, row_lengths

if TYPE_CHECKING:
    from ..attention.layout import PackedPass
    from .decoder import Decoder
    from .options import PackedOptions

# Longer passes keep the GPU busy for longer than the host needs to launch them. At 8192 tokens of the 0.6B shape that
# is 9 ms at the least, and some 170 kernels and 110 calls of compiled pieces were seen to take 12.
_LONGEST_GRAPH = 8192

# torch's compiler, its processes and Triton read nothing else.
_CACHE_VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "", "TRITON_CACHE_DIR": "triton"}


def _triton_errors() -> tuple[type[Exception], ...]:
    """What Triton raises where it cannot compile or launch a kernel; nothing where it is not installed."""
    try:
        from triton.errors import TritonError
    except ImportError:
        return ()
    return (TritonError,)


class Pending:
    """The margins of a pass that a device was given, on their way to the host.

    Args:
        margins: float32 [num_documents], on the host.
        written: when they are there; None if they are.
    """

    def __init__(self, margins: torch.Tensor, written: Any = None) -> None:
        self._margins, self._written = margins, written

    def wait(self) -> NDArray[np.float32]:
        """Margins, float32 [num_documents].

        Raises:
            RuntimeError: the device failed meanwhile.
        """
        if self._written is not None:
            self._written.synchronize()
        values: NDArray[np.float32] = self._margins.numpy()
        return values


class CompiledPasses:
    """Runs passes through a decoder, each in the memory of its size class.

    Several threads may call it. Passes are queued one after another on one stream, where each finds the memory that it
    shares with others free: a row is transferred when the pass before has run, and margins leave for the host before
    the next pass writes its own.

    Args:
        decoder: on `device`.
        device: a CPU or a GPU.
        options: resolved for the device.
        token_budget: passes of up to so many tokens are what `warm_up` prepares.
    """

    def __init__(self, decoder: Decoder, device: torch.device, options: PackedOptions, token_budget: int) -> None:
        self.decoder = decoder
        self.device = device
        self.per_octave = options.size_classes or 1
        if decoder.tokens_per_program is None:  # seconds for each class, and the default was made for our own kernels
            self.per_octave = min(self.per_octave, 16)
        self.lengths = row_lengths(token_budget, self.per_octave)
        self._cuda_graphs = bool(options.cuda_graphs)
        self._cache = options.compile_cache
        self._rows: dict[int, StaticRow] = {}
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._queueing = threading.Lock()
        # One after the other and never at once, so that they may share their memory.
        self._pool = torch.cuda.graph_pool_handle() if self._cuda_graphs else None
        with self._on_device(), self._compiling(), torch.inference_mode():
            decoder.compile_for_any_length()

    def warm_up(self, lengths: list[int] | None = None) -> None:
        """Prepare size classes, by default all that need it, and show a progress bar if standard error is a terminal.

        Raises:
            EngineError: a CUDA graph cannot be recorded.
        """
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        # The longest first: the memory of its graph is enough for all others.
        missing = sorted(set(self._to_prepare() if lengths is None else lengths) - self._rows.keys(), reverse=True)
        for length in track(missing, "preparing", console=console, transient=True, disable=not console.is_terminal):
            self._prepare(length)

    def _to_prepare(self) -> list[int]:
        """What compiled pieces or a graph have to be made for, and the longest, for which libraries allocate."""
        return [length for length in self.lengths if self._needs_preparation(length) or length == self.lengths[-1]]

    def _needs_preparation(self, length: int) -> bool:
        """Whether pieces have to be compiled for this length, or a graph recorded."""
        return self.decoder.tokens_per_program is None or self._records(length)

    def _records(self, length: int) -> bool:
        return self._cuda_graphs and length <= _LONGEST_GRAPH

    @torch.inference_mode()
    def begin(self, packed: PackedPass) -> Pending:
        """Give a pass to the device, and do not wait for it unless it is a CPU.

        Raises:
            EngineError: as `warm_up`.
        """
        with self._queueing, self._on_device():
            margins = self.margins(packed)
            if self.device.type != "cuda":
                return Pending(margins)
            # In pinned memory, without which the copy would wait; torch keeps such blocks and hands them out again.
            on_host = torch.empty(margins.shape, dtype=margins.dtype, pin_memory=True)
            on_host.copy_(margins, non_blocking=True)
            written: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            written.record()
            return Pending(on_host, written)

    @torch.inference_mode()
    def margins(self, packed: PackedPass) -> torch.Tensor:
        """Margins, float32 [num_documents], on the device. They are to be read, or copied there, before the next pass.

        For one thread; `begin` is for several.
        A pass of a size class that was not warmed up is compiled now.

        Raises:
            EngineError: as `warm_up`.
        """
        length = row_length(packed.num_tokens, packed.num_documents, self.per_octave, len(packed.blocks))
        if length not in self._rows:
            if self._needs_preparation(length):
                self._prepare(length)
            else:
                self._rows[length] = self._new_row(length)
        row = self._rows[length]
        with self._on_device():
            row.write(packed)
            if length in self._graphs:
                graph, margins = self._graphs[length]
                graph.replay()
            else:
                margins = self._computed(row)
        return margins[: packed.num_documents]

    def _computed(self, row: StaticRow) -> torch.Tensor:
        if self.decoder.tokens_per_program is not None:
            return self.decoder(row)
        with many_lengths():  # whatever may be compiled after all should be, rather than refused
            return self.decoder(row)

    def _prepare(self, length: int) -> None:
        """Compile for a size class by running a pass of it; record the next one."""
        row = self._new_row(length)
        with self._on_device(), self._compiling(), torch.inference_mode():
            row.write(pack([EncodedRequest([0], [[0] * (length - 1)], [0])]))
            self.decoder(row)
            if self._records(length):
                self._graphs[length] = self._recorded(row)
        self._rows[length] = row

    def _new_row(self, length: int) -> StaticRow:
        return StaticRow(length, self.device, tokens_per_program=self.decoder.tokens_per_program)

    def _recorded(self, row: StaticRow) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """(the graph of a pass, the margins that its replay writes)."""
        graph = torch.cuda.CUDAGraph()
        try:
            side: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.decoder(row)  # what libraries allocate at their first call on a stream is not to be recorded
            torch.cuda.current_stream().wait_stream(side)
            # Other threads of the process may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                margins = self.decoder(row)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise EngineError(
                f"a CUDA graph of {row.length} tokens cannot be recorded ({str(error).strip().splitlines()[0]}): set "
                "engine_options['cuda_graphs'] to false"
            ) from error
        return graph, margins

    def _on_device(self) -> AbstractContextManager[object]:
        """Streams and graphs are those of the current device, which is a property of the thread."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """As many size classes as there are, and their code where the options say.

        Raises:
            EngineError: the compiler fails.
        """
        before = {name: os.environ.get(name) for name in _CACHE_VARIABLES}
        if self._cache is not None:
            for name, folder in _CACHE_VARIABLES.items():
                os.environ[name] = os.path.abspath(os.path.join(self._cache, folder))  # noqa: PTH100, PTH118 - as torch
        try:
            with many_lengths():
                yield
        except Exception as error:
            if not isinstance(error, (TorchDynamoException, CalledProcessError, *_triton_errors())):
                raise
            raise EngineError(
                f"compiling failed ({type(error).__name__}: {str(error).strip().splitlines()[0]}); it needs a C "
                "compiler, and Triton and Python's headers for a GPU: install them, or set engine_options['compile'] "
                "to false"
            ) from error
        finally:
            if self._cache is not None:
                for name, value in before.items():
                    if value is None:
                        del os.environ[name]
                    else:
                        os.environ[name] = value
