"""Our server in a process of its own, one for all tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qwen3_ranker_plugins.engines.packed.engine import PackedEngine

from .services import running, vllm_like


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """`qwen3-ranker serve` with the bundled model."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QWEN3_RANKER_")}
    with subprocess.Popen(
        [sys.executable, "-m", "qwen3_ranker_plugins.cli", "serve", "--port", "0", "--strict-model-names"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"OMP_WAIT_POLICY": "passive"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if address := re.search(r"running on (http://[\d.]+:\d+)", line):
                break
        else:
            pytest.fail("the server ended before it listened")
        url = address.group(1)
        deadline = time.monotonic() + 120
        while httpx.get(f"{url}/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url
        process.terminate()
        process.stdout.read()


@pytest.fixture(scope="session")
def templated_vllm_url(tiny: Path, tiny_engine: PackedEngine) -> Iterator[str]:
    with running(vllm_like(tiny, tiny_engine, with_template=True)) as url:
        yield url
