"""Result files: raw values, and all that is needed to know what was measured, where, and how to do it again."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import InvalidInputError

#: Raised when a file of an earlier version could be misread.
FORMAT = 1

KINDS = ("quality", "throughput", "latency", "matrix", "tune")

_LIBRARIES = ("torch", "transformers", "tokenizers", "vllm", "numpy", "ir-measures", "scipy", "matplotlib", "bm25s")

Result = dict[str, Any]


def new_result(
    kind: str,
    about: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    seed: int | None,
    facts: Mapping[str, str],
) -> Result:
    """A result without values yet.

    Args:
        kind: one of KINDS.
        about: `environment()` from before the measurement.
        settings: what was asked for, as JSON can hold it.
        seed: of every random choice; None if there is none.
        facts: `Reranker.describe().as_dict()`, or what /health says: engine, device, dtype, versions.
    """
    return {
        "kind": kind,
        "format": FORMAT,
        "about": {**about, "engine": dict(facts)},
        "settings": dict(settings),
        "seed": seed,
    }


def environment() -> dict[str, Any]:
    """What is measured on: program, commit, machine, versions, and how busy the machine is without the measurement."""
    return {
        "command": shlex.join(["qwen3-ranker", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpus": gpus(),
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name)) is not None},
    }


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

    # An installed copy may lie below somebody else's repository.
    if git("ls-files", "--error-unmatch", "__init__.py") is None or (head := git("rev-parse", "HEAD")) is None:
        return None
    return head + ("+changes" if git("status", "--porcelain", "--", ".") else "")


def gpus() -> list[dict[str, str]]:
    """Name, driver and memory of each NVIDIA GPU, as nvidia-smi tells them."""
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


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def device_line(result: Result) -> str:
    """Where a result comes from, in one line for captions and plots."""
    about, engine = result["about"], result["about"]["engine"]
    device = engine.get("device", "")
    if device in ("", "cpu"):
        device = f"CPU, {about['cores']} cores ({about['processor']})"
    elif about["gpus"]:
        device += f", driver {about['gpus'][0]['driver_version']}"
    return f"{device}, {engine['dtype']}" if "dtype" in engine else device


def version_line(result: Result) -> str:
    """Versions that move figures, in one line."""
    about = result["about"]
    libraries = [f"{name} {about['libraries'][name]}" for name in ("torch", "transformers", "vllm")
                 if name in about["libraries"]]  # fmt: skip
    at = ""
    if about["commit"]:
        head, plus, changes = about["commit"].partition("+")
        at = f" at {head[:10]}{plus}{changes}"
    return f"qwen3-ranker-plugins {about['version']}{at}, {', '.join(libraries)}; {about['date'][:10]}"


def write_result(path: Path, result: Result) -> None:
    """Write, creating the folder.

    Raises:
        InvalidInputError: it cannot be written there.
    """
    write_text(path, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text, creating the folder.

    Raises:
        InvalidInputError: it cannot be written there.
    """
    make_folder(path.parent)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError("output", str(path), f"{error.strerror}; give a path that can be written") from error


def make_folder(folder: Path) -> None:
    """Create a folder and those above it; done before measuring, so that no measurement is lost.

    Raises:
        InvalidInputError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError("output", str(folder), f"{error.strerror}; give a folder") from error


def read_result(path: Path) -> Result:
    """A file that `write_result` wrote.

    Raises:
        InvalidInputError: it is none, or of another version of the format.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError("FILE", str(path), f"{error.strerror}; give a result file") from error
    except ValueError as error:
        raise InvalidInputError("FILE", str(path), f"is not JSON ({error}); give a result file") from error
    if not isinstance(result, dict) or result.get("kind") not in KINDS or "about" not in result:
        raise InvalidInputError("FILE", str(path), "is not a result of qwen3-ranker bench or tune")
    if result.get("format") != FORMAT:
        raise InvalidInputError("FILE", str(path), f"has format {result.get('format')}, this version reads {FORMAT}")
    return result
