"""What "auto" means on this machine."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

from ..errors import InvalidInputError

_logger = logging.getLogger(__name__)

# Compute capability from which on GPUs compute in bfloat16; on older ones torch emulates it.
_BFLOAT16 = (8, 0)


def resolve_device(device: str, dtype: str) -> tuple[str, str]:
    """The device and the dtype that settings mean on this machine.

    Args:
        device: "auto", "cpu", "cuda", "cuda:N" or the name of another accelerator that torch has, such as "mps" or
            "xpu"; auto takes a CUDA GPU if torch sees one.
        dtype: "auto", "float32", "bfloat16" or "float16"; auto is bfloat16 or float16 on an NVIDIA GPU, whichever the
            GPU computes natively, and float32 elsewhere.

    Returns:
        ("cpu", "cuda:N" or another device of torch, name of a dtype).

    Raises:
        InvalidInputError: the device does not exist, or cannot compute in the dtype.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        resolved = torch.device(kind)
    except RuntimeError as error:
        raise InvalidInputError(
            "device",
            device,
            f"torch {torch.__version__} has no such device: use 'cpu', or install the build of torch that has it",
        ) from error
    if resolved.type == "cuda":
        resolved = torch.device("cuda", resolved.index or 0)
        if (resolved.index or 0) >= torch.cuda.device_count():
            raise InvalidInputError(
                "device", device, f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; use 'cpu'"
            )
    elif resolved.type != "cpu":
        _check_accelerator(device, resolved)
    found = capability(resolved)
    if dtype == "auto":
        dtype = "float32" if found is None else "bfloat16" if found >= _BFLOAT16 else "float16"
    if dtype == "bfloat16" and found is not None and found < _BFLOAT16:
        raise InvalidInputError(
            "dtype",
            dtype,
            f"GPUs of compute capability below 8.0 (here: {found[0]}.{found[1]}) cannot compute in it: use 'float16', "
            "which 'auto' chooses for them, or 'float32'",
        )
    return str(resolved), dtype


def _check_accelerator(given: str, device: torch.device) -> None:
    """Raise an InvalidInputError unless the device is on this machine."""
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or here.type != device.type:
        has = "no accelerator" if here is None else f"{here.type!r}"
        raise InvalidInputError(
            "device",
            given,
            f"torch {torch.__version__} finds {has} here: use 'cpu', or install the build of torch for {device.type!r}",
        )
    if (device.index or 0) >= (count := torch.accelerator.device_count()):
        raise InvalidInputError(
            "device", given, f"torch {torch.__version__} sees {count} devices of that kind; use {device.type!r}"
        )


def capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of an NVIDIA GPU, such as (9, 0); None for any other device.

    torch calls AMD's GPUs "cuda" as well, but their version numbers have another meaning.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability(device)


def all_gpus() -> list[str]:
    """The devices that "all" means: every GPU that torch sees.

    Raises:
        InvalidInputError: there is none.
    """
    count = torch.cuda.device_count()
    if not count:
        raise InvalidInputError(
            "devices", "all", f"torch {torch.__version__} sees no GPU: leave it out, or name devices such as 'cpu,cpu'"
        )
    return [f"cuda:{number}" for number in range(count)]


@lru_cache(maxsize=1)  # logs once in a process
def report_idle_gpus(used: int) -> None:
    """Log that some visible GPUs stay idle, and how to use them, if no device was named.

    Args:
        used: number of GPUs that an engine uses, "cuda:0" and those that follow it.
    """
    visible = torch.cuda.device_count()
    if 0 < used < visible:
        names = ", ".join(f"cuda:{number}" for number in range(used))
        _logger.warning(
            "%d GPUs are visible, but the engine uses only %s: set devices='all' (--devices all) to use all of them, "
            "or name one with device='cuda:N'",
            visible,
            names,
        )
