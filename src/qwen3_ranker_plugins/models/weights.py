"""Rows of a tensor straight from safetensors files, without loading a model or importing torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedModelError
from ..model_files import check_file, find_files, is_listed, reason_and_remedy
from .json_files import read_json, shortened

# Bytes; the safetensors library has the same limit.
_LONGEST_HEADER = 100_000_000
#: dtype -> the unsigned integer of its width, the bits of its exponent.
_EXPONENTS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
#: Name of a tensor -> (its file, {"dtype", "shape", "data_offsets", "start"}).
Headers = dict[str, tuple[Path, dict[str, Any]]]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights; [] if there are none.

    transformers reads model.safetensors if there is one. vLLM reads the files that the index names, or every one.

    Raises:
        UnsupportedModelError: the index is damaged, or names a file that is not there; or there are two sets of files.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not is_listed(index):
        if not is_listed(whole):
            return []
        names = (path.name for path in find_files(folder, "*.safetensors") if not path.name.startswith("adapter_"))
        if strays := sorted(set(names) - {whole.name}):
            raise _ambiguous(folder, strays[0])
        return [whole]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(each, str) for each in shards.values()):
        raise UnsupportedModelError(
            f"{index} says weight_map={shortened(shards)}, which names no file of each tensor: download it again"
        )
    files = [folder / name for name in sorted(set(shards.values()))]
    if is_listed(whole) and files != [whole]:
        raise _ambiguous(folder, f"{index.name}, which names {next(each for each in files if each != whole).name}")
    for path in files:
        if not is_listed(path):
            raise UnsupportedModelError(
                f"{path} is missing, which {index.name} names for {_some(shards, path.name)}: download the file"
            )
    return files


def _ambiguous(folder: Path, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{folder} has model.safetensors and {what}: transformers reads the former, and vLLM the latter; remove the "
        "files that are not the model's"
    )


def _some(shards: dict[str, str], file: str) -> str:
    names = sorted(name for name, each in shards.items() if each == file)
    return names[0] + (f" and {len(names) - 1} other tensors" if len(names) > 1 else "")


def read_headers(folder: Path, *, adapter: bool = False) -> Headers:
    """The tensors of a folder's weights.

    Args:
        folder: a model folder, or an adapter's.
        adapter: whether to read the adapter in the folder instead of the weights.

    Raises:
        UnsupportedModelError: a file is damaged, or is missing although another file refers to it.
    """
    found: Headers = {}
    for path in [folder / "adapter_model.safetensors"] if adapter else weight_files(folder):
        found |= {name: (path, entry) for name, entry in _read_header(path).items()}
    return found


def _read_header(path: Path) -> dict[str, dict[str, Any]]:
    check_file(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _LONGEST_HEADER)))
        header.pop("__metadata__", None)
        due = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        entries = {
            name: {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": entry["data_offsets"]}
            | {"start": 8 + length}
            for name, entry in header.items()
        }
    except OSError as error:
        raise UnsupportedModelError(reason_and_remedy(path, error)) from error
    except (ValueError, struct.error, AttributeError, TypeError, KeyError, IndexError) as error:
        raise UnsupportedModelError(
            f"{path} is damaged (its {size} bytes have no header of safetensors: {error}): download it again"
        ) from error
    if size != due:
        raise UnsupportedModelError(
            f"{path} is damaged (it has {size} bytes, and by its header {due}): download it again"
        )
    return entries


def read_rows(source: Path | Headers, name: str, rows: Sequence[int] | None) -> NDArray[np.float32] | None:
    """Some rows of a matrix, float32 [rows, width]; a vector is a matrix of one row.

    Args:
        source: a model folder, or the headers of its tensors.
        name: of the tensor.
        rows: their numbers; None for all of them.

    Returns:
        None if there is no such tensor or row, or if its dtype is not F32, F16 or BF16.
    """
    if (found := (read_headers(source) if isinstance(source, Path) else source).get(name)) is None:
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


def find_not_finite(folder: Path, *, adapter: bool = False) -> str | None:
    """The first tensor with a value that is not finite, and its file; None if there is none. Reads all weights.

    Tensors in float8 and of whole numbers are not looked at.

    Args:
        folder, adapter: see `read_headers`.
    """
    for name, (path, entry) in read_headers(folder, adapter=adapter).items():
        # Numbers whose exponent has all bits set are infinite or no numbers.
        kind, exponent = _EXPONENTS.get(entry["dtype"], (None, 0))
        if kind is not None:
            first, end = entry["data_offsets"]
            values = np.memmap(path, kind, "r", entry["start"] + first, ((end - first) // np.dtype(kind).itemsize,))
            if ((values & exponent) == exponent).any():
                return f"{name} in {path}"
    return None
