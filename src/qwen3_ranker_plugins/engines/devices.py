"""What "auto" means on this machine."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

from ..errors import InvalidInputError

_logger = logging.getLogger(__name__)


def resolve_device(device: str, dtype: str) -> tuple[str, str]:
    """("cpu" or "cuda:N", name of a dtype) that settings stand for on this machine.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N"; auto takes a GPU if torch sees one.
        dtype: "auto", "float32", "bfloat16" or "float16"; auto is float32 on a CPU and on a GPU the half precision
            that it computes natively.

    Raises:
        InvalidInputError: the device is not there.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    resolved = torch.device(kind)
    if resolved.type == "cuda":
        resolved = torch.device("cuda", resolved.index or 0)
        if (resolved.index or 0) >= torch.cuda.device_count():
            raise InvalidInputError(
                "device", device, f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; use 'cpu'"
            )
    if dtype == "auto":
        # Before compute capability 8, bfloat16 is emulated.
        found = capability(resolved)
        dtype = "float32" if found is None else "bfloat16" if found >= (8, 0) else "float16"
    return str(resolved), dtype


def capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of a GPU, such as (9, 0); None for a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def all_gpus() -> list[str]:
    """The devices that "all" stands for: every GPU that torch sees.

    Raises:
        InvalidInputError: there is none.
    """
    count = torch.cuda.device_count()
    if not count:
        raise InvalidInputError(
            "devices", "all", f"torch {torch.__version__} sees no GPU: leave it out, or name devices such as 'cpu,cpu'"
        )
    return [f"cuda:{number}" for number in range(count)]


@lru_cache(maxsize=1)  # once for a process
def report_idle_gpus(used: int) -> None:
    """Log that some visible GPUs stay idle, and how to use them, if no device was named.

    Args:
        used: number of GPUs that an engine uses, from "cuda:0" on.
    """
    visible = torch.cuda.device_count()
    if 0 < used < visible:
        names = ", ".join(f"cuda:{number}" for number in range(used))
        _logger.warning(
            "%d GPUs are visible and %s is used: set devices='all' (--devices all) to use all of them, or name one "
            "with device='cuda:N'",
            visible,
            names,
        )
