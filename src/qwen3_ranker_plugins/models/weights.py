"""Rows of a tensor straight from safetensors files, without loading a model or importing torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedModelError, remedy_of_reading

# Bytes; the safetensors library has the same limit.
_LONGEST_HEADER = 100_000_000
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}


def read_headers(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Name of each tensor in the folder -> (its file, {"dtype", "shape", "data_offsets", "start"}).

    Raises:
        UnsupportedModelError: a file is damaged, or is not there although something points to it.
    """
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                start = file.read(8)
                if start == b"version ":
                    raise UnsupportedModelError(f"{path} is a git-lfs pointer, not the weights: run `git lfs pull`")
                (length,) = struct.unpack("<Q", start)
                header = json.loads(file.read(min(length, _LONGEST_HEADER)))
        except FileNotFoundError as error:
            raise UnsupportedModelError(
                f"{path} points to {path.readlink()}, which is not there: download the checkpoint again"
                if path.is_symlink()
                else f"{path} is gone: download the checkpoint again"
            ) from error
        except OSError as error:
            raise UnsupportedModelError(f"{path} cannot be read ({error}): {remedy_of_reading(error)}") from error
        except (ValueError, struct.error) as error:
            raise UnsupportedModelError(f"{path} is damaged ({error}): download it again") from error
        for name, entry in header.items():
            if name != "__metadata__":
                found[name] = (path, entry | {"start": 8 + length})
    return found


def read_rows(folder: Path, name: str, rows: Sequence[int] | None) -> NDArray[np.float32] | None:
    """Some rows of a matrix, float32 [rows, width]; a vector is a matrix of one row.

    Args:
        folder: a model folder.
        name: of the tensor.
        rows: their numbers; None for all of them.

    Returns:
        None if there is no such tensor or row, or if its dtype is not F32, F16 or BF16.
    """
    if (found := read_headers(folder).get(name)) is None:
        return None
    path, entry = found
    width = _WIDTHS.get(entry["dtype"])
    if width is None or len(entry["shape"]) not in (1, 2):
        return None
    count, columns = (1, *entry["shape"])[-2:]
    wanted = range(count) if rows is None else rows
    if any(row >= count for row in wanted):
        return None
    values = np.empty((len(wanted), columns), dtype=np.float32)
    with path.open("rb") as file:
        for place, row in enumerate(wanted):
            file.seek(entry["start"] + entry["data_offsets"][0] + row * columns * width)
            raw = file.read(columns * width)
            if entry["dtype"] == "BF16":  # the upper half of a float32
                values[place] = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
            else:
                values[place] = np.frombuffer(raw, "<f4" if width == 4 else "<f2")
    return values
