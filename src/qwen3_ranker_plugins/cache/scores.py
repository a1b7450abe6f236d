"""The cache of scores: what its keys consist of, what an entry holds, and which rerankers share a store."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

from .._version import __version__
from ..config import EngineConfig, RerankerSettings
from ..engines.base import EngineDescription
from ..errors import InvalidInputError
from ..models import model_hash
from ..types import Pieces
from .file import FileStore
from .store import MemoryStore, Store

_KEY_BYTES = 20
_HEADER = struct.Struct("<BI")
_SEGMENT = struct.Struct("<fII")
_RANGE = struct.Struct("<II")
_HAS_PIECES, _COUNTED_ELSEWHERE, _HAS_PASS = 1, 2, 4
#: Length of the digest of a pass.
PASS_BYTES = 8


class Segment(NamedTuple):
    """The score of a document, or of one of its pieces.

    Attributes:
        margin: float32.
        length: number of tokens in its segment, see `EncodedRequest.lengths`.
        truncated: number of tokens cut off its end.
        start, end: its offsets in the document in characters; both 0 if the document was not cut into pieces.
    """

    margin: float
    length: int
    truncated: int
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """What the cache holds for one document and query.

    Attributes:
        prefix_length: number of tokens in the prefix.
        segments: segments of the document, at least one.
        has_pieces: whether the request asked for pieces.
        counted_elsewhere: whether a service counts the tokens of prompts; `length` then does not.
        made_in: digest of the planned pass that scored the document, PASS_BYTES long; empty if the pass was not
            planned.
    """

    prefix_length: int
    segments: Sequence[Segment]
    has_pieces: bool = False
    counted_elsewhere: bool = False
    made_in: bytes = b""

    @property
    def is_sound(self) -> bool:
        """Whether every margin is a number; other entries are never stored."""
        return bool(self.segments) and all(math.isfinite(each.margin) for each in self.segments)

    def pack(self) -> bytes:
        """The entry as bytes, for a store."""
        flags = _HAS_PIECES * self.has_pieces | _COUNTED_ELSEWHERE * self.counted_elsewhere
        flags |= _HAS_PASS * bool(self.made_in)
        packed = [_HEADER.pack(flags, self.prefix_length), self.made_in]
        for each in self.segments:
            packed.append(_SEGMENT.pack(each.margin, each.length, each.truncated))
            if self.has_pieces:
                packed.append(_RANGE.pack(each.start, each.end))
        return b"".join(packed)

    @classmethod
    def unpack(cls, value: bytes) -> Entry:
        """The entry that `pack` has written."""
        flags, prefix_length = _HEADER.unpack_from(value)
        has_pieces, place = bool(flags & _HAS_PIECES), _HEADER.size
        made_in = value[place : place + PASS_BYTES] if flags & _HAS_PASS else b""
        place += len(made_in)
        segments = []
        while place < len(value):
            numbers = _SEGMENT.unpack_from(value, place)
            place += _SEGMENT.size
            if has_pieces:
                numbers += _RANGE.unpack_from(value, place)
                place += _RANGE.size
            segments.append(Segment(*numbers))
        return cls(prefix_length, segments, has_pieces, bool(flags & _COUNTED_ELSEWHERE), made_in)


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Content and counters of a cache. Hits and misses count one reranker, the others all that share the store.

    Attributes:
        entries, bytes: current number and size; for a file they are estimates and include other processes' entries.
            Both are 0 if the file has failed.
        limit: maximum size in bytes.
        hits, misses: number of documents that were found, and that were not.
        evictions: number of entries deleted to make room.
        path: path of the file; None for a cache in memory.
        failure: why the file is no longer used, so that all scores are computed; None while it is used.
    """

    entries: int
    bytes: int
    limit: int
    hits: int
    misses: int
    evictions: int
    path: str | None
    failure: str | None = None

    @property
    def summary(self) -> str:
        """One line for people."""
        where = "in memory" if self.path is None else f"in {self.path}"
        state = f"{self.entries:,} scores, {self.bytes / 1e6:,.1f} of {self.limit / 1e6:,.1f} MB {where}"
        if self.failure is not None:
            state = f"failed, all scores are computed: {self.failure} ({self.path})"
        return f"{state}; {self.hits:,} hits, {self.misses:,} misses, {self.evictions:,} evictions"


class ScoreCache:
    """The scores of one model with one set of settings, in a store that other rerankers may share.

    A key is a digest of everything that a score depends on: package, engine and its options, libraries, device, dtype,
    weights, adapter, prompt, length limits, instruction, query, and the whole document, even if only a part of it is
    read.

    Args:
        settings: settings of the reranker.
        config: configuration of its engine.
        running: `Engine.describe()`.

    Raises:
        InvalidInputError: the file cannot be used, or the model cannot be distinguished from another one after a
            restart.
    """

    def __init__(self, settings: RerankerSettings, config: EngineConfig, running: EngineDescription) -> None:
        if settings.cache is None:
            raise InvalidInputError("cache", None, "give a size")
        if settings.cache_path is not None and config.folder is None:
            raise InvalidInputError(
                "cache_path",
                settings.cache_path,
                f"engine {config.engine!r} has its weights elsewhere, and nothing says whether they are the same after "
                "a restart: give cache alone, which keeps scores in memory",
            )
        self._context = hashlib.blake2b(_context(settings, config, running), digest_size=32).digest()
        path = None if settings.cache_path is None else str(Path(settings.cache_path).expanduser().absolute())
        self._place = _Place(settings.cache, path)
        self._store = _acquire(self._place)
        self._counting = threading.Lock()
        self._hits = self._misses = 0
        self._process = os.getpid()
        self._closed = False

    def keys(
        self,
        query: str,
        instruction: str | None,
        max_document_tokens: int | None,
        pieces: Pieces | None,
        documents: Sequence[str],
    ) -> list[bytes]:
        """The key of each document.

        Args:
            query, instruction, max_document_tokens, pieces: as in the request.
            documents: the whole texts.
        """
        cut = [max_document_tokens, None if pieces is None else astuple(pieces)]
        shared = hashlib.blake2b(self._context, digest_size=_KEY_BYTES)
        for text in (query, json.dumps(instruction), json.dumps(cut)):
            content = text.encode("utf-8", "surrogatepass")
            shared.update(len(content).to_bytes(8, "little") + content)
        keys = []
        for document in documents:
            digest = shared.copy()
            digest.update(document.encode("utf-8", "surrogatepass"))
            keys.append(digest.digest())
        return keys

    def get(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """The entry of each key; None if there is none."""
        if not self._usable:
            return [None] * len(keys)
        found = [None if value is None else Entry.unpack(value) for value in self._store.get(keys)]
        hits = sum(each is not None for each in found)
        with self._counting:
            self._hits += hits
            self._misses += len(found) - hits
        return found

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Store entries; those without a usable margin are left out."""
        if self._usable:
            self._store.put({key: entry.pack() for key, entry in entries.items() if entry.is_sound})

    def statistics(self) -> CacheStatistics:
        """Content and counters."""
        entries, size = self._store.size()
        store = self._store
        return CacheStatistics(
            entries, size, store.limit, self._hits, self._misses, store.evictions, self._place.path, store.failure
        )

    def close(self) -> None:
        """Release the store; the last cache that uses it closes it. Repeated calls have no effect."""
        with self._counting:
            closed, self._closed = self._closed, True
        if not closed and os.getpid() == self._process:
            _release(self._place)

    @property
    def _usable(self) -> bool:
        """False in a forked process, where locks may be held by threads that do not exist there."""
        return not self._closed and os.getpid() == self._process


def _context(settings: RerankerSettings, config: EngineConfig, running: EngineDescription) -> bytes:
    """Everything that a score depends on, except the request."""
    facts = {
        "package": __version__,
        "engine": config.engine,
        "options": config.options,
        "device": config.device.partition(":")[0],
        "dtype": [config.dtype, running.dtype],
        "libraries": dict(running.versions),
        "model": f"named {settings.model}" if config.folder is None else model_hash(config.folder),
        "files": None if config.files is None else config.files.state,
        "adapter": None if config.adapter is None else model_hash(config.adapter, is_adapter=True),
        "form": repr(config.spec),
        "template": settings.template,
        "instruction": settings.instruction,
        "max_length": settings.max_length,
    }
    return json.dumps(facts, sort_keys=True).encode()


class _Place(NamedTuple):
    """Where a store is and how large; rerankers with equal places share one store."""

    limit: int
    path: str | None


class _Shared(NamedTuple):
    store: Store
    users: int


_stores: dict[_Place, _Shared] = {}
_sharing = threading.Lock()


def _acquire(place: _Place) -> Store:
    """The store of a place, created if nothing uses it yet.

    Raises:
        InvalidInputError: see `FileStore`.
    """
    with _sharing:
        shared = _stores.get(place)
        if shared is None:
            store = MemoryStore(place.limit) if place.path is None else FileStore(Path(place.path), place.limit)
            shared = _Shared(store, 0)
        _stores[place] = shared._replace(users=shared.users + 1)
        return shared.store


def _release(place: _Place) -> None:
    with _sharing:
        shared = _stores[place]
        if shared.users > 1:
            _stores[place] = shared._replace(users=shared.users - 1)
            return
        del _stores[place]
    shared.store.close()


def _start_again_in_child() -> None:
    """Forget the stores, which are the parent's, and the lock, which another thread may have held during the fork."""
    global _sharing  # noqa: PLW0603
    _sharing = threading.Lock()
    _of_parent.extend(_stores.values())  # not freed: a connection that is closed here would unlock the parent's file
    _stores.clear()


_of_parent: list[_Shared] = []

if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_start_again_in_child)
