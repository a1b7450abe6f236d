"""The short examples for frameworks run as they stand, in this process, so that the frameworks are imported once."""

from __future__ import annotations

import re
import runpy
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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
    assert re.fullmatch(r"retrieve 3 -> rerank: best 0\.[5-9]\d", first[1])
    assert re.fullmatch(r"retrieve 3 -> rerank: best 0\.[0-4]\d -> retrieve 12 -> rerank: best 0\.[5-9]\d", second[1])
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
