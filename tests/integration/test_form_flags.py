"""--adapter and --scoring of the commands, and what /health says of the model's form."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.cli.serve import serve
from qwen3_ranker_plugins.server.settings import ServerSettings
from tests.forms import write_adapter
from tests.server.conftest import serving

QUERY, DOCUMENTS = "how are volcanoes formed?", ["Magma rises and erupts.", "Needles come in several sizes."]
# Labels that the bundled model has, and that give other scores.
SCORING = "Yes - No / 2"


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tiny, tmp_path_factory.mktemp("adapters") / "adapter")


def margins(**settings: object) -> dict[str, float]:
    with Reranker("bundled:tiny", device="cpu", **settings) as reranker:  # type: ignore[arg-type]
        return {DOCUMENTS[hit.index]: hit.margin for hit in reranker.rerank(QUERY, DOCUMENTS)}


@pytest.mark.parametrize("flag", ["--adapter", "--scoring"])
def test_rank_and_rerank_score_with_it(flag: str, adapter: Path, tmp_path: Path) -> None:
    value = str(adapter) if flag == "--adapter" else SCORING
    expected = margins(**{flag[2:]: value})
    assert expected != pytest.approx(margins(), abs=0.01)

    (tmp_path / "texts.txt").write_text("\n".join(DOCUMENTS))
    model = ["--model", "bundled:tiny", "--device", "cpu", flag, value]
    done = CliRunner().invoke(app, ["rank", "--query", QUERY, str(tmp_path / "texts.txt"), "--json", *model])
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["document"]: each["margin"] for each in found} == pytest.approx(expected, abs=1e-5)

    pairs, output = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    records = [{"query_id": "1", "doc_id": each[:5], "query": QUERY, "document": each} for each in DOCUMENTS]
    pairs.write_text("".join(json.dumps(each) + "\n" for each in records))
    done = CliRunner().invoke(app, ["rerank", str(pairs), "--output", str(output), "--include-text", *model])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert {each["document"]: each["margin"] for each in rows} == pytest.approx(expected, abs=1e-5)


def test_serve_scores_with_them_and_health_says_so(adapter: Path) -> None:
    settings = {"device": "cpu", "adapter": str(adapter), "scoring": SCORING}
    with serving(**settings) as server:
        body = {"query": QUERY, "documents": DOCUMENTS}
        found = httpx.post(f"{server.url}/v1/rerank", json=body, timeout=60).json()["results"]
        facts = httpx.get(f"{server.url}/health").json()["engine_facts"]
    with Reranker("bundled:tiny", device="cpu", adapter=adapter, scoring=SCORING) as reranker:
        scores = {DOCUMENTS[hit.index]: hit.score for hit in reranker.rerank(QUERY, DOCUMENTS)}
    assert {DOCUMENTS[each["index"]]: each["relevance_score"] for each in found} == pytest.approx(scores, abs=1e-5)
    assert facts["scoring"] == f"{SCORING} (given)"
    assert facts["architecture"] == "Qwen3ForCausalLM (config.json)"
    assert set(facts) >= {"family", "template", "instruction", "max_positions", "quantization"}


def test_flags_of_serve_are_settings_of_the_server() -> None:
    assert {"adapter", "scoring"} <= set(serve.__annotations__) & set(ServerSettings.model_fields)


def test_what_cannot_be_read_is_named() -> None:
    done = CliRunner().invoke(app, ["rank", "-q", "x", __file__, "--model", "bundled:tiny", "--scoring", "yes no"])
    assert isinstance(done.exception, InvalidInputError)
    assert "scoring='yes no'" in str(done.exception)
