"""Load against the real server, and against one whose delays and failures are known."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

from qwen3_ranker_plugins.bench.compare import compare_results
from qwen3_ranker_plugins.bench.errors import BenchError
from qwen3_ranker_plugins.bench.latency.server_process import RunningServer, free_port
from qwen3_ranker_plugins.bench.load.arrivals import Share, in_order, send
from qwen3_ranker_plugins.bench.load.report import load_report
from qwen3_ranker_plugins.bench.load.results import LoadResult, LoadStep, Requests, figures_of, rate_within
from qwen3_ranker_plugins.bench.load.run import LoadPlan, measure_load
from qwen3_ranker_plugins.bench.load.target import Target
from qwen3_ranker_plugins.bench.load.workloads import WORDS, Workload, document_lists
from qwen3_ranker_plugins.bench.machine import Environment
from qwen3_ranker_plugins.bench.report_files import read_result
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.errors import InvalidInputError

from .slow_server import Answer, SlowServer, scores

SMALL = Workload.named("6+5x3")
ABOUT = Environment(command="qwen3-ranker bench load", date="2026-11-29T00:00:00", version="0")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Takes at most ten documents in a request."""
    settings = {"model": "bundled:tiny", "device": "cpu", "log_level": "warning", "max_documents": 10}
    with RunningServer(settings) as running:
        yield running


def measured(url: str, plan: LoadPlan, kind: str = "jina") -> LoadResult:
    return measure_load(Target.at(url, kind), plan, ABOUT)


async def at_once(_number: int, count: int) -> Answer:
    return scores(count)


def test_percentiles_rates_and_failures_of_known_requests() -> None:
    """Requests 0.01 s apart that take 1, 2, ... 200 ms; two of them failed, one after 9 s."""
    requests = Requests(
        scheduled=[round(0.01 * number, 2) for number in range(200)],
        lag_ms=[0.5] * 200,
        milliseconds=[float(number + 1) for number in range(198)] + [5.0, 9000.0],
        shapes=[0] * 200,
        failures={"503 with Retry-After": [198], "timeout": [199]},
        messages={"503 with Retry-After": "busy", "timeout": "no answer in time"},
    )
    found = figures_of(requests, Workload.named("120+180x10"))
    assert (found.requests, found.failed, found.all_failed) == (200, {"503 with Retry-After": 1, "timeout": 1}, 2)
    answered = np.arange(1.0, 199.0)
    assert (found.p50, found.p90, found.p99, found.highest) == (
        *(pytest.approx(np.percentile(answered, q)) for q in (50, 90, 99)), 198.0,
    )  # fmt: skip
    assert found.p99_of_all == 198.0  # two of 200 are slower: the failed ones
    assert found.items_per_second == pytest.approx(10 * 198 / (1.97 + 0.198))
    assert found.lag_p99 == 0.5

    one_more = {**requests.failures, "timeout": [199, 0, 1]}
    worse = figures_of(Requests(**{**vars(requests), "failures": one_more}), Workload.named("120+180x10"))
    assert worse.p99_of_all is None
    assert worse.p99 is not None
    nothing = figures_of(Requests([0.0], [0.0], [5.0], [0], {"timeout": [0]}, {"timeout": "-"}), SMALL)
    assert (nothing.items_per_second, nothing.p50, nothing.p99_of_all) == (0.0, None, None)


@pytest.mark.parametrize(
    ("points", "rate", "how"),
    [
        ([(600, 100.0), (1200, 400.0), (1800, 800.0)], 1350, "interpolated between P99 400 ms at 1,200 and 800 ms"),
        ([(1800, 800.0), (600, 100.0), (1200, 400.0)], 1350, "interpolated"),
        ([(600, 100.0), (1200, None)], 600, "measured; at 1,200 more than 1 % of the requests failed"),
        ([(600, 100.0), (1200, 500.0)], 1200, "at least"),
        ([(600, 501.0), (1200, 400.0)], 0, "beyond the limit even at the lowest rate"),
        (
            [(600, 100.0), (1200, 900.0), (1800, 300.0)],
            900,
            "interpolated between P99 100 ms at 600 and 900 ms at 1,200",
        ),
    ],
)
def test_the_rate_within_the_limit(points: list[tuple[float, float | None]], rate: float, how: str) -> None:
    found = rate_within(points, 500.0)
    assert found is not None
    assert found.items_per_second == pytest.approx(rate)
    assert how in found.how


def test_no_rate_within_the_limit_of_a_closed_loop() -> None:
    assert rate_within([], 500.0) is None


def test_sizes_in_tokens_are_those_of_the_tokenizer(qwen3_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(qwen3_folder / "tokenizer.json"))
    assert {word for word in WORDS if len(tokenizer.encode(f" {word}").ids) != 1} == set()
    workload = Workload.named("120+180x10")
    lists = document_lists(workload.shapes[0], 0)
    counts = [len(tokenizer.encode(f" {document}").ids) for documents in lists for document in documents]
    assert all(144 <= count <= 216 for count in counts)
    assert np.mean(counts) == pytest.approx(180, rel=0.05)
    assert len(lists[0]) == 10
    assert document_lists(workload.shapes[0], 0) == lists
    assert document_lists(workload.shapes[0], 1) != lists


def test_a_deadline_reaches_the_server_and_the_report(server: RunningServer) -> None:
    """Our server obeys it: nothing can be ranked in a microsecond."""
    target = Target.at(server.url)
    plan = LoadPlan(SMALL, rates=[10], seconds=0.5, warmup=0)
    hopeless = measure_load(replace(target, deadline=1e-6), plan, ABOUT)
    assert hopeless.figures["steps"][0]["failed"] == {"status 504": 5}
    assert "Deadline of each request, sent as X-Request-Timeout: 1e-06 s" in load_report(hopeless).lines
    ample = measure_load(replace(target, deadline=60), plan, ABOUT)
    assert ample.failed == 0
    with pytest.raises(InvalidInputError, match="deadline=0: use a positive number of seconds"):
        replace(target, deadline=0)


def test_workloads_by_name() -> None:
    assert Workload.named("1000-titles").items == 1000
    assert Workload.named("100-chunks").shapes[0].item_tokens == 260
    assert Workload.named("mix").items == pytest.approx(0.85 * 10 + 0.1 * 100 + 0.05 * 1000)
    assert len(set(document_lists(Workload.named("30-titles").shapes[0], 0)[0])) == 30
    for name in ("", "120+180", "0+180x10", "120+180x0", "titles", "5-words"):
        with pytest.raises(InvalidInputError, match="use QUERY"):
            Workload.named(name)


def test_open_loop_against_a_server_of_known_delay() -> None:
    """Each answer takes 80 ms from when its request came, whatever else is going on, so that requests overlap."""

    async def later(_number: int, count: int) -> Answer:
        await asyncio.sleep(0.08)
        return scores(count)

    with SlowServer(later) as slow:
        result = measured(slow.url, LoadPlan(SMALL, rates=[20, 40], seconds=1, warmup=2))
    assert [len(step.requests.scheduled) for step in result.steps] == [20, 40]
    for step in result.steps:
        assert step.requests.failures == {}
        assert min(step.requests.milliseconds) >= 80
        assert step.requests.scheduled == sorted(step.requests.scheduled)
        assert all(0 <= moment < 1 for moment in step.requests.scheduled)
        gaps = np.diff(step.requests.scheduled)
        assert gaps.std() > 0.3 * gaps.mean(), "arrivals are random, not evenly spread"
    assert len(slow.came) == 62
    queries = {str(body["query"]) for body in slow.bodies}
    assert len(queries) == 62, "each request has a query of its own"
    assert all(len(str(body["query"]).split()) == 6 for body in slow.bodies)


def test_requests_that_arrive_while_the_server_stands_still_count_their_wait() -> None:
    """The server answers nothing for 0.8 s from request 5 on. A closed loop sees one slow request only."""

    def standing_still() -> SlowServer:
        ends = 0.0

        async def behaviour(number: int, count: int) -> Answer:
            nonlocal ends
            if number == 5:
                ends = time.monotonic() + 0.8
            await asyncio.sleep(max(0.0, ends - time.monotonic()))
            return scores(count)

        return SlowServer(behaviour)

    def share(slow: SlowServer, arrivals: int | None, clients: int) -> Share:
        starts = time.monotonic() + 0.2
        return Share(Target.at(slow.url, "jina"), SMALL, 1.2, 20.0, 0, "", starts, arrivals, clients)

    with standing_still() as slow:
        asked = share(slow, 60, 0)
        requests = in_order(send(asked)[0])
        stands, resumes = slow.came[5], slow.came[5] + 0.8
    waited = [
        (milliseconds, 1000 * (resumes - asked.starts - scheduled))
        for scheduled, milliseconds in zip(requests.scheduled, requests.milliseconds, strict=True)
        if stands < asked.starts + scheduled < resumes
    ]
    assert len(waited) > 20, "of about 40 that arrive in this time"
    assert all(milliseconds >= least - 1 for milliseconds, least in waited)

    with standing_still() as slow:
        closed = in_order(send(share(slow, None, 1))[0])
    assert sum(milliseconds > 400 for milliseconds in closed.milliseconds) == 1
    assert len(closed.milliseconds) > 10


def test_a_client_that_is_late_is_part_of_the_latency_and_is_reported() -> None:
    """The start lies half a second back, as for a client whose machine had no time for it."""
    with SlowServer(at_once) as slow:
        asked = Share(Target.at(slow.url, "jina"), SMALL, 0.4, 20.0, 0, "", time.monotonic() - 0.5, arrivals=10)
        requests = in_order(send(asked)[0])
    assert min(requests.lag_ms) > 100
    assert all(total > late for total, late in zip(requests.milliseconds, requests.lag_ms, strict=True))
    settings = LoadPlan(SMALL, rates=[10]).settings() | {"url": "http://x", "kind": "jina"}
    result = LoadResult(about=ABOUT, settings=settings, seed=0, tag=None, steps=[LoadStep(10, None, requests)])
    assert load_report(result).lines[0].startswith("WARNING: the client sent late (30 items/s:")


def test_kinds_of_failures() -> None:
    """Eight requests, one after the other; then right answers only."""

    texts = {"results": [{"index": index, "relevance_score": "0.5"} for index in range(3)]}
    answers = [
        (503, {"Retry-After": "2"}, b'{"detail": "the queue is full"}'),
        (503, {}, b"no backend"),
        None,
        scores(3),
        scores(2),
        (200, {}, b"<html>"),
        (200, {}, json.dumps(texts).encode()),
        (429, {"Retry-After": "1"}, b"slowly"),
    ]

    async def behaviour(number: int, count: int) -> Answer | None:
        if number == 3:
            await asyncio.sleep(30)
        return answers[number] if number < len(answers) else scores(count)

    with SlowServer(behaviour) as slow:
        result = measured(slow.url, LoadPlan(SMALL, clients=[1], seconds=1.5, timeout=0.5, warmup=0))
    (step,) = result.steps
    assert step.requests.failures == {
        "503 with Retry-After": [0],
        "503 without Retry-After": [1],
        "connection dropped": [2],
        "timeout": [3],
        "wrong answer": [4, 5, 6],
        "status 429": [7],
    }
    assert len(step.requests.scheduled) > 8
    assert step.requests.milliseconds[3] >= 500
    assert step.requests.messages["503 with Retry-After"] == '{"detail": "the queue is full"}'
    assert step.requests.messages["wrong answer"] == "documents[2]: the service's answer has no score for it"
    assert result.failed == 8
    text = load_report(result).markdown()
    assert "| 1 client | connection dropped | 1 | RemoteProtocolError: " in text
    assert "hide" not in text, "a closed loop promises nothing about omission"


def test_processes_divide_the_load_and_send_different_requests() -> None:
    with SlowServer(at_once) as slow:
        result = measured(slow.url, LoadPlan(SMALL, rates=[31], seconds=1, processes=2, warmup=1))
    (step,) = result.steps
    assert len(step.requests.scheduled) == 31
    assert len(set(step.requests.scheduled)) > 28
    assert len({str(body["query"]) for body in slow.bodies}) == 32


def test_another_workload_beside() -> None:
    plan = LoadPlan(SMALL, rates=[20], seconds=0.6, warmup=2, beside=Workload.named("4+9x7"), beside_clients=2)
    with SlowServer(at_once) as slow:
        result = measured(slow.url, plan)
    (step,) = result.steps
    assert step.beside is not None
    sizes = Counter(len(body["documents"]) for body in slow.bodies)  # type: ignore[arg-type]
    assert sizes == {3: 12 + 1, 7: len(step.beside.scheduled) + 1}
    assert min(step.beside.scheduled) < -0.5, "it has begun before"
    assert "## Beside: 4+9x7" in load_report(result).markdown()


def test_nobody_listens() -> None:
    with pytest.raises(BenchError, match="answered no warm-up request; the first: no connection: ConnectError"):
        measured(f"http://127.0.0.1:{free_port()}", LoadPlan(SMALL, clients=[1], warmup=2))


@pytest.mark.parametrize("kind", ["server", "vllm", "cohere", "jina", "tei"])
def test_our_server_in_every_wire_shape(server: RunningServer, kind: str) -> None:
    result = measured(server.url, LoadPlan(SMALL, clients=[2], seconds=0.5, warmup=1), kind)
    (step,) = result.steps
    assert step.requests.failures == {}
    assert len(step.requests.milliseconds) >= 2
    assert (kind == "server") == ("dtype" in result.about.engine)


def test_command_and_files(server: RunningServer, tmp_path: Path) -> None:
    arguments = ["bench", "load", server.url, "--workload", "6+5x3", "--items-per-second", "12,30", "--seconds", "1"]
    arguments += ["-o", str(tmp_path), "--tag", "mine"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    assert {"mine.json", "mine.md", "mine.png", "mine.html"} <= {path.name for path in tmp_path.iterdir()}
    assert "12 items/s offered" in done.output
    result = read_result(tmp_path / "mine.json")
    assert isinstance(result, LoadResult)
    assert [step.requests_per_second for step in result.steps] == [4, 10]
    text = (tmp_path / "mine.md").read_text(encoding="utf-8")
    assert load_report(result).markdown("mine.png") == text
    assert "Latency counts from the scheduled arrival and not from the sending" in text
    assert "items/s at P99 <= 500 ms: " in text
    ratios = {row[0]: row[3] for row in compare_results(result, result, ("a", "b")).tables[-1].rows}
    assert ratios["4 requests/s, P99 ms"] == "1.000"
    again = CliRunner().invoke(app, ["bench", "report", str(tmp_path / "mine.json")])
    assert again.exit_code == 0, again.output

    refused = CliRunner().invoke(app, [*arguments[:3], "--workload", "6+5x11", "--clients", "1", "--seconds", "1"])
    assert refused.exit_code == 1
    assert "answered no warm-up request; the first: status 413" in str(refused.exception)


def test_the_server_refuses_early_when_its_queue_is_full() -> None:
    """Past its limit our server answers 503 with Retry-After, drops no connection, and answers what it has let in."""
    settings = {"model": "bundled:tiny", "device": "cpu", "log_level": "warning", "max_queue_documents": 30}
    with RunningServer(settings) as running:
        result = measured(running.url, LoadPlan(Workload.named("8+60x10"), rates=[200], seconds=1), "server")
    (step,) = result.steps
    assert set(step.requests.failures) == {"503 with Retry-After"}
    assert 0 < result.failed < len(step.requests.scheduled) == 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--qps", "1", "--clients", "2"], "give exactly one of them"),
        ([], "give exactly one of them"),
        (["--qps", "1,0"], "give positive numbers"),
        (["--qps", "fast"], "such as 0.5,60"),
        (["--clients", "1", "--processes", "2"], "use at most 1"),
        (["--clients", "1", "--seconds", "nan"], "seconds=nan: use a positive number"),
        (["--clients", "1", "--kind", "openai"], "kind='openai': use one of server"),
        (["--clients", "1", "--workload", "big"], "workload='big': use QUERY"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["bench", "load", "http://127.0.0.1:1", *arguments])
    assert isinstance(done.exception, InvalidInputError)
    assert said in str(done.exception)


def test_an_address_that_is_none() -> None:
    with pytest.raises(InvalidInputError, match=r"^url='localhost:8001': give the address"):
        Target.at("localhost:8001")
    with pytest.raises(InvalidInputError, match="api_key_file"):
        Target.at("http://x", api_key="ключ")
