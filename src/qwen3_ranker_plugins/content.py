"""Hashes of large files: over the whole file, or over samples of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import BinaryIO


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
