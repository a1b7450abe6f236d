"""Measures the peak memory of a block of code, on the host and on the device, and records how each figure was read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class MemoryPeak:
    """Peaks in MiB, and how each was read; None if there is no figure."""

    host_mib: float | None = None
    host_method: str = ""
    device_mib: float | None = None
    device_method: str | None = None


class PeakMemory:
    """The peak memory of a `with` block, which is in `host` and `device` (MiB) and in `peak` after the block.

    Host: the largest resident size of this process in the block, plus the memory of its child processes at the end.
    Only Linux can reset the largest size; elsewhere it is the largest since the process began, and `host_method` says
    so. Device: the most that torch's allocator had reserved in this process; for an engine in another process, the
    memory that nvidia-smi shows as used on the whole device at the end. None on a CPU.

    Args:
        on_gpu: whether the measured code uses a GPU.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self.host: float | None = None
        self.device: float | None = None
        self.host_method = ""
        self.device_method: str | None = None

    def __enter__(self) -> Self:
        self.host_method = "VmHWM, reset before" if _reset_high_water_mark() else "largest since the process began"
        if (cuda := _cuda()) is not None:
            cuda.reset_peak_memory_stats()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.host = round(_high_water_mark() + _children(), 1)
        if not self._on_gpu:
            return
        cuda = _cuda()
        reserved = 0 if cuda is None else cuda.max_memory_reserved()
        if reserved:
            self.device, self.device_method = round(reserved / 2**20, 1), "torch, reserved by this process"
        elif (used := _used_on_devices()) is not None:
            self.device, self.device_method = used, "nvidia-smi, used on all devices at the end"

    @property
    def peak(self) -> MemoryPeak:
        """The measured peaks."""
        return MemoryPeak(self.host, self.host_method, self.device, self.device_method)


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _high_water_mark() -> float:
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 1024)


def _children() -> float:
    try:
        import psutil
    except ImportError:
        return 0.0
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            total += child.memory_info().rss / 2**20
        except psutil.Error:  # the child has ended meanwhile
            continue
    return total


def _cuda() -> Any:
    """torch.cuda if this process uses it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _used_on_devices() -> float | None:
    executable = shutil.which("nvidia-smi")
    if executable is None:
        return None
    done = subprocess.run(  # noqa: S603
        [executable, "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [row.strip() for row in done.stdout.splitlines() if row.strip().isdecimal()]
    return float(sum(map(int, rows))) if done.returncode == 0 and rows else None
