"""How a request's body is read: content coding, then JSON, then its fields."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send

from ..prompt import as_utf8
from .errors import ApiError, from_validation


class JsonRoute(APIRoute):
    """A route that reads its body strictly as JSON, validates it, and calls its endpoint with request and body.

    FastAPI describes the route in the OpenAPI document. Its own way to call an endpoint is replaced, because exit
    stacks, dependencies and response models, which these routes do not use, take as long as everything else.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self._body: TypeAdapter[Any] = TypeAdapter(endpoint.__annotations__["body"])
        self.app = self._respond

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application.

        Raises:
            ApiError: 400 or 422, or what the endpoint raises.
            RankerError: what the endpoint raises.
        """
        request = Request(scope, receive)
        response = await self.endpoint(request, self._validated(parsed(await request.body())))
        await response(scope, receive, send)

    def _validated(self, value: Any) -> Any:
        if value is None:  # an empty body, or null
            raise ApiError(422, "invalid_request", "body: Field required")
        try:
            return self._body.validate_python(value, from_attributes=True)
        except ValidationError as error:
            raise from_validation(error.errors(include_url=False)) from None


def parsed(body: bytes) -> Any:
    """The value of a JSON text; None for an empty one. Lone surrogates become U+FFFD, as in the core.

    Raises:
        ApiError: 400.
    """
    if not body:
        return None
    try:
        text = body.decode("utf-8-sig")
        value = _DECODER.decode(text)
    except json.JSONDecodeError:
        raise ApiError(400, "invalid_json", "the body is not JSON") from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise ApiError(400, "invalid_json", "the body cannot be read as JSON") from None
    if isinstance(value, dict):  # only the request's own fields: values in documents are judged as they are written
        value = {name: _as_integer(each) for name, each in value.items()}
    # Looking for one character takes a hundredth of the time of looking for three.
    has_surrogates = "\\" in text and ("\\ud" in text or "\\uD" in text)
    return _without_surrogates(value) if has_surrogates else value


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


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_refuse_constant)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return as_utf8(value)
    if isinstance(value, list):
        return [_without_surrogates(each) for each in value]
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(each) for name, each in value.items()}
    return value
