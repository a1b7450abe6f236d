"""With an OpenAI-compatible endpoint in the environment, both generators ask it, for the model that is named there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tools.notebooks import ENVIRONMENT, EXAMPLES

ASK = """
import local_generator
from haystack.dataclasses import ChatMessage
print(local_generator.haystack_generator().run([ChatMessage.from_user("hay?")])["replies"][0].text)
print(local_generator.langchain_generator().invoke("lang?").content)
"""


class Endpoint(BaseHTTPRequestHandler):
    """POST /v1/chat/completions: says what it was asked."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
        message = {"role": "assistant", "content": f"asked {body['messages'][-1]['content']!s}"}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        answer["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        answer["usage"] = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[ThreadingHTTPServer]:
    Endpoint.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_endpoint_of_the_environment_takes_over(endpoint: ThreadingHTTPServer) -> None:
    place = {"OPENAI_BASE_URL": f"http://127.0.0.1:{endpoint.server_port}/v1", "OPENAI_MODEL": "some-model"}
    environment = {key: value for key, value in os.environ.items() if key != "OPENAI_API_KEY"}
    environment |= ENVIRONMENT | place | {"OPENAI_API_KEY": "some-key"}
    run = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=EXAMPLES,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == ["asked hay?", "asked lang?"]
    for asked in Endpoint.asked:
        assert asked["path"] == "/v1/chat/completions"
        assert (asked["model"], asked["key"]) == ("some-model", "Bearer some-key")
