"""Hashes of large files, over the whole file or over samples of it, and the state of the files of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self


@dataclass(frozen=True)
class Sampling:
    """How much of a file its hash covers: all of it up to `whole` bytes, else `samples` evenly spaced blocks."""

    whole: int
    samples: int
    block: int = 2**20


#: For a single local file. The first block of model weights holds the names of all tensors.
THOROUGH = Sampling(whole=64 * 2**20, samples=64)
#: For each of many shards, and for files that are read over a network.
LIGHT = Sampling(whole=4 * 2**20, samples=8, block=2**18)


def add_content(digest: hashlib._Hash, stream: BinaryIO, size: int, sampling: Sampling) -> None:
    """Feed a hash with the first `size` bytes, or with samples of them that include the first and the last block."""
    if size <= sampling.whole:
        left = size
        while left and (block := stream.read(min(sampling.block, left))):
            digest.update(block)
            left -= len(block)
        return
    for sample in range(sampling.samples):
        stream.seek((size - sampling.block) * sample // (sampling.samples - 1))
        digest.update(stream.read(sampling.block))


#: The files of a folder that determine a model's scores: a checkpoint's, an adapter's, or a tokenizer's.
MODEL_FILES = ("config.json", "adapter_config.json", "tokenizer.json", "*.safetensors")


@dataclass(frozen=True)
class ModelFiles:
    """The files that an engine is started from, as they are now.

    Attributes:
        folders: the folders that are read.
        state: first 16 digits of a SHA-256 of the name, the size and the time of the last change of each file. It
            covers all files and not only the newest, because `cp -p`, rsync and tar keep the old times of files.
    """

    folders: tuple[Path, ...]
    state: str

    @classmethod
    def of(cls, *folders: Path) -> Self:
        """The files of these folders."""
        return cls(folders, _state(folders))

    @property
    def have_changed(self) -> bool:
        """Whether a file has changed, appeared or disappeared since this was made."""
        return _state(self.folders) != self.state


def _state(folders: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for number, folder in enumerate(folders):
        for path in sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)}):
            state = path.stat()
            digest.update(f"{number} {path.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
