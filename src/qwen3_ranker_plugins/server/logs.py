"""Logs to standard error, one JSON object per line. The texts of requests are never logged."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime

from ..errors import RankerError

logger = logging.getLogger("qwen3_ranker_plugins.server")


class JsonFormatter(logging.Formatter):
    """Fields of a record: time, level, event, and those given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= fields
        if record.exc_info and record.exc_info[1] is not None:
            line |= describe_error(record.exc_info[1])
        return json.dumps(line, default=str)


def describe_error(error: BaseException) -> dict[str, object]:
    """The error's type and its places in the code; also its message, unless that may quote the request."""
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    described: dict[str, object] = {"error": type(error).__name__, "places": places[-8:]}
    if isinstance(error, (RankerError, OSError)) and error.__cause__ is None and not isinstance(error, ValueError):
        described["reason"] = str(error)
    if error.__cause__ is not None:
        described["cause"] = describe_error(error.__cause__)
    return described


def configure(level: str) -> None:
    """Send this server's log and uvicorn's to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("qwen3_ranker_plugins", "uvicorn"):
        each = logging.getLogger(name)
        each.handlers = [handler]
        each.setLevel(level.upper())
        each.propagate = False


def log(level: int, event: str, **fields: object) -> None:
    """Write one line."""
    logger.log(level, event, extra={"fields": fields})
