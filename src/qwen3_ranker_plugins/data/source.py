"""The base class of all inputs: each iteration gives the pairs from the beginning."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from ..content import LIGHT, THOROUGH
from ..errors import InvalidInputError
from .files import InputFile, content_hash
from .pairs import Pair, checked, unusable

#: (query_id, doc_id, query, document)
PairTuple = tuple[str, str, str, str]

#: If this many records at the start of an input are all unusable, the whole input is refused.
FIRST_RECORDS = 100


class Source(ABC):
    """A source of pairs. Every run reads it from the beginning, so that windows are the same each time.

    Attributes:
        fields_seen: names of the fields in the first records, for error messages.
    """

    def __init__(self) -> None:
        self.fields_seen: dict[str, None] = {}

    @abstractmethod
    def __iter__(self) -> Iterator[Pair]:
        """The pairs from the beginning."""

    @abstractmethod
    def fraction(self) -> float:
        """How much of the input has been read, from 0 to 1."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What must be unchanged for a job to be resumed: name -> value. Based on contents, not on names or times."""

    def former_identity(self) -> dict[str, str]:
        """The identity in jobs of older versions, which recorded name, size and modification time of files."""
        return {}

    def grown_bytes(self) -> int:
        """Number of bytes that were appended to the files since they were opened; these bytes are not read."""
        return 0

    def paths(self) -> list[Path]:
        """The local files and folders that are read, which no output may replace."""
        return []

    def check_beginning(self) -> None:
        """Read the first records.

        Raises:
            InvalidInputError: all of them are unusable, for example because their fields have other names.
        """
        first = list(islice(self, FIRST_RECORDS))
        if len(first) < FIRST_RECORDS or not all(pair.fault for pair in first):
            return
        seen = f" Fields seen: {', '.join(self.fields_seen)}." if self.fields_seen else ""
        raise InvalidInputError(
            "INPUT",
            f"record {first[0].line}",
            f"the first {FIRST_RECORDS} records are all unusable; in this one, {first[0].fault}.{seen} Give other "
            "names with --columns NAME=FIELD,..., such as qid=query_id,passage=document",
        )


class FileSource(Source):
    """A file.

    Attributes:
        file: location and name of the file.
        size: size in bytes when it was opened; bytes that are appended later are not read.
    """

    def __init__(self, file: InputFile) -> None:
        super().__init__()
        self.file = file
        self.size = file.size()

    def identity(self) -> dict[str, str]:
        """Size and content."""
        return {"input": file_identity(self.file, self.size)}

    def former_identity(self) -> dict[str, str]:
        """Name, size and modification time."""
        return {} if self.file.is_remote else {"input": former_file_identity(Path(self.file.location))}

    def grown_bytes(self) -> int:
        """Bytes that were appended since the file was opened."""
        return max(0, self.file.size() - self.size)

    def paths(self) -> list[Path]:
        """The file, if it is a local one."""
        return [] if self.file.is_remote else [Path(self.file.location)]


class PairsSource(Source):
    """(query_id, doc_id, query, document) tuples in memory."""

    def __init__(self, pairs: Sequence[PairTuple]) -> None:
        super().__init__()
        self._pairs = pairs
        self._read = 0

    def __iter__(self) -> Iterator[Pair]:
        for number, fields in enumerate(self._pairs, start=1):
            self._read = number
            try:
                query_id, doc_id, query, document = fields
            except (TypeError, ValueError):
                yield unusable(number, "needs (query_id, doc_id, query, document)")
            else:
                yield checked(number, query_id, doc_id, query, document)

    def fraction(self) -> float:
        """Fraction of the tuples."""
        return self._read / max(1, len(self._pairs))

    def identity(self) -> dict[str, str]:
        """A hash over all tuples."""
        digest = hashlib.sha256()
        for fields in self._pairs:
            digest.update(repr(fields).encode("utf-8", "backslashreplace"))
        return {"input": f"{len(self._pairs)} pairs, sha256 {digest.hexdigest()[:16]}"}


class ShardsSource(Source):
    """Several files, one after the other. A pair's line is "FILE:LINE"."""

    def __init__(self, shards: Sequence[FileSource], root: Path | None) -> None:
        super().__init__()
        self._shards = shards
        self._root = root
        self._done = 0
        self._sizes = [shard.size for shard in shards]

    def __iter__(self) -> Iterator[Pair]:
        for number, shard in enumerate(self._shards):
            self._done = number
            shard.fields_seen = self.fields_seen
            for pair in shard:
                yield pair._replace(line=f"{shard.file.name}:{pair.line}")
        self._done = len(self._shards)

    def fraction(self) -> float:
        """Fraction of the bytes of all files."""
        read = sum(self._sizes[: self._done])
        if self._done < len(self._shards):
            read += int(self._shards[self._done].fraction() * self._sizes[self._done])
        return read / max(1, sum(self._sizes))

    def identity(self) -> dict[str, str]:
        """Names relative to the folder, sizes and contents. The names determine the order of the files."""
        digest = hashlib.sha256()
        for shard in self._shards:
            content = content_hash(shard.file, shard.size, LIGHT)
            digest.update(f"{shard.file.name} {shard.size} {content}\n".encode())
        return {"input": f"{len(self._shards)} files, {sum(self._sizes)} bytes, sha256 {digest.hexdigest()[:16]}"}

    def grown_bytes(self) -> int:
        """Bytes that were appended to all files together."""
        return sum(shard.grown_bytes() for shard in self._shards)

    def paths(self) -> list[Path]:
        """The files, and the folder that holds them all."""
        return [
            *([] if self._root is None else [self._root]),
            *(path for shard in self._shards for path in shard.paths()),
        ]


def file_identity(file: InputFile, size: int) -> str:
    """Size and hash of the first `size` bytes of a file."""
    sampling = LIGHT if file.is_remote else THOROUGH
    return f"{size} bytes, sha256 {content_hash(file, size, sampling)}"


def former_file_identity(path: Path) -> str:
    """The identity of a file in jobs of older versions: name, size and modification time."""
    status = path.stat()
    return f"{path.name}, {status.st_size} bytes, changed at {status.st_mtime_ns} ns"
