from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from qwen3_ranker_plugins.offline import RerankJob

from .engines import NullEngine

WORDS = "open close file read write list value error module network python string object class return loop".split()


def make_records(pairs: int, documents: int = 10, seed: int = 0) -> list[dict[str, str]]:
    choose = random.Random(seed)
    return [
        {
            "query_id": f"q{number // documents}",
            "doc_id": f"d{number % documents}",
            "query": f"how do I {WORDS[number // documents % 16]} number {number // documents}",
            "document": " ".join(choose.choices(WORDS, k=choose.randint(3, 15))),
        }
        for number in range(pairs)
    ]


def write_jsonl(path: Path, records: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


Job = Callable[..., RerankJob]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job with the null engine and without times, so that equal jobs give equal bytes."""

    def make(source: object, output: str = "out.jsonl", **options: Any) -> RerankJob:
        settings: dict[str, Any] = {"model": "bundled:tiny", "engine_factory": NullEngine, "processing_time": False}
        return RerankJob(source, tmp_path / output, **(settings | options))  # type: ignore[arg-type]

    return make


JOB_SCRIPT = """
import json, sys
from qwen3_ranker_plugins import RankerError
from qwen3_ranker_plugins.offline import RerankJob
from tests.offline import engines
source, output, engine, options = sys.argv[1:]
try:
    RerankJob(source, output, model="bundled:tiny", engine_factory=getattr(engines, engine), processing_time=False,
              window_pairs=64, token_budget=400, **json.loads(options)).run()
except RankerError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class JobProcess:
    """A job in a process of its own, which can be killed. Its messages go to a file: nobody has to read a pipe."""

    def __init__(
        self,
        source: Path,
        output: Path,
        engine: str,
        *,
        first: str = "",
        options: dict[str, object] | None = None,
        **variables: str,
    ) -> None:
        root = Path(__file__).parents[2]
        with tempfile.TemporaryFile("w+") as messages:
            self._messages = os.dup(messages.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-c", first + JOB_SCRIPT, str(source), str(output), engine, json.dumps(options or {})],
                cwd=root,
                env=os.environ | {"PYTHONPATH": f"{root / 'src'}:{root}"} | variables,
                stderr=messages,
            )

    def wait(self) -> tuple[int, str]:
        """(exit code, messages)."""
        code = self.process.wait(120)
        with os.fdopen(self._messages, encoding="utf-8") as messages:
            messages.seek(0)
            return code, messages.read()


def finish_job(source: Path, output: Path, engine: str = "NullEngine") -> None:
    """Run a job to its end."""
    code, messages = JobProcess(source, output, engine).wait()
    assert code == 0, messages


def committed(output: Path) -> tuple[int, int]:
    """(passes, pairs) in the whole lines of a manifest."""
    manifest = output.with_name(f"{output.name}.job") / "manifest"
    lines = manifest.read_bytes().splitlines(keepends=True) if manifest.exists() else []
    whole = [line.split() for line in lines if line.endswith(b"\n")]
    return len(whole), sum(int(fields[8]) for fields in whole)
