"""The environment of a measurement: program, commit, machine and versions, and how busy other processes kept it."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from .._version import __version__
from ..pip_command import installed_version

_LIBRARIES = ("torch", "transformers", "tokenizers", "vllm", "numpy", "ir-measures", "scipy", "matplotlib", "bm25s")

#: A load average per core of more than this, or other processes with this share of the cores' time, disturb a
#: measurement.
_BUSY_LOAD = 0.75
_BUSY_SHARE = 0.25
#: Seconds for which other processes are watched.
_WATCHED = 0.5


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where a result comes from.

    Attributes:
        command: the command line.
        date: date and time in ISO 8601, UTC.
        version, commit: version and commit of this package.
        python, system, processor: their names, as Python and the system report them.
        cores: number of cores that this process may use.
        load_before: load average over one minute, before the measurement.
        busy_before, busy_after: share of these cores' time that other processes took while this one waited, right
            before and right after the measurement; None if it cannot be read.
        gpus: name, driver and memory of each GPU.
        libraries: name -> version.
        engine: `Reranker.describe()`, or the facts of /health.
    """

    command: str
    date: str
    version: str
    commit: str | None = None
    python: str = ""
    system: str = ""
    processor: str = ""
    cores: int | None = None
    load_before: float | None = None
    busy_before: float | None = None
    busy_after: float | None = None
    gpus: list[dict[str, str]] = field(default_factory=list)
    libraries: dict[str, str] = field(default_factory=dict)
    engine: dict[str, str] = field(default_factory=dict)

    def after(self, engine: dict[str, str]) -> Environment:
        """The environment after the measurement, with the facts about the engine."""
        return replace(self, engine=dict(engine), busy_after=busy_share())

    @property
    def warning(self) -> str | None:
        """A warning if the machine was busy with something else; None if it was quiet."""
        signs = []
        if self.load_before is not None and self.load_before > _BUSY_LOAD * (self.cores or 1):
            signs.append(f"load average {self.load_before:.1f} on {self.cores} cores before")
        for share, when in ((self.busy_before, "before"), (self.busy_after, "after")):
            if share is not None and share > _BUSY_SHARE:
                signs.append(f"other processes took {share:.0%} of the cores' time right {when}")
        if not signs:
            return None
        return f"WARNING: the machine was busy ({'; '.join(signs)}): times are too long, and ratios may be wrong"

    @property
    def device_line(self) -> str:
        """The device in one line, for captions and plots."""
        device = self.engine.get("device", "")
        if device in ("", "cpu"):
            device = f"CPU, {self.cores} cores ({self.processor})"
        elif self.gpus:
            device += f", driver {self.gpus[0]['driver_version']}"
        return f"{device}, {self.engine['dtype']}" if "dtype" in self.engine else device

    @property
    def version_line(self) -> str:
        """The versions that may change figures, in one line."""
        libraries = [
            f"{name} {self.libraries[name]}" for name in ("torch", "transformers", "vllm") if name in self.libraries
        ]
        at = ""
        if self.commit:
            head, plus, changes = self.commit.partition("+")
            at = f" at {head[:10]}{plus}{changes}"
        return f"qwen3-ranker-plugins {self.version}{at}, {', '.join(libraries)}; {self.date[:10]}"


def environment() -> Environment:
    """The environment before a measurement; watches other processes for half a second."""
    return Environment(
        command=shlex.join(["qwen3-ranker", *sys.argv[1:]]),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        commit=commit(),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=len(own_cores()) or os.cpu_count(),
        load_before=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        busy_before=busy_share(),
        gpus=gpus(),
        libraries={name: found for name in _LIBRARIES if (found := installed_version(name)) is not None},
    )


def own_cores() -> set[int]:
    """The cores that this process may use; empty if the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def busy_share() -> float | None:
    """Share of our cores' time that other processes use while this one waits; None without psutil."""
    try:
        import psutil
    except ImportError:
        return None
    shares = psutil.cpu_percent(interval=_WATCHED, percpu=True)
    ours = [share for core, share in enumerate(shares) if core in own_cores()] or shares
    return round(float(sum(ours)) / len(ours) / 100, 2)


def commit() -> str | None:
    """The commit of this package's checkout, with "+changes" if its source differs; None outside of one."""
    folder = Path(__file__).parent.parent

    def git(*arguments: str) -> str | None:
        executable = shutil.which("git")
        if executable is None:
            return None
        done = subprocess.run(  # noqa: S603
            [executable, "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may be inside another repository.
    if git("ls-files", "--error-unmatch", "__init__.py") is None or (head := git("rev-parse", "HEAD")) is None:
        return None
    return head + ("+changes" if git("status", "--porcelain", "--", ".") else "")


def gpus() -> list[dict[str, str]]:
    """Name, driver and memory of each NVIDIA GPU, as nvidia-smi reports them."""
    executable = shutil.which("nvidia-smi")
    if executable is None:
        return []
    fields = ("name", "driver_version", "memory.total")
    done = subprocess.run(  # noqa: S603
        [executable, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = (line.split(", ") for line in done.stdout.splitlines()) if done.returncode == 0 else []
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
