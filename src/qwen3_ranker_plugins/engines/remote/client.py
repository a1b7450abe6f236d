"""One request over HTTP: timeouts, retries, readable errors."""

from __future__ import annotations

import asyncio
import html
import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random,
    wait_random_exponential,
)

from ..._version import __version__
from ...errors import RemoteError
from .options import RemoteOptions

_RETRIED_STATUSES = frozenset({429, 502, 503, 504})
#: Bytes. An answer has a few dozen for each document, so a longer body is not an answer.
_LONGEST_ANSWER = 64 * 2**20
_LONGEST_ERROR = 64 * 2**10

_backoff = wait_random_exponential(multiplier=0.25, max=8)
_jitter = wait_random(0, 0.25)


class _RetryableError(RemoteError):
    """A failure after which another attempt may succeed.

    Attributes:
        wait: seconds that the service asked to wait, or None.
    """

    def __init__(self, message: str, status: int | None = None, wait: float | None = None) -> None:
        super().__init__(message, status)
        self.wait = wait


class HttpClient:
    """Posts JSON to one address. Belongs to the event loop in which it is used.

    Args:
        options: address, timeouts, limits.
        api_key: sent as a bearer token; None sends none.
    """

    def __init__(self, options: RemoteOptions, api_key: str | None) -> None:
        self._options = options
        self._api_key = api_key
        headers = {"Content-Type": "application/json", "User-Agent": f"qwen3-ranker-plugins/{__version__}"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._client = httpx.AsyncClient(
            headers=headers,
            # No timeout for a connection of the pool, which has a connection for each of the engine's workers.
            timeout=httpx.Timeout(options.read_timeout, connect=options.connect_timeout, pool=None),
            limits=httpx.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency),
            follow_redirects=False,  # the key must not go to another address
        )

    async def post(self, body: object) -> object:
        """The JSON of the answer.

        Raises:
            RemoteError: no answer in time or after the last attempt, an error status, or a body that is not JSON.
        """
        options = self._options
        content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8")
        failed: list[RemoteError] = []
        attempts = AsyncRetrying(  # one for each call, because it keeps the call's state
            retry=retry_if_exception_type(_RetryableError),
            stop=stop_after_attempt(options.max_attempts) | stop_before_delay(options.total_timeout),
            wait=self._wait,
            reraise=True,
        )
        try:
            async with asyncio.timeout(options.total_timeout):
                return await attempts(self._once, content, failed)
        except _RetryableError as error:
            spent = f"attempt {len(failed)} of {options.max_attempts}"
            raise RemoteError(f"{error} ({spent})", error.status) from error.__cause__
        except TimeoutError as error:
            text = f"{options.endpoint} gave no answer within total_timeout={options.total_timeout:g} s"
            if failed:
                text += f"; before that: {failed[-1]}"
            raise RemoteError(text, failed[-1].status if failed else None) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _once(self, content: bytes, failed: list[RemoteError]) -> object:
        """One attempt; its error is added to `failed` if there may be another attempt."""
        try:
            return await self._attempt(content)
        except _RetryableError as error:
            failed.append(error)
            raise

    async def _attempt(self, content: bytes) -> object:
        endpoint = self._options.endpoint
        try:
            async with self._client.stream("POST", endpoint, content=content) as response:
                status = response.status_code
                limit = _LONGEST_ANSWER if response.is_success else _LONGEST_ERROR
                answer, whole = await _read(response, limit)
        except httpx.ReadTimeout as error:
            raise RemoteError(f"{endpoint} sent nothing for read_timeout={self._options.read_timeout:g} s") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.WriteError) as error:
            raise _RetryableError(f"{endpoint} cannot be reached: {_reason(error)}") from error
        except httpx.RemoteProtocolError as error:
            raise _RetryableError(f"{endpoint} sent no valid HTTP response: {_reason(error)}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RemoteError(f"request to {endpoint} failed: {_reason(error)}") from error
        if status in _RETRIED_STATUSES:
            wait = retry_after(response.headers.get("Retry-After"))
            raise _RetryableError(self._refusal(response, answer), status, wait)
        if not response.is_success:
            raise RemoteError(self._refusal(response, answer), status)
        if not whole:
            raise RemoteError(f"{endpoint} answered with more than {_LONGEST_ANSWER} bytes", status)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise RemoteError(f"{endpoint} gave an answer that is not JSON: {self._shown(response, answer)}") from error

    def _wait(self, state: RetryCallState) -> float:
        """Seconds until the next attempt: what the service asked for, or exponential backoff; both with jitter."""
        error = None if state.outcome is None else state.outcome.exception()
        asked = error.wait if isinstance(error, _RetryableError) else None
        longest = self._options.max_retry_wait
        return min(_backoff(state), longest) if asked is None else min(asked, longest) + _jitter(state)

    def _refusal(self, response: httpx.Response, answer: bytes) -> str:
        options, status = self._options, response.status_code
        text = f"{options.endpoint} answered {status} {message(response.reason_phrase, longest=40)}".rstrip()
        if shown := self._shown(response, answer):
            text += f": {shown}"
        if status in (401, 403):
            text += f"; is the key in the variable {options.api_key_env} right?"
        elif 300 <= status < 400:
            text += "; redirects are not followed: set engine_options['url'] to the address that it leads to"
        elif status in (404, 405):
            text += f"; is it a service of kind {options.kind!r} that knows model {options.served_model!r}?"
        return text

    def _shown(self, response: httpx.Response, answer: bytes) -> str:
        """The service's own message, in one line, without our key."""
        text = message(answer.decode("utf-8", "replace"), is_html="html" in response.headers.get("Content-Type", ""))
        return text if self._api_key is None else text.replace(self._api_key, "***")


async def _read(response: httpx.Response, limit: int) -> tuple[bytes, bool]:
    """(the body up to about `limit` bytes, whether that is the whole body)."""
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > limit:
            return bytes(content), False
    return bytes(content), True


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait, given as a number or as a date; None if it cannot be read."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None


def message(body: str, *, is_html: bool = False, longest: int = 200) -> str:
    """The readable part of an error's body, in one line of at most `longest` characters."""
    text = body
    try:
        parsed = json.loads(body)
    except ValueError:
        if is_html or body.lstrip()[:1] == "<":
            title = re.search(r"<title[^>]*>(.*?)</title>", body, re.IGNORECASE | re.DOTALL)
            without_code = re.sub(r"<(script|style)\b.*?</\1>", " ", body, flags=re.IGNORECASE | re.DOTALL)
            text = html.unescape(title.group(1) if title else re.sub(r"<[^>]*>", " ", without_code))
    else:
        text = _message(parsed)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _message(parsed: object) -> str:
    """The text under the names that services use for it."""
    if isinstance(parsed, list) and parsed:
        return _message(parsed[0])
    if isinstance(parsed, dict):
        for name in ("message", "msg", "error", "detail", "title"):
            if parsed.get(name):
                return _message(parsed[name])
    return parsed if isinstance(parsed, str) else json.dumps(parsed)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
