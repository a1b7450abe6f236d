"""An engine that another distribution registers: installed as pip installs it, used through every front of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from qwen3_ranker_plugins import InvalidInputError, MissingDependencyError, Reranker
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.engines import choose_engine

LENGTHS = """
from qwen3_ranker_plugins.engines import EngineEntry

LENGTHS = EngineEntry(module="their_engines.lengths", requires=("json",), install="pip install theirs")
NEEDY = EngineEntry(module="their_engines.needy", requires=("module_of_nobody",), install="pip install theirs[needy]")
WRONG = "their_engines.lengths"
"""

ENGINE = """
# Margin = the length of the prompt in tokens, times an option.

import json

import numpy as np

from qwen3_ranker_plugins.checks import check_json
from qwen3_ranker_plugins.config import EngineConfig
from qwen3_ranker_plugins.engines import ResolvedSettings
from qwen3_ranker_plugins.engines.base import Engine, EngineCapabilities, EngineDescription, Margins
from qwen3_ranker_plugins.models import resolve_model
from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer


class LengthEngine(Engine):
    name = "lengths"

    def __init__(self, config):
        self.capabilities = EngineCapabilities(token_budget=config.token_budget or 1000)
        self.factor = config.engine_options.get("factor", 1)

    def score(self, requests):
        return [
            Margins(np.array([self.factor * len(each) for each in request.segments], np.float32), request.num_tokens)
            for request in requests
        ]

    def close(self):
        pass

    def describe(self):
        return EngineDescription(engine=self.name, device="cpu", dtype="float32", details={"factor": str(self.factor)})


def resolve(engine, settings):
    folder = resolve_model(settings.model)
    options = check_json("engine_options", settings.engine_options)
    return ResolvedSettings(
        folder=folder,
        encoder=PromptEncoder(load_tokenizer(folder), settings.template, settings.max_length),
        config=EngineConfig(engine, folder, "cpu", "float32", settings.token_budget, options=options),
    )


create = LengthEngine
"""

DOCUMENTS = ["short", "a text that is longer", "a text that is longer than both of the others"]
ORDER = [2, 1, 0]


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the module path with their distribution, unpacked as a wheel is."""
    site = tmp_path / "site"
    package, info = site / "their_engines", site / "theirs-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text(LENGTHS)
    (package / "lengths.py").write_text(ENGINE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[qwen3_ranker_plugins.engines]\n"
        "lengths = their_engines:LENGTHS\n"
        "needy = their_engines:NEEDY\n"
        "wrong = their_engines:WRONG\n"
        "missing = their_engines.nowhere:ENTRY\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))
    yield site
    for name in [each for each in sys.modules if each.split(".")[0] == "their_engines"]:
        del sys.modules[name]


def run(*arguments: str, given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "qwen3_ranker_plugins.cli", *arguments],
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_scores_in_python(theirs: Path) -> None:
    with Reranker("bundled:tiny", engine="lengths", engine_options={"factor": 2}) as reranker:
        assert [hit.index for hit in reranker.rerank("q", DOCUMENTS)] == ORDER
        assert reranker.describe().as_dict() == {
            "engine": "lengths", "device": "cpu", "dtype": "float32", "factor": "2"
        }  # fmt: skip


def test_it_scores_on_the_command_line(theirs: Path, tmp_path: Path) -> None:
    options = ("--engine", "lengths", "--engine-option", "factor=3")
    ranked = run("rank", "-q", "q", *options, "--json", given="\n".join(DOCUMENTS))
    assert [json.loads(line)["index"] for line in ranked.splitlines()] == ORDER
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    pairs = [{"query_id": "1", "doc_id": str(n), "query": "q", "document": text} for n, text in enumerate(DOCUMENTS)]
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    run("rerank", str(source), "-o", str(output), "--model", "bundled:tiny", "--engine", "lengths")
    margins = {row["doc_id"]: row["margin"] for row in map(json.loads, output.read_text().splitlines())}
    assert sorted(margins, key=margins.__getitem__) == ["0", "1", "2"]


def test_it_scores_in_a_server_that_is_configured_in_yaml(theirs: Path, tmp_path: Path) -> None:
    from qwen3_ranker_plugins.server.settings import load_settings

    file = tmp_path / "server.yaml"
    file.write_text("model: bundled:tiny\nengine: lengths\nengine_options: {factor: 4}\n")
    settings = load_settings(file, {}).settings.reranker_settings()
    with Reranker(**asdict(settings)) as reranker:
        assert reranker.describe().details == {"factor": "4"}


def test_an_unknown_name_lists_what_is_registered(theirs: Path) -> None:
    everything = "auto, lengths, missing, needy, packed, remote, vllm_generate, vllm_packed, vllm_score, wrong"
    with pytest.raises(InvalidInputError, match=f"engine='length': use one of {everything}"):
        RerankerSettings("bundled:tiny", "length")


def test_what_it_needs_is_said_with_its_own_command(theirs: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"'needy' needs module_of_nobody: pip install theirs\[needy\]"):
        choose_engine("needy")


@pytest.mark.parametrize(
    ("engine", "says"),
    [("wrong", "has to be an EngineEntry, not a str"), ("missing", "cannot be loaded: ModuleNotFoundError")],
)
def test_an_entry_point_that_is_no_engine_is_named(theirs: Path, engine: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=f"engine='{engine}': its entry point 'their_engines.*{says}"):
        Reranker("bundled:tiny", engine=engine)


def test_two_distributions_with_one_name_are_refused(theirs: Path) -> None:
    other = theirs / "rival-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[qwen3_ranker_plugins.engines]\nrivals = their_engines:LENGTHS\n")
    file = theirs / "theirs-1.0.dist-info" / "entry_points.txt"
    file.write_text(file.read_text() + "rivals = their_engines:LENGTHS\n")
    with pytest.raises(InvalidInputError, match=r"registered by (theirs and rival|rival and theirs): uninstall one"):
        Reranker("bundled:tiny", engine="rivals")
