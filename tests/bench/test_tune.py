from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.bench.compare import compare_results
from qwen3_ranker_plugins.bench.errors import BenchError
from qwen3_ranker_plugins.bench.presets import PRESETS
from qwen3_ranker_plugins.bench.report_files import read_result
from qwen3_ranker_plugins.bench.tune.own_process import Trial, run_trial
from qwen3_ranker_plugins.bench.tune.search import (
    Measured,
    TuneResult,
    choose_budget,
    choose_dtype,
    chosen_trial,
    prompt_lengths,
    tune,
    undecided,
)
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.prompt import Template

DOCUMENTS = ["A list is a mutable sequence.", "The with statement closes a file.", "Tigers sleep."]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_usable_and_every_choice_has_a_reason(name: str) -> None:
    preset = PRESETS[name]
    RerankerSettings(model="bundled:tiny", **preset.settings())
    Template.named(preset.template)
    assert set(preset.reasons) == set(preset.settings())
    assert all(preset.reasons.values())


def test_trial_has_the_scores_of_this_process_and_a_memory_of_its_own(reranker: Reranker) -> None:
    trial = Trial({"model": "bundled:tiny", "device": "cpu"}, DOCUMENTS, ["how to close a file"], "another query")
    outcome = run_trial(trial, timeout=200)
    assert outcome.error is None
    expected = {hit.index: hit.margin for hit in reranker.rerank("how to close a file", DOCUMENTS)}
    assert outcome.margins == pytest.approx([expected[index] for index in range(3)], abs=1e-3)
    assert len(outcome.seconds) == 1
    assert outcome.memory.host_mib is not None
    assert outcome.memory.host_mib > 100
    assert outcome.load_seconds > 0


def test_trial_that_cannot_run_says_why() -> None:
    missing = run_trial(Trial({"model": "./nowhere"}, DOCUMENTS, ["q"], "w"), timeout=200)
    assert missing.error is not None
    assert "nowhere" in missing.error
    assert missing.seconds == ()
    slow = run_trial(Trial({"model": "bundled:tiny"}, DOCUMENTS, ["q"], "w"), timeout=0.05)
    assert slow.error == "not done after 0 s"
    with pytest.raises(BenchError, match="a trial ended with code 1: "):
        run_trial(Trial({"no_such_argument": 1}, DOCUMENTS, ["q"], "w"), timeout=200)


def entry(dtype: str, budget: int | None, *seconds: float, margin: float = 0.0, error: str | None = None) -> Measured:
    """One time stands for three equal ones."""
    return Measured(
        "dtype" if budget is None else "token_budget",
        {"dtype": dtype, "token_budget": budget},
        seconds=list(seconds) if len(seconds) > 1 else [*seconds] * 3,
        margins=[margin],
        engine={"token_budget": "4096"},
        error=error,
    )


def test_a_dtype_must_be_faster_and_leave_the_scores_alone() -> None:
    reference = entry("auto", None, 1.0)
    faster = entry("bfloat16", None, 0.5, margin=0.01)
    assert choose_dtype([reference, faster]) is faster
    assert choose_dtype([reference, entry("bfloat16", None, 0.95)]) is reference
    assert choose_dtype([reference, entry("bfloat16", None, 0.1, margin=0.5)]) is reference
    assert choose_dtype([reference, entry("float16", None, 0.1, error="not here")]) is reference
    with pytest.raises(BenchError, match="no configuration that was tried can run here; the first reason: no GPU"):
        choose_dtype([entry("auto", None, 1.0, error="no GPU")])


def test_the_smallest_budget_that_is_about_as_fast() -> None:
    trials = [entry("auto", None, 1.0), entry("auto", 1024, 1.3), entry("auto", 2048, 1.04), entry("auto", 8192, 1.01)]
    assert choose_budget(trials, "auto").settings["token_budget"] == 2048
    assert choose_budget(trials[:1], "auto") is trials[0]


def test_nothing_is_chosen_between_overlapping_ranges() -> None:
    """On a busy machine a median of five says little: the default is kept, and the report says why."""
    reference = entry("auto", None, 1.0, 1.1, 1.9)
    faster = entry("bfloat16", None, 0.7, 0.8, 1.2)
    assert choose_dtype([reference, faster]) is reference
    budgets = [reference, entry("auto", 1024, 1.0, 1.05, 1.3), entry("auto", 2048, 2.0, 2.1, 2.2)]
    assert choose_budget(budgets, "auto") is reference
    assert undecided([reference, faster, *budgets[1:]]) == [
        "dtype bfloat16 overlaps with auto, which is kept",
        "token budget 1024 overlaps with 4096, which is kept",
    ]
    clear = entry("bfloat16", None, 0.7, 0.8, 0.9)
    assert choose_dtype([reference, clear]) is clear
    assert undecided([reference, clear]) == []
    once = [entry("auto", None, 1.0, 1.0), entry("bfloat16", None, 0.1)]
    assert choose_dtype([once[0], replace(once[1], seconds=[0.1])]) is once[0], "one request is no range"


def test_lengths_are_those_of_uncut_prompts() -> None:
    lengths = prompt_lengths(RerankerSettings(model="bundled:tiny", max_length=60), [*DOCUMENTS, "word " * 500])
    assert lengths[3] > 500
    assert lengths[0] > lengths[2]


def test_a_memory_limit_that_nothing_meets_is_said() -> None:
    settings = RerankerSettings(model="bundled:tiny", device="cpu")
    with pytest.raises(BenchError, match="more than the limit of 20"):
        tune(settings, PRESETS["accurate"], DOCUMENTS, requests=1, memory_limit_mib=20)


def test_command_writes_settings_that_can_be_used(tmp_path: Path) -> None:
    sample = tmp_path / "sample.txt"
    sample.write_text("\n".join(DOCUMENTS), encoding="utf-8")
    out = tmp_path / "settings.yaml"
    arguments = ["tune", "--preset", "accurate", "--sample", str(sample), "--documents", "3", "--requests", "2"]
    done = CliRunner().invoke(
        app, [*arguments, "--model", "bundled:tiny", "--device", "cpu", "--yaml", str(out), "-o", str(tmp_path / "o")]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    text = out.read_text(encoding="utf-8")
    assert "MiB on the host" in text
    assert text in done.stdout
    fields = yaml.safe_load(text)
    assert fields["model"] == "bundled:tiny"
    assert fields["max_length"] == 8192
    RerankerSettings(**fields)
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        "tune.json", "tune.md", "tune.png", "tune.html", "tune-config.yaml",
    }  # fmt: skip
    assert (tmp_path / "o" / "tune-config.yaml").read_text(encoding="utf-8") == text
    result = read_result(tmp_path / "o" / "tune.json")
    assert isinstance(result, TuneResult)
    assert [each.stage for each in result.trials] == ["dtype", "token_budget"]
    assert chosen_trial(result).settings["dtype"] == fields["dtype"]
    figures = [row[0] for row in compare_results(result, result, ("a", "b")).tables[-1].rows]
    assert figures == ["chosen: median ms", "chosen: host MiB"]
