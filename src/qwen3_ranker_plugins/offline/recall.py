"""Passes of a job whose scores are in a cache.

The last bits of a margin depend on the documents that share its pass. So a pass is taken from the cache only if exactly
this pass was scored before, and is otherwise scored as a whole. The output of a job then has the same bytes as without
a cache, even if other jobs write to the cache meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain

from ..cache import PASS_BYTES, Entry, ScoreCache
from ..data.pairs import Pair
from ..engines.base import Engine
from ..prompt import EncodedRequest
from ..types import Pieces


@dataclass(frozen=True)
class Lookup:
    """What the cache holds of one pass. A text stands for all pairs that have it, and is named by their first position.

    Attributes:
        keys: key of each text.
        digest: digest of the pass, PASS_BYTES long.
        entries: entry of each text; empty if the pass has to be scored.
    """

    keys: Mapping[int, bytes]
    digest: bytes
    entries: Mapping[int, Entry]


class Recall:
    """Finds passes in a cache, and stores the scores of others there, document by document.

    Args:
        cache: the cache, which rerankers may share: they find the scores of jobs, but do not store passes.
        instruction, pieces: as in the job's settings.
        engine: engine of the job.
    """

    def __init__(self, cache: ScoreCache, instruction: str | None, pieces: Pieces | None, engine: Engine) -> None:
        self._cache = cache
        self._instruction = instruction
        self._pieces = pieces
        # A pass whose pieces exceed these limits is scored in several calls.
        limits = [engine.capabilities.token_budget, engine.capabilities.documents_per_pass]
        self._pass = blake2b(json.dumps([engine.describe().device, limits]).encode(), digest_size=PASS_BYTES)

    def look_up(
        self, pairs: Sequence[Pair], passes: Sequence[tuple[Sequence[EncodedRequest], Sequence[Sequence[list[int]]]]]
    ) -> list[Lookup]:
        """What the cache holds of each pass.

        Args:
            pairs: pairs of the window.
            passes: requests of each pass and, for each of their segments, the positions of the pairs with its document.
        """
        keyed = [self._keys(pairs, indices) for _, indices in passes]
        found = iter(self._cache.get(list(chain.from_iterable(keys.values() for keys, _ in keyed))))
        lookups = []
        for keys, digest in keyed:
            entries = dict(zip(keys, found, strict=False))  # the next ones, one for each key
            same = {first: entry for first, entry in entries.items() if entry is not None and entry.made_in == digest}
            lookups.append(Lookup(keys, digest, same if len(same) == len(keys) else {}))
        return lookups

    def _keys(self, pairs: Sequence[Pair], indices: Sequence[Sequence[list[int]]]) -> tuple[dict[int, bytes], bytes]:
        """The key of each text of a pass, and the digest of the pass."""
        keys: dict[int, bytes] = {}
        digest = self._pass.copy()
        for of_request in indices:
            firsts = list(dict.fromkeys(same[0] for same in of_request))
            texts = [pairs[first].document for first in firsts]
            found = self._cache.keys(pairs[firsts[0]].query, self._instruction, None, self._pieces, texts)
            keys.update(zip(firsts, found, strict=True))
            digest.update(len(found).to_bytes(8, "little") + b"".join(found))
        return keys, digest.digest()

    def remember(self, lookup: Lookup, entries: Iterator[tuple[int, Entry]]) -> None:
        """Store the scores of a pass that was scored in one call.

        Args:
            lookup: the pass.
            entries: first position and entry of each text.
        """
        self._cache.put({lookup.keys[first]: replace(entry, made_in=lookup.digest) for first, entry in entries})

    def close(self) -> None:
        """Finish writing."""
        self._cache.close()
