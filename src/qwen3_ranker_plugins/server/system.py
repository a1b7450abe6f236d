"""Facts about the machine; reading them imports nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def imported(name: str) -> Any:
    """The module; None unless its import has finished (the engine's thread may be importing it)."""
    module = sys.modules.get(name)
    return None if getattr(getattr(module, "__spec__", None), "_initializing", False) else module


def gpu_count() -> int:
    """CUDA devices that torch sees; 0 where torch is not loaded."""
    torch = imported("torch")
    return int(torch.cuda.device_count()) if torch is not None else 0


def gpu_bytes() -> list[int]:
    """Bytes that torch has allocated in this process, for each GPU; empty where it uses none."""
    torch = imported("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [int(torch.cuda.memory_allocated(number)) for number in range(torch.cuda.device_count())]


def memory_usage() -> float | None:
    """Per cent of the machine's memory in use; None where /proc is missing."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return round(100 * (1 - kilobytes["MemAvailable"] / kilobytes["MemTotal"]), 1)


def resident_bytes() -> int | None:
    """Resident memory of this process; None where /proc is missing."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
