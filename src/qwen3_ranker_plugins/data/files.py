"""Reading files: local or at a URL, compressed or not, up to the size that they had when they were opened."""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from ..content import Sampling, add_content
from ..errors import InvalidInputError, MissingDependencyError
from ..pip_command import pip_install
from .pairs import Pair, unusable

#: A longer line is reported and skipped, because a line is held in memory as a whole.
MAX_LINE_BYTES = 64 * 2**20

_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class InputFile:
    """A file that is read from its beginning, perhaps several times.

    Attributes:
        location: a path, or a URL that fsspec can open.
        name: its name in messages.
    """

    location: str
    name: str

    @classmethod
    def local(cls, path: Path) -> InputFile:
        """A local file, with its file name as `name`."""
        return cls(os.fspath(path), path.name)

    @property
    def is_remote(self) -> bool:
        """Whether fsspec opens it."""
        return "://" in self.location

    def open(self) -> BinaryIO:
        """A seekable stream of its bytes."""
        if self.is_remote:
            filesystem, path = open_filesystem(self.location)
            return cast("BinaryIO", filesystem.open(path, "rb"))
        return Path(self.location).open("rb", buffering=0)

    def size(self) -> int:
        """Its current size in bytes."""
        if self.is_remote:
            filesystem, path = open_filesystem(self.location)
            filesystem.invalidate_cache()
            return int(filesystem.info(path)["size"])
        return Path(self.location).stat().st_size


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        MissingDependencyError: fsspec, or the package that knows this protocol, is not installed.
        InvalidInputError: fsspec does not know this protocol.
    """
    try:
        import fsspec
    except ImportError as error:
        raise MissingDependencyError(f"{url} needs fsspec: {pip_install('fsspec')}") from error
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        known = fsspec.registry.known_implementations.get(url.split("://", maxsplit=1)[0], {})
        raise MissingDependencyError(f"{url} cannot be read: {known.get('err', error)}") from error
    except ValueError as error:
        raise InvalidInputError("INPUT", url, str(error)) from error
    return filesystem, str(path)


def matching_files(pattern: str) -> list[InputFile]:
    """The files of a folder (with its subfolders), of a pattern with `*`, or of a URL of either, sorted by path.

    Files whose names begin with a dot or an underscore are left out: file systems and writers of shards use such names
    for metadata (`_SUCCESS`, `_metadata`, `.part-0.crc`).
    """
    root = _fixed_part(pattern)
    if "://" in pattern:
        filesystem, path = open_filesystem(pattern)
        found = filesystem.glob(path) if root != pattern else filesystem.find(path)
        protocol = pattern.split("://", maxsplit=1)[0]
        locations = [f"{protocol}://{each.removeprefix(f'{protocol}://')}" for each in found if filesystem.isfile(each)]
        _, base = open_filesystem(root)
        names = {each: each.split("://", 1)[1].removeprefix(base.rstrip("/")).lstrip("/") for each in locations}
    else:
        paths = glob.glob(pattern, recursive=True) if root != pattern else glob.glob(f"{root}/**", recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        locations = [each for each in paths if Path(each).is_file()]
        names = {each: os.path.relpath(each, root) for each in locations}
    hidden = (".", "_")
    kept = [each for each in locations if not any(part.startswith(hidden) for part in names[each].split("/"))]
    return [InputFile(each, names[each]) for each in sorted(kept)]


def is_pattern(location: str) -> bool:
    """Whether a path or URL contains a wildcard."""
    return any(character in location for character in "*?[")


def _fixed_part(pattern: str) -> str:
    """The folder before the first wildcard; the pattern itself if it has none."""
    if not is_pattern(pattern):
        return pattern
    before = pattern[: min(pattern.index(character) for character in "*?[" if character in pattern)]
    return before.rpartition("/")[0] or ("/" if pattern.startswith("/") else ".")


def content_hash(file: InputFile, size: int, sampling: Sampling) -> str:
    """SHA-256 over the first `size` bytes of a file, or over samples of them: 16 digits."""
    digest = hashlib.sha256()
    with file.open() as stream:
        add_content(digest, stream, size, sampling)
    return digest.hexdigest()[:16]


class Lines:
    """(number from 1, text) of each line that is not blank; an unusable `Pair` replaces a text that cannot be read.

    A file is read up to the size that it had when this object was made, so that a line that is being appended is not
    read in part.

    Args:
        file: the file, which is decompressed if its name ends in .gz or .zst.
    """

    def __init__(self, file: InputFile | Path) -> None:
        self.file = InputFile.local(file) if isinstance(file, Path) else file
        self.size = self.file.size()
        self._read = 0.0

    def __iter__(self) -> Iterator[tuple[int, str | Pair]]:
        with Unpacked(self.file, self.size) as lines:
            number = 0
            try:
                while line := lines.stream.readline(MAX_LINE_BYTES):
                    number += 1
                    if number % 512 == 1:
                        self._read = lines.fraction()
                    if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                        while (line := lines.stream.readline(MAX_LINE_BYTES)) and not line.endswith(b"\n"):
                            pass
                        yield number, unusable(number, f"the line is longer than {MAX_LINE_BYTES} bytes")
                        continue
                    try:
                        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    except UnicodeDecodeError as error:
                        yield number, unusable(number, f"not UTF-8 at byte {error.start} of the line")
                        continue
                    if text and not text.isspace():
                        yield number, text
            except lines.errors as error:
                yield number + 1, unusable(number + 1, f"the {lines.packing} stream breaks off here: {error}")
            self._read = 1.0

    def fraction(self) -> float:
        """How much of the file has been read, from 0 to 1."""
        return min(1.0, self._read)


class Unpacked:
    """The content of a file, decompressed if its name ends in .gz or .zst.

    Attributes:
        stream: its bytes.
        packing: "gzip", "zstd" or "".
        errors: exceptions that reading the stream raises where it is damaged or ends early; empty for a plain file,
            whose read errors are not faults of the input.
    """

    def __init__(self, file: InputFile, size: int) -> None:
        self._size = size
        self._first = _FirstBytes(file.open(), size)
        self.packing, self.errors = "", cast("tuple[type[Exception], ...]", ())
        if file.name.endswith(".gz"):
            # A larger buffer around the decompressed stream would lose its content where the stream is damaged.
            self.stream = cast("BinaryIO", gzip.GzipFile(fileobj=cast("BinaryIO", self._first)))
            self.packing, self.errors = "gzip", (EOFError, OSError, zlib.error)
        elif file.name.endswith(".zst"):
            unpack, error = _zstandard(file.name)
            self.stream = io.BufferedReader(_Zstd(self._first, unpack))
            self.packing, self.errors = "zstd", (EOFError, OSError, error)
        else:
            self.stream = io.BufferedReader(self._first, 2**20)

    def fraction(self) -> float:
        """How much of the compressed bytes has been read, from 0 to 1."""
        return self._first.position / max(1, self._size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self._first.close()


class _FirstBytes(io.RawIOBase):
    """The first `size` bytes of a stream, which may have grown since."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(min(len(buffer), self._size - self.position))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _zstandard(name: str) -> tuple[Callable[[], Any], type[Exception]]:
    try:
        import zstandard
    except ImportError as error:
        raise MissingDependencyError(f"{name} needs zstandard: {pip_install('offline')}") from error
    return lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError


class _Zstd(io.RawIOBase):
    """Decompressed zstd frames. The library's own reader does not report a stream that ends early."""

    def __init__(self, packed: io.RawIOBase, unpack: Callable[[], Any]) -> None:
        self._packed = packed
        self._unpack = unpack
        self._frame: Any = None
        self._rest = b""
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            packed = self._rest or self._packed.read(2**17)
            self._rest = b""
            if not packed:
                if self._frame is not None:
                    raise EOFError("it ends before its end marker")
                return 0
            self._frame = self._unpack() if self._frame is None else self._frame
            self._content = memoryview(self._frame.decompress(packed))
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count


def packing_of(beginning: bytes) -> str:
    """The suffix for a file with these first bytes: ".gz", ".zst", or "" if it is not compressed."""
    return ".gz" if beginning.startswith(_GZIP_MAGIC) else ".zst" if beginning.startswith(_ZSTD_MAGIC) else ""


def plain_name(name: str) -> str:
    """A file name without .gz or .zst."""
    return name.removesuffix(".gz").removesuffix(".zst")


def pyarrow_or_raise() -> None:
    """Raise MissingDependencyError unless pyarrow is installed."""
    if find_spec("pyarrow") is None:
        raise MissingDependencyError(f"Parquet needs pyarrow: {pip_install('offline')}")
