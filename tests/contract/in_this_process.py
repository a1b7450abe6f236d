"""For scripts that run vLLM's engines in their own process instead of in worker processes.

One import of vLLM, which takes seconds, is then enough for several engines, and a script can reach into them.
"""

from __future__ import annotations

import os
from typing import Any

from qwen3_ranker_plugins.engines.vllm import worker_engine


class InThisProcess:
    """Replaces the engine's worker process. `runner` is that of the latest engine, for scripts that watch its parts."""

    runner: Any
    running = True

    def __init__(self, _program: str, environment: dict[str, str], **_watching: object) -> None:
        os.environ.update(environment)
        self.pid = os.getpid()

    def load(self, message: Any) -> dict[str, str]:
        from qwen3_ranker_plugins.engines.vllm.runner import Runner

        InThisProcess.runner = self.runner = Runner(message)
        facts: dict[str, str] = self.runner.facts()
        return facts

    def call(self, prompts: Any, _reply: object) -> Any:
        return self.runner.score(prompts)

    def close(self) -> None:
        self.runner.close()


def use_no_worker_processes() -> None:
    """To be called by the script before it makes its first engine, and only if it is the main program."""
    worker_engine.WorkerProcess = InThisProcess  # type: ignore[assignment, misc]
