"""What vLLM's worker process runs."""

from __future__ import annotations

from ..workers.program import serve
from .runner import Runner


def main(descriptor: int) -> None:
    """Serve the connection with this file descriptor, see `messages`."""
    serve(descriptor, Runner)
