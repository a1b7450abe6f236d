"""A client of POST /rerank that measures how long a caller waits."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from ...errors import InvalidInputError
from ..errors import BenchError


class Client:
    """A connection to a server that is kept open; it measures the time that the client sees.

    Args:
        url: address of the server, without a route.
        timeout: maximum seconds for one answer.
        api_key: sent as a bearer token; None sends no key.

    Raises:
        InvalidInputError: `url` is not the address of a server.
    """

    def __init__(self, url: str, *, timeout: float, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInputError("url", url, "give the address of a server, such as http://127.0.0.1:8001")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._path = parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def health(self) -> dict[str, Any]:
        """The answer of /health, whatever its status.

        Raises:
            BenchError: there is no answer, or it is not JSON.
        """
        _, answer = self._exchange("GET", "/health", None)
        return answer

    def rerank_ms(self, query: str, documents: Sequence[str]) -> float:
        """Milliseconds from before the request is encoded as JSON to after its answer is decoded.

        Raises:
            BenchError: there is no answer, its status is not 200, or it does not contain all documents.
        """
        started = time.perf_counter()
        body = json.dumps({"query": query, "documents": documents, "top_k": len(documents)}).encode()
        status, answer = self._exchange("POST", "/rerank", body)
        milliseconds = 1000 * (time.perf_counter() - started)
        if status != 200:
            raise BenchError(f"/rerank answered {status}: {json.dumps(answer)[:300]}")
        ranked = answer.get("ranked_documents", answer.get("results"))
        if not isinstance(ranked, list) or len(ranked) != len(documents):
            raise BenchError(f"/rerank answered without {len(documents)} ranked documents: {json.dumps(answer)[:300]}")
        return milliseconds

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _exchange(self, method: str, route: str, body: bytes | None) -> tuple[int, dict[str, Any]]:
        try:
            self._connection.request(method, self._path + route, body, self._headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # the next request opens a new one
            raise BenchError(f"{method} {route}: {type(error).__name__}: {error}") from error
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise BenchError(f"{method} {route} answered {response.status} without JSON: {content[:200]!r}") from error
        if not isinstance(answer, dict):
            raise BenchError(f"{method} {route} answered {response.status} without a JSON object: {content[:200]!r}")
        return response.status, answer
