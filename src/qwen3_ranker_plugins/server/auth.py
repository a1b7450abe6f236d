"""API keys."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence


class KeyRing:
    """The keys that open the server; none at all means that it is open.

    Only digests are kept, and every one of them is compared in constant time, so that neither a key's content nor
    its length nor its place shows in the time an answer takes.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def opens(self, authorization: bytes | None, x_api_key: bytes | None) -> bool:
        """Whether one of the headers carries a key: `Bearer KEY`, `Basic` with the key as password, or `X-API-Key`."""
        if not self._digests:
            return True
        candidates = [] if x_api_key is None else [x_api_key]
        scheme, _, value = (authorization or b"").partition(b" ")
        if scheme.lower() == b"bearer":
            candidates.append(value.strip())
        elif scheme.lower() == b"basic":  # what a browser can send: the page asks for user and password
            try:
                candidates.append(base64.b64decode(value.strip(), validate=True).partition(b":")[2])
            except binascii.Error:
                return False
        return any([self._is_key(candidate) for candidate in candidates])  # noqa: C419 - no early end

    def _is_key(self, candidate: bytes) -> bool:
        digest = _digest(candidate)
        return any([hmac.compare_digest(digest, known) for known in self._digests])  # noqa: C419 - no early end


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
