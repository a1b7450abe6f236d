"""The scripts run as they stand, in this process, so that the frameworks are imported once."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import uvicorn
import yaml

from qwen3_ranker_plugins.data.demo import load_demo_corpus
from tools.notebooks import ENVIRONMENT, EXAMPLES, NOT_PASSED_ON

pytestmark = pytest.mark.filterwarnings("ignore")  # the scripts set their own, as their users do

QUESTIONS = {text: query_id for query_id, text in load_demo_corpus().queries.items()}


def relevant(question: str) -> set[str]:
    """Passages that answer a question of a script or help, by the demo corpus' judgements."""
    return set(load_demo_corpus().qrels[QUESTIONS[question]])


KEY, STABLE = "Look up a key without an error if it is missing", "Is list sorting stable?"


@pytest.fixture(autouse=True)
def as_a_user_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NOT_PASSED_ON, "QDRANT_URL", "RANKER_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(EXAMPLES)


def run(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def ranked(printed: str) -> list[str]:
    """Ids, best first; their scores must fall."""
    found = re.findall(r"^\[\d\] P\(yes\) (\d\.\d\d)  (\S+)", printed, re.MULTILINE)
    scores = [float(score) for score, _ in found]
    assert scores == sorted(scores, reverse=True)
    return [name for _, name in found]


#: Short version of a notebook -> what it must print: the passage that the reranker puts first, or the count of a job.
SHORT_VERSIONS = {
    "haystack_rag": "[1] P(yes) 0.40  attribute-access-2",
    "langchain_rag": "[1] P(yes) 0.40  attribute-access-2",
    "llamaindex_rag": "[1] P(yes) 0.40  attribute-access-2",
    "large_scale": "pairs scored",
    "serving": "remote: ",
}


@pytest.mark.parametrize("name", SHORT_VERSIONS)
def test_the_short_version_of_a_notebook_is_short_and_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 60
    assert SHORT_VERSIONS[name] in run(name, capsys)


def test_haystack_hybrid_retrieval_in_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("haystack_hybrid", capsys)
    names = ranked(printed)
    assert len(names) == 3
    assert names[0] in relevant(KEY)
    # Two lists of 15 were merged: the joiner saw both.
    count = int(re.search(r"\((\d+) candidates\)", printed)[1])
    assert 15 < count <= 30


def test_langchain_lcel_reranks_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run("langchain_lcel", capsys).splitlines()
    for question, line in zip((KEY, STABLE), lines, strict=True):
        assert line.startswith(question)
        assert re.findall(r"([\w-]+-\d+) \(", line)[0] in relevant(question)


def test_langgraph_agent_widens_its_search_when_the_reranker_is_not_content(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = re.findall(r"^(\S.*)\n  (.*)\n  (\S+): ", run("langgraph_agent", capsys), re.MULTILINE)
    assert re.fullmatch(r"retrieve 3 -> rerank: best 0\.[4-9]\d", first[1])
    assert re.fullmatch(r"retrieve 3 -> rerank: best 0\.[0-3]\d -> retrieve 12 -> rerank: best 0\.[4-9]\d", second[1])
    for question, _, name in (first, second):
        assert name in relevant(question)


def test_qdrant_finds_and_the_reranker_orders(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("qdrant_search", capsys)
    assert "(20 candidates from Qdrant)" in printed
    assert ranked(printed)[0] in relevant(KEY)
    assert re.findall(r"\(was (\d+)\)", printed) != ["1", "2", "3"], "the reranker changed the order"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The app on a real socket."""
    app = runpy.run_path(str(EXAMPLES / "fastapi_app.py"))["app"]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_fastapi_app_serves_callers_at_the_same_time(service: str) -> None:
    questions = [STABLE, KEY] * 2
    with httpx.Client(base_url=service, timeout=60) as client, ThreadPoolExecutor(4) as callers:
        answers = list(
            callers.map(lambda q: client.get("/search", params={"q": q}).raise_for_status().json(), questions)
        )
        assert client.get("/search", params={"q": ""}).status_code == 422
    for question, hits in zip(questions, answers, strict=True):
        assert relevant(question) & {hit["id"] for hit in hits}
        assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    first, again = answers[0], answers[2]  # whatever they shared a pass with
    assert [hit["id"] for hit in first] == [hit["id"] for hit in again]
    assert [hit["score"] for hit in first] == pytest.approx([hit["score"] for hit in again], abs=1e-5)


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


def test_with_an_endpoint_in_the_environment_both_generators_ask_it_for_the_model_named_there(
    endpoint: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from haystack.dataclasses import ChatMessage

    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{endpoint.server_port}/v1")
    monkeypatch.setenv("OPENAI_MODEL", "some-model")
    monkeypatch.setenv("OPENAI_API_KEY", "some-key")
    generators = importlib.import_module("local_generator")
    with_haystack = generators.haystack_generator().run([ChatMessage.from_user("hay?")])
    assert with_haystack["replies"][0].text == "asked hay?"
    assert generators.langchain_generator().invoke("lang?").content == "asked lang?"
    assert len(Endpoint.asked) == 2
    for asked in Endpoint.asked:
        assert asked["path"] == "/v1/chat/completions"
        assert (asked["model"], asked["key"]) == ("some-model", "Bearer some-key")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wrong_scores_are_those_that_are_stored() -> None:
    stored = json.loads((EXAMPLES.parent / "docs" / "results" / "wrong_scores.json").read_text(encoding="utf-8"))
    # As JSON, in which the margins that are keys become texts.
    measured = json.loads(json.dumps(runpy.run_path(str(EXAMPLES / "wrong_scores.py"))["table"]()))
    for name, row in measured["rows"].items():
        assert row == pytest.approx(stored["rows"][name], abs=0.001), name
    assert measured["rows"]["official prompt, one pair at a time"]["largest"] < 1e-4
    assert measured["forged"] == pytest.approx(stored["forged"], abs=0.002)
    assert measured["fallback"] == stored["fallback"]
    assert measured["margins_with_fallback"] == stored["margins_with_fallback"]


def test_compose_names_what_the_script_asks() -> None:
    """Not run here: there is no Docker daemon. tests/remote runs the remote engine, deploy's tests check its image."""
    services = yaml.safe_load((EXAMPLES / "compose.yaml").read_text(encoding="utf-8"))["services"]
    script = (EXAMPLES / "qdrant_search.py").read_text(encoding="utf-8")
    for name in services:
        [port] = services[name]["ports"]
        assert f"http://{port.rpartition(':')[0]}" in script
    dockerfile = EXAMPLES / services["ranker"]["build"]["context"] / services["ranker"]["build"]["dockerfile"]
    assert f"AS {services['ranker']['build']['target']}" in dockerfile.read_text(encoding="utf-8")


def test_every_script_is_listed() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    missing = {path.name for path in EXAMPLES.glob("*.py") if f"({path.name})" not in page}
    assert missing == {"local_generator.py", "passages.py"}, "what scripts share needs no row"
