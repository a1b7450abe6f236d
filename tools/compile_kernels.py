"""Compile every Triton kernel of the engines for GPUs that need not be present, and check that it fits their limits.

    python tools/compile_kernels.py [--capability 75] [--capability 80] [--shape NAME] [--output FILE.json]

The launchers in `engines/` run on tensors without memory. Instead of launching a kernel, they compile it for the
compute capability, with the arguments and tiles that an engine would use: float16 on Turing, bfloat16 on newer GPUs,
with the shapes of Qwen3-Reranker and of the bundled model. The exit code is 1 if a kernel does not compile, does not
fit into a block's shared memory or a thread's registers, or is never launched.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction, KernelInterface

from qwen3_ranker_plugins.engines.attention import triton_nvidia
from qwen3_ranker_plugins.engines.attention.work_items import FIELDS
from qwen3_ranker_plugins.engines.packed import kernels

#: Compute capability -> (shared memory of a thread block in bytes, registers of a streaming multiprocessor), from the
#: table "Technical Specifications per Compute Capability" of NVIDIA's CUDA C++ programming guide.
LIMITS = {75: (64 * 1024, 65536), 80: (163 * 1024, 65536), 86: (99 * 1024, 65536), 89: (99 * 1024, 65536),
          90: (227 * 1024, 65536), 100: (227 * 1024, 65536)}  # fmt: skip
#: Name -> (hidden size, heads, kv heads, head_dim, width of the feed-forward part).
SHAPES = {
    "bundled:tiny": (256, 4, 2, 64, 640),
    "Qwen3-Reranker-0.6B": (1024, 16, 8, 128, 3072),
    "Qwen3-Reranker-4B": (2560, 32, 8, 128, 9728),
    "Qwen3-Reranker-8B": (4096, 32, 8, 128, 12288),
}
_MODULES: tuple[ModuleType, ...] = (triton_nvidia, kernels)
#: From this capability on a GPU computes with float8; `options._FLOAT8_CAPABILITY`.
_FLOAT8 = 89
_TOKENS = 64


@dataclass(frozen=True)
class Compiled:
    """What one kernel needs on one GPU.

    Attributes:
        kernel: its name.
        shape: of the model.
        capability: such as 75.
        warps: of a thread block.
        shared: bytes of shared memory of a thread block.
        registers: of a thread.
        stack: bytes of memory that a thread has for registers that it has no room for.
        blocks: how many thread blocks run at the same time on a multiprocessor as far as registers allow.
        error: why it cannot run; empty if it can.
    """

    kernel: str
    shape: str
    capability: int
    warps: int
    shared: int
    registers: int
    stack: int
    blocks: int
    error: str = ""


class _AbsentGpu:
    """What Triton asks of a driver when it compiles: nothing but which GPU it is for."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return self._capability  # Triton keeps what it has compiled by device

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


def compile_all(capability: int, shapes: Sequence[str] = tuple(SHAPES)) -> Iterator[Compiled]:
    """Every kernel for GPUs of a capability, in some shapes."""
    launched: list[tuple[str, Callable[[], Any]]] = []

    def compiling(kernel: JITFunction[Any], _grid: object) -> Callable[..., None]:
        def launch(*arguments: Any, **settings: Any) -> None:
            launched.append(
                (kernel.fn.__name__, lambda: kernel.run(*arguments, grid=(1,), warmup=True, **settings))
            )  # fmt: skip

        return launch

    KernelInterface.__getitem__ = compiling
    driver.set_active(_AbsentGpu(capability))
    for shape in shapes:
        launched.clear()
        _launch_all(capability, *SHAPES[shape])
        for name, compile_kernel in launched:
            yield _compiled(name, shape, capability, compile_kernel)


def kernels_of(capability: int) -> set[str]:
    """Names of the kernels that have to run on GPUs of a capability. A kernel has a body that stores something."""
    names = {
        each.fn.__name__
        for module in _MODULES
        for each in vars(module).values()
        if isinstance(each, JITFunction) and each.fn.__module__ == module.__name__ and "tl.store" in each.src
    }
    return {name for name in names if capability >= _FLOAT8 or not name.endswith("_float8")}


def _launch_all(capability: int, width: int, heads: int, kv_heads: int, head_dim: int, feed_forward: int) -> None:
    dtype = torch.float16 if capability < 80 else torch.bfloat16

    def states(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=kind, device="meta")

    products = states(_TOKENS, (heads + 2 * kv_heads) * head_dim)
    tokens = states(_TOKENS, kind=torch.int32)
    angles = states(_TOKENS, head_dim // 2, kind=torch.float32)
    shape = {"heads": heads, "kv_heads": kv_heads, "epsilon": 1e-6}
    norm = states(head_dim)
    kernels.rms_norm(states(_TOKENS, width), states(width), 1e-6)
    kernels.gated(states(_TOKENS, 2 * feed_forward))
    kernels.rotate_keys(products, angles, angles, norm, **shape)
    kernels.rotate_keys(products, angles, angles, norm, tokens=tokens, **shape)
    kernels.rotate_queries(products, tokens, angles, angles, norm, heads=heads, epsilon=1e-6)
    kernels.gather_keys(products, tokens, angles, angles, norm, **shape)
    items = states(8, FIELDS, kind=torch.int32)
    tiles = triton_nvidia.tiles_for(divmod(capability, 10))
    triton_nvidia.attend(products, items, tokens, angles, angles, norm, tiles=tiles, **shape)
    if capability >= _FLOAT8:
        kernels.rms_norm_float8(states(_TOKENS, width), states(width), 1e-6)
        kernels.rms_norm_float8(states(_TOKENS, width), states(width), 1e-6, states(_TOKENS, width))
        kernels.gated_float8(states(_TOKENS, 2 * feed_forward))


def _compiled(name: str, shape: str, capability: int, compile_kernel: Callable[[], Any]) -> Compiled:
    try:
        found = compile_kernel()
    except Exception as error:  # noqa: BLE001 - a kernel that fails must not hide the others
        reason = (str(error).strip().splitlines() or [""])[0]
        return Compiled(name, shape, capability, 0, 0, 0, 0, 0, f"{type(error).__name__}: {reason}")
    warps, shared = found.metadata.num_warps, found.metadata.shared
    registers, stack = _registers(found.asm["cubin"])
    allowed, available = LIMITS[capability]
    error = f"needs {shared} bytes of shared memory, where a block has {allowed}" if shared > allowed else ""
    if stack:
        error = error or f"{stack} bytes of registers are spilled"
    blocks = available // (registers * 32 * warps)
    return Compiled(name, shape, capability, warps, shared, registers, stack, blocks, error)


def _registers(cubin: bytes) -> tuple[int, int]:
    """(registers of a thread, bytes of its stack, where registers are spilled to), as cuobjdump says."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.cubin").write_bytes(cubin)
        done = subprocess.run(
            [program, "-res-usage", Path(folder, "kernel.cubin")], check=True, capture_output=True, text=True
        )
    if (found := re.search(r"REG:(\d+) STACK:(\d+)", done.stdout + done.stderr)) is None:
        raise RuntimeError(f"cuobjdump says nothing about registers: {done.stdout}{done.stderr}")
    return int(found[1]), int(found[2])


def report(rows: list[Compiled]) -> str:
    lines = [
        "| GPU | kernel | shape | warps | shared memory | registers | stack | blocks | |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| sm_{row.capability} | {row.kernel} | {row.shape} | {row.warps} | {row.shared} | {row.registers} "
        f"| {row.stack} | {row.blocks} | {row.error or 'fits'} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, action="append", choices=sorted(LIMITS), help="default: 75, 80, 90")
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), help="default: all")
    parser.add_argument("--output", type=Path, help="a file for the table as JSON")
    arguments = parser.parse_args()
    rows: list[Compiled] = []
    missing: list[str] = []
    for capability in arguments.capability or [75, 80, 90]:
        found = list(compile_all(capability, arguments.shape or tuple(SHAPES)))
        rows += found
        launched = {row.kernel for row in found}
        missing += [f"sm_{capability} {name}" for name in sorted(kernels_of(capability) - launched)]
    print(report(rows))
    print(*(f"{name} is never launched here" for name in missing), sep="\n")
    if arguments.output is not None:
        table = {
            "about": {"triton": triton.__version__, "torch": torch.__version__, "limits": LIMITS},
            "rows": [asdict(row) for row in rows],
        }
        arguments.output.write_text(json.dumps(table, indent=1) + "\n")
    return 1 if missing or any(row.error for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
