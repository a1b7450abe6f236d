"""Against the real server, on a real socket, in a process of its own."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from qwen3_ranker_plugins.bench.compare import compare_results
from qwen3_ranker_plugins.bench.errors import BenchError
from qwen3_ranker_plugins.bench.latency.client import Client
from qwen3_ranker_plugins.bench.latency.matrix import format_cells, matrix_report, measure_matrix, preset_cells
from qwen3_ranker_plugins.bench.latency.requests import (
    LatencyPlan,
    evaluate,
    latency_report,
    latency_result,
    measure_latency,
)
from qwen3_ranker_plugins.bench.latency.server_process import RunningServer, free_port
from qwen3_ranker_plugins.bench.machine import environment
from qwen3_ranker_plugins.bench.report_files import read_result
from qwen3_ranker_plugins.bench.titles import generate_titles
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.errors import InvalidInputError

from ..contract.conftest import needs_vllm

SERVER = {"model": "bundled:tiny", "device": "cpu", "log_level": "warning"}
PLAN = LatencyPlan(counts=(2, 12), repeat=3, warmup=1, warmup_documents=3, timeout=120)


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """Takes at most ten documents in a request, so that larger ones really fail."""
    with RunningServer({**SERVER, "template": "compact", "max_length": 160, "max_documents": 10}) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    found = Client(server.url, timeout=120)
    yield found
    found.close()


def test_requests_that_fail_are_kept_with_their_reason_and_the_others_measured(client: Client) -> None:
    lines: list[str] = []
    rows = measure_latency(client, PLAN, generate_titles(40), progress=lines.append)
    assert [(row.mode, row.documents) for row in rows] == [
        ("fresh", 2), ("fresh", 12), ("same", 2), ("same", 12),
    ]  # fmt: skip
    for row in rows:
        if row.documents == 2:
            assert len(row.milliseconds) == 3
            assert all(each > 0 for each in row.milliseconds)
            assert row.failures == []
        else:
            assert row.milliseconds == []
            assert len(row.failures) == 3
            assert "413" in row.failures[0]
    assert len(lines) == 12

    result = latency_result(environment(), rows, PLAN, client.health(), titles="generated", tag=None, server={})
    figures = evaluate(result)
    assert figures[0]["p50"] == pytest.approx(statistics.median(rows[0].milliseconds))
    assert figures[0]["mean"] == pytest.approx(statistics.mean(rows[0].milliseconds))
    assert (figures[1]["n"], figures[1]["failed"]) == (0, 3)
    assert result.health["instruction_format"] == "compact"
    assert result.health["max_model_len"] == 160
    ratios = {row[0]: row[3] for row in compare_results(result, result, ("a", "b")).tables[-1].rows}
    assert ratios == dict.fromkeys([f"{mode} query, n=2, {name} ms" for mode in ("fresh", "same")
                                    for name in ("median", "max")], "1.000")  # fmt: skip
    text = latency_report(result).markdown()
    assert "6 requests failed, the first: /rerank answered 413" in text
    assert "T4 score / standard, auto attention" in text
    assert "not measured here" in text


def test_nothing_answered_is_an_error(client: Client) -> None:
    plan = LatencyPlan(counts=(12,), repeat=1, warmup=0, queries="fresh")
    with pytest.raises(BenchError, match="no request was answered; the first failed with: /rerank answered 413"):
        measure_latency(client, plan, generate_titles(40))


def test_too_few_titles_are_reported_before_anything_is_asked(client: Client) -> None:
    with pytest.raises(InvalidInputError, match="fewer than the 12"):
        measure_latency(client, PLAN, generate_titles(5))


def test_nobody_listens() -> None:
    client = Client(f"http://127.0.0.1:{free_port()}", timeout=5)
    with pytest.raises(BenchError, match="GET /health: ConnectionRefusedError"):
        client.health()


def test_command_against_a_running_server(server: RunningServer, tmp_path: Path) -> None:
    titles = tmp_path / "titles.txt"
    titles.write_text("\n".join(generate_titles(20, seed=4)), encoding="utf-8")
    summary = tmp_path / "summary.json"
    arguments = ["bench", "latency", "2,4", "--url", server.url, "--repeat", "2", "--seed", "99", "--warmup", "1"]
    arguments += ["--timeout", "60", "--tag", "mine", "--json-summary-out", str(summary), "--quiet-runs"]
    done = CliRunner().invoke(app, [*arguments, "--titles", str(titles), "--query", "shirt", "-o", str(tmp_path)])
    assert done.exit_code == 0, (done.output, done.exception)
    result = read_result(summary).as_json()
    assert result["tag"] == "mine"
    assert result["settings"]["query"] == "shirt"
    assert result["settings"]["titles"] == "titles.txt, 20 lines"
    assert [len(row["milliseconds"]) for row in result["rows"]] == [2, 2, 2, 2]
    assert {"mine.json", "mine.md", "mine.png", "mine.html"} <= {path.name for path in tmp_path.iterdir()}
    only_fresh = CliRunner().invoke(app, [*arguments[:-1], "--fresh-queries", "--warmup", "0"])
    assert only_fresh.exit_code == 0, only_fresh.output
    assert {row["mode"] for row in read_result(summary).as_json()["rows"]} == {"fresh"}
    partly = CliRunner().invoke(app, [*arguments[:2], "2,11", *arguments[3:]])
    assert partly.exit_code == 1  # some requests failed, and the report was still made
    assert "requests failed" in partly.output


def test_matrix_goes_past_a_cell_that_fails() -> None:
    """An engine that there is not: its server ends at once; the other cell is measured."""
    plan = LatencyPlan(counts=(3,), repeat=2, warmup=0, queries="fresh", timeout=60)
    kept: list[int] = []
    result = measure_matrix(
        plan,
        generate_titles(10),
        cells=format_cells(["no_such_engine", "packed"], ["compact"], [160]),
        server=SERVER,
        titles_source="generated",
        start_timeout=200,
        on_cell=lambda so_far: kept.append(len(matrix_report(so_far).tables)),
    )
    assert kept == [1, 3], "the failures, then times and published figures too"
    json.dumps(result.as_json(), allow_nan=False)
    broken, measured = result.cells
    assert broken.error is not None
    assert "the server ended with code 2" in broken.error
    assert "no_such_engine" in broken.error
    assert measured.result is not None
    assert measured.result.health["engine"] == "packed"
    report = matrix_report(result)
    text = report.markdown()
    median = statistics.median(measured.result.rows[0].milliseconds)
    assert f"| packed / compact, 160 | {median:.1f} |" in text
    assert "| no_such_engine / compact, 160 | the server ended with code 2: error: engine='no_such_engine'" in text
    assert "T4 generate / compact" in text
    assert compare_results(result, result, ("a", "b")).tables[-1].rows[0][0] == (
        "packed / compact, 160: fresh query, n=3, median ms"
    )


@pytest.mark.parametrize("engine", [pytest.param("qwen3_vllm_score", marks=needs_vllm)])
def test_matrix_over_an_engine_on_vllm(engine: str) -> None:
    """Started, awaited by the name that /health has for it, measured, and ended with all that vLLM has started."""
    before = set(psutil.Process().children(recursive=True))
    seen: set[psutil.Process] = set()

    def watch(_line: str) -> None:
        seen.update(each for each in psutil.Process().children(recursive=True) if each not in before)

    plan = LatencyPlan(counts=(3,), repeat=2, warmup=1, warmup_documents=2, queries="fresh", timeout=120)
    result = measure_matrix(
        plan,
        generate_titles(10),
        cells=format_cells([engine], ["compact"], [160]),
        server=SERVER,
        titles_source="generated",
        start_timeout=300,
        progress=watch,
    )
    (cell,) = result.cells
    assert cell.result is not None, cell.error
    assert len(cell.result.rows[0].milliseconds) == 2
    assert cell.result.health["engine"] == engine.removeprefix("qwen3_")
    assert "vllm" in cell.result.about.engine
    assert len(seen) >= 2  # the server and the engine's process
    assert not [each for each in seen if each.is_running()]


def test_cells_of_presets() -> None:
    cells = preset_cells(["a", "b"], ["fast", "accurate"], dtype=None)
    assert [(cell.engine, cell.preset) for cell in cells] == [
        ("a", "fast"), ("a", "accurate"), ("b", "fast"), ("b", "accurate"),
    ]  # fmt: skip
    (fast,) = preset_cells(["a"], ["fast"], dtype="bfloat16")
    assert fast.as_json() == {
        "engine": "a",
        "preset": "fast",
        "template": "compact",
        "max_length": 256,
        "token_budget": 4096,
        "dtype": "bfloat16",
    }


def test_a_preset_is_what_the_started_server_has(tmp_path: Path) -> None:
    """Latency with a preset and an option, which takes precedence; then a matrix of the preset itself."""
    common = ["--repeat", "1", "--warmup", "0", "--fresh-queries", "--quiet-runs", "--model", "bundled:tiny"]
    common += ["--preset", "fast", "--device", "cpu", "--json-summary-out", str(tmp_path / "found.json")]
    done = CliRunner().invoke(app, ["bench", "latency", "2", *common, "--max-length", "100"])
    assert done.exit_code == 0, (done.output, done.exception)
    result = read_result(tmp_path / "found.json").as_json()
    assert result["health"]["instruction_format"] == "compact"
    assert result["health"]["max_model_len"] == 100
    assert int(result["about"]["engine"]["token_budget"]) == 4096
    assert result["settings"]["server"]["preset"] == "fast"

    done = CliRunner().invoke(app, ["bench", "matrix", "2", *common])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "auto / fast: compact, 256" in done.output
    result = read_result(tmp_path / "found.json").as_json()
    assert result["settings"]["presets"] == ["fast"]
    (cell,) = result["cells"]
    assert cell["result"]["health"]["max_model_len"] == 256
    assert int(cell["result"]["about"]["engine"]["token_budget"]) == 4096


def test_another_name_of_an_engine_is_awaited_by_its_own(server: RunningServer) -> None:
    """A server that was asked for `qwen3_vllm` says vllm_generate in /health."""
    other = RunningServer({**SERVER, "template": "compact", "engine": "qwen3_vllm"}, start_timeout=20)
    other.url = server.url
    with pytest.raises(BenchError, match="runs with engine='packed', not 'vllm_generate'"):
        other._wait()


def test_a_server_that_runs_with_other_settings_is_not_measured(server: RunningServer) -> None:
    """Such as one that was left over on the port."""
    other = RunningServer({**SERVER, "template": "standard"}, start_timeout=20)
    other.url = server.url
    with pytest.raises(BenchError, match="runs with instruction_format='compact', not 'standard'"):
        other._wait()
