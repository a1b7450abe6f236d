"""API keys."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from contextlib import suppress


class KeyRing:
    """The keys that the server accepts. Without keys, it accepts every request.

    Only digests are kept. Every digest is compared, in constant time, so that the response time reveals nothing about
    a key's content, length or position.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.replace(keys)

    def replace(self, keys: Sequence[str]) -> None:
        """Accept these keys and no others. Requests that were accepted before are still answered."""
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def opens(self, authorization: bytes | None, x_api_key: bytes | None) -> bool:
        """Whether a header carries a valid key.

        Args:
            authorization: `Bearer KEY`, or `Basic` with the key as password.
            x_api_key: the key. One valid key suffices, even if the other header is invalid.
        """
        if not self._digests:
            return True
        candidates = [] if x_api_key is None else [x_api_key]
        scheme, _, value = (authorization or b"").partition(b" ")
        if scheme.lower() == b"bearer":
            candidates.append(value.strip())
        elif scheme.lower() == b"basic":  # the only scheme for which browsers ask the user
            with suppress(binascii.Error):  # a proxy may have set this header; the other one is still checked
                candidates.append(base64.b64decode(value.strip(), validate=True).partition(b":")[2])
        return any([self._is_key(candidate) for candidate in candidates])  # noqa: C419 - no early end

    def _is_key(self, candidate: bytes) -> bool:
        digest = _digest(candidate)
        return any([hmac.compare_digest(digest, known) for known in self._digests])  # noqa: C419 - no early end


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
