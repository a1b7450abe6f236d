"""How a request's body is read: content coding, then JSON."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from ..prompt import as_utf8
from .errors import ApiError


class JsonRequest(Request):
    """A request whose JSON is read strictly."""

    async def json(self) -> Any:
        """The parsed body. Lone surrogates become U+FFFD, as in the core, because UTF-8 cannot encode them."""
        text = (await self.body()).decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_number, object_pairs_hook=_object)
        if isinstance(value, dict):  # only the request's own fields: values in documents are judged as they are written
            value = {name: _as_integer(each) for name, each in value.items()}
        return _without_surrogates(value) if "\\ud" in text or "\\uD" in text else value


class JsonRoute(APIRoute):
    """A route that reads its body with `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler with `JsonRequest` in place of its request."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handler


class Decoder:
    """Undoes the content coding of a body that arrives in chunks.

    Args:
        coding: the value of Content-Encoding; b"" and b"identity" change nothing.

    Raises:
        ApiError: 415, the coding is not supported.
    """

    def __init__(self, coding: bytes) -> None:
        coding = coding.strip().lower()
        if coding not in (b"", b"identity", b"gzip", b"x-gzip"):
            raise ApiError(
                415,
                "unsupported_media_type",
                "this Content-Encoding is not supported: send the body as gzip or uncompressed",
                param="Content-Encoding",
                headers={"Accept-Encoding": "gzip"},
            )
        self._inflate = None if coding in (b"", b"identity") else _gzip()
        self._empty = True

    def decode(self, chunk: bytes, limit: int) -> bytes:
        """Decode a chunk to at most limit + 1 bytes, so that a small compressed body cannot fill the memory.

        Raises:
            ApiError: 400, the body is not gzip.
        """
        if self._inflate is None or not chunk:
            return chunk
        self._empty = False
        decoded = bytearray()
        try:
            while chunk and len(decoded) <= limit:
                if self._inflate.eof:  # gzip allows several members in a row
                    self._inflate = _gzip()
                decoded += self._inflate.decompress(chunk, limit + 1 - len(decoded))
                chunk = self._inflate.unconsumed_tail or self._inflate.unused_data
        except zlib.error:
            raise _not_gzip() from None
        return bytes(decoded)

    def finish(self) -> None:
        """Check that the body is complete.

        Raises:
            ApiError: 400, the gzip data ended too early.
        """
        if self._inflate is not None and (self._empty or not self._inflate.eof):
            raise _not_gzip()


def _gzip() -> Any:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _not_gzip() -> ApiError:
    return ApiError(400, "invalid_encoding", "Content-Encoding is gzip, but the body is not a complete gzip stream")


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # JSON has no infinity: it would be written as null
        raise ApiError(400, "invalid_json", "the body has a number that is too large")
    return value


def _as_integer(value: Any) -> Any:
    """A number such as 3.0 as an integer: JSON Schema counts every number without a fraction as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53 else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Parse an object; refuse a repeated name, because it would be unclear which of its values is meant."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ApiError(400, "invalid_json", "the body has an object with the same name twice")
    return value


def _refuse_constant(name: str) -> float:
    raise json.JSONDecodeError(f"{name} is not JSON", "", 0)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return as_utf8(value)
    if isinstance(value, list):
        return [_without_surrogates(each) for each in value]
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(each) for name, each in value.items()}
    return value
