"""The gateway configuration of deploy/litellm, run by a real LiteLLM in the environment of `make clients`."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from qwen3_ranker_plugins import Reranker

from ..server.conftest import DOCUMENTS, QUERY, serving, wait_until

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "litellm" / "config.yaml"
PYTHON = Path(os.environ.get("RANKER_CLIENTS_PYTHON", ROOT / "build" / "clients" / "bin" / "python"))
GATEWAY = PYTHON.with_name("litellm")
TEXTS = [text for text in DOCUMENTS if text]
KEY, MASTER_KEY = "ranker-key-0123456789", "sk-gateway-0123456789"


@pytest.mark.skipif(not GATEWAY.exists(), reason=f"no {GATEWAY}: make clients, or set RANKER_CLIENTS_PYTHON")
def test_the_gateway_ranks_for_each_of_its_names(tmp_path: Path, reranker: Reranker) -> None:
    hits = reranker.rerank(QUERY, TEXTS, 3)
    expected = [(hit.index, pytest.approx(hit.score, abs=1e-4)) for hit in hits]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    log = tmp_path / "gateway.log"
    with serving(keys=(KEY,)) as server, log.open("wb") as out:
        environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
        environment |= {
            "RANKER_URL": server.url,
            "RANKER_KEY": KEY,
            "LITELLM_MASTER_KEY": MASTER_KEY,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would be fetched from elsewhere
        }
        command = [str(GATEWAY), "--config", str(CONFIG), "--host", "127.0.0.1", "--port", str(port)]
        gateway = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path)
        try:
            url = f"http://127.0.0.1:{port}"

            def alive() -> bool:
                assert gateway.poll() is None, log.read_text()[-3000:]
                try:
                    return httpx.get(f"{url}/health/liveliness", timeout=5).status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(alive, 150)
            names = [each["model_name"] for each in yaml.safe_load(CONFIG.read_text())["model_list"]]
            assert len(names) == 3
            for name in names:
                body = {"model": name, "query": QUERY, "documents": TEXTS, "top_n": 3}
                headers = {"Authorization": f"Bearer {MASTER_KEY}"}
                answer = httpx.post(f"{url}/v1/rerank", json=body, headers=headers, timeout=60)
                assert answer.status_code == 200, (name, answer.text)
                results = [(each["index"], each["relevance_score"]) for each in answer.json()["results"]]
                assert results == expected, name
        finally:
            gateway.terminate()
            gateway.wait(60)
