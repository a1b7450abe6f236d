from __future__ import annotations

import html
import io
import re
import statistics
import struct
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.bench.compare import compare_results
from qwen3_ranker_plugins.bench.machine import environment, own_cores
from qwen3_ranker_plugins.bench.peak_memory import PeakMemory
from qwen3_ranker_plugins.bench.quality.reranking import QualityResult
from qwen3_ranker_plugins.bench.report_files import read_result, write_report
from qwen3_ranker_plugins.bench.results import plain
from qwen3_ranker_plugins.bench.throughput.batch_sizes import ThroughputResult, evaluate, throughput_report
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.data.collection import Collection
from qwen3_ranker_plugins.errors import InvalidInputError


def test_every_pair_is_scored_whatever_the_batch_size(
    throughput_result: ThroughputResult, collection: Collection, reranker: Reranker
) -> None:
    pairs = collection.take(2).pairs
    assert throughput_result.collection.pairs == pairs
    expected = [
        float(np.log(score / (1 - score)))
        for query_id, doc_id, _ in pairs
        for score in [reranker.rerank(collection.queries[query_id], [collection.texts[doc_id]])[0].score]
    ]
    for row in throughput_result.rows:
        assert row.margins == pytest.approx(expected, abs=1e-3)
        calls = -(-len(pairs) // row.batch_size)
        assert [len(seconds) for seconds in row.call_seconds] == [calls] * 2


def test_figures_follow_from_the_raw_values(throughput_result: ThroughputResult) -> None:
    figures = evaluate(throughput_result)
    assert plain(figures) == throughput_result.figures
    pairs = throughput_result.collection.pairs
    for row, entry in zip(throughput_result.rows, figures, strict=True):
        rounds = [len(pairs) / sum(seconds) for seconds in row.call_seconds]
        assert entry.pairs_per_second == pytest.approx(statistics.median(rounds))
        calls = sorted(1000 * each for seconds in row.call_seconds for each in seconds)
        assert entry.call_ms["p50"] == pytest.approx(statistics.median(calls))
        assert entry.call_ms["max"] == calls[-1]
        right = sum((margin >= 0) == (pair[2] >= 1) for margin, pair in zip(row.margins, pairs, strict=True))
        assert entry.accuracy == pytest.approx(right / len(pairs))
        assert 0.5 <= entry.base_rate < 1
        assert entry.host_mib > 50
        assert entry.device_mib is None


def test_picture_has_the_size_that_it_says(throughput_result: ThroughputResult) -> None:
    report = throughput_report(throughput_result)
    assert report.picture is not None
    data = report.picture[0]
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (1760, 1280)


class _Links(HTMLParser):
    """What a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loaded += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]


def test_html_report_needs_nothing_else(throughput_result: ThroughputResult, tmp_path: Path) -> None:
    collection = replace(throughput_result.collection, name="<script>alert(1)</script>")
    result = replace(throughput_result, collection=collection)
    write_report(result, throughput_report(result), tmp_path, "r", {})
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    found = _Links()
    found.feed(page)
    assert len(found.loaded) == 1
    assert found.loaded[0].startswith("data:image/png;base64,")
    assert not {"script", "link", "iframe"} & found.tags
    assert not re.search(r"url\(|@import", page.split("</style>")[0])
    assert "default-src 'none'" in page
    assert "&quot;call_seconds&quot;" in page  # its own evidence
    assert read_result(tmp_path / "r.json") == result


def test_command(beir: Path, tmp_path: Path) -> None:
    arguments = ["bench", "throughput", str(beir), "--candidates", "2", "--queries", "2", "--batch-sizes", "1,4"]
    done = CliRunner().invoke(app, [*arguments, "--repeat", "1", "-o", str(tmp_path), "--model", "bundled:tiny"])
    assert done.exit_code == 0, done.output
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png", ".html"}
    assert "base rate" in done.output
    result = read_result(tmp_path / "throughput.json")
    assert [row["batch_size"] for row in result.as_json()["rows"]] == [1, 4]


def test_comparison_prints_ratios_and_what_differs(throughput_result: ThroughputResult) -> None:
    rows = [
        replace(row, call_seconds=[[each / 2 for each in seconds] for seconds in row.call_seconds])
        for row in throughput_result.rows
    ]
    other = replace(throughput_result, rows=rows)
    same = compare_results(throughput_result, other, ("a.json", "b.json"))
    assert [table.title for table in same.tables if "differs" not in table.title] == ["B / A"]
    ratios = {row[0]: row[3] for row in same.tables[-1].rows}
    assert ratios["batch 2, pairs/s"] == "2.000"
    assert ratios["batch 8, p50 ms"] == "0.500"
    assert ratios["batch 8, nDCG@10"] in ("1.000", "-")

    about = throughput_result.about
    other = replace(
        other,
        about=replace(
            about,
            engine=about.engine | {"device": "NVIDIA H100 80GB HBM3"},
            libraries=about.libraries | {"torch": "9.9"},
            load_before=27.0,
            cores=2,
        ),
        settings=other.settings | {"template": "compact"},
    )
    report = compare_results(throughput_result, other, ("a.json", "b.json"))
    assert any(line.startswith("B: WARNING: the machine was busy (load average 27.0 on 2") for line in report.lines)
    warned = report.tables[0]
    assert warned.note.startswith("WARNING")
    differing = {row[0] for row in warned.rows}
    assert {"engine: device", "libraries: torch", "setting: template"} <= differing


def test_comparison_of_two_kinds_is_refused(throughput_result: ThroughputResult, quality_result: QualityResult) -> None:
    with pytest.raises(InvalidInputError, match="is a quality result, and a a throughput one"):
        compare_results(throughput_result, quality_result, ("a", "b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a result"),
        ('{"kind": "quality", "about": {}, "format": 99}', "has format 99"),
        ('{"kind": "quality", "about": {}, "format": 1}', "is damaged: Object missing required field"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message):
        read_result(tmp_path / "x.json")


def test_memory_is_the_peak_of_the_block_and_not_of_what_was_before() -> None:
    block = np.ones(60 * 2**17)  # 60 MiB, written to
    del block
    with PeakMemory(on_gpu=False) as small:
        np.ones(2**17)
    with PeakMemory(on_gpu=False) as large:
        np.ones(200 * 2**17)
    assert small.host is not None
    assert large.host is not None
    assert large.host_method == "VmHWM, reset before"
    assert 180 < large.host - small.host < 230
    assert large.device is None


def test_a_busy_machine_is_told_from_a_quiet_one() -> None:
    """By real processes that compute on every core; the load average is too slow to see them."""
    cores = len(own_cores())
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        time.sleep(1)
        found = replace(environment(), load_before=0.0)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert found.busy_before is not None
    assert found.busy_before > 0.5
    assert found.warning is not None
    assert "of the cores' time right before" in found.warning
    assert replace(found, busy_before=0.05).warning is None
    assert "load average 27.0" in str(replace(found, load_before=27.0).warning)


def test_a_busy_machine_is_said_first_in_every_form_of_a_report(throughput_result: ThroughputResult) -> None:
    about = replace(throughput_result.about, load_before=27.0, cores=2, busy_before=0.0, busy_after=0.9)
    report = throughput_report(replace(throughput_result, about=about))
    expected = "the machine was busy (load average 27.0 on 2 cores before; other processes took 90% of the cores"
    printed = io.StringIO()
    report.print(Console(file=printed, width=300))
    assert all(expected in text for text in (report.markdown(), html.unescape(report.html()), printed.getvalue()))
