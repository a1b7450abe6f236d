"""A calibration file: what it changes, what it never changes, and which files are refused."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_ranker_plugins import InvalidInputError, Request, Reranker
from qwen3_ranker_plugins.calibration import Calibration
from qwen3_ranker_plugins.ranking import sigmoid

QUERY = "how do I close a file?"
DOCUMENTS = ["Tigers live in Asia.", "The with statement closes a file.", "Bread needs yeast.", "file.close()", ""]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, reranker: Reranker) -> Write:
    """Writes a calibration that fits the bundled model, with changes."""

    def written(slope: float = 0.5, intercept: float = -1.0, method: str = "platt", **facts: str) -> Path:
        path = tmp_path / "calibration.json"
        Calibration(method, slope, intercept, {**reranker.judgement_facts(), **facts}).write(path)
        return path

    return written


def test_scores_change_and_order_and_margins_stay(reranker: Reranker, write: Write) -> None:
    plain = reranker.rerank(QUERY, DOCUMENTS)
    with Reranker("bundled:tiny", calibration=write(0.5, -1.0)) as calibrated:
        found = calibrated.rerank(QUERY, DOCUMENTS)
        scores = calibrated.score(QUERY, DOCUMENTS)
        assert calibrated.describe().details["calibration"].startswith("platt, slope 0.5, intercept -1 (")
        (of_many,) = calibrated.score_many([Request(QUERY, DOCUMENTS)])
    assert [hit.index for hit in found] == [hit.index for hit in plain]
    assert [hit.margin for hit in found] == pytest.approx([hit.margin for hit in plain], abs=1e-4)
    expected = [1 / (1 + math.exp(-(0.5 * hit.margin - 1.0))) for hit in found]
    assert [hit.score for hit in found] == pytest.approx(expected, abs=1e-12)
    assert [hit.confidence for hit in found] == pytest.approx([abs(2 * each - 1) for each in expected], abs=1e-12)
    assert scores[[hit.index for hit in found]] == pytest.approx(expected, abs=1e-4)
    assert of_many == pytest.approx(scores, abs=1e-6)
    assert [hit.score for hit in plain] != pytest.approx(expected, abs=1e-3)


async def test_thresholds_apply_to_calibrated_scores(reranker: Reranker, write: Write) -> None:
    margins = sorted((hit.margin for hit in reranker.rerank(QUERY, DOCUMENTS)), reverse=True)
    cut = (margins[1] + margins[2]) / 2
    # The calibrated score of the cut is 0.5, whatever P(yes) is there.
    with Reranker("bundled:tiny", calibration=write(2.0, -2.0 * cut), score_threshold=0.5) as calibrated:
        assert len(calibrated.rerank(QUERY, DOCUMENTS)) == 2
        assert len(await calibrated.arerank(QUERY, DOCUMENTS)) == 2
        assert len(calibrated.rerank(QUERY, DOCUMENTS, score_threshold=0.0)) == len(DOCUMENTS)


def test_copies_read_the_file_again(write: Write) -> None:
    with Reranker("bundled:tiny", calibration=write(method="temperature", intercept=0.0)) as calibrated:
        with pickle.loads(pickle.dumps(calibrated)) as copied:  # noqa: S301 - made here
            assert copied.calibration == calibrated.calibration
        assert calibrated.calibration is not None
        assert calibrated.calibration.summary == "temperature 2"


@given(
    st.floats(min_value=1e-6, max_value=1e3),
    st.floats(min_value=-50, max_value=50),
    st.lists(st.floats(min_value=-60, max_value=60, width=32), min_size=2),
)
def test_no_calibration_can_change_the_order(slope: float, intercept: float, margins: list[float]) -> None:
    ordered = np.sort(np.asarray(margins, dtype=np.float32))
    assert (np.diff(sigmoid(Calibration("platt", slope, intercept).apply(ordered))) >= 0).all()


@pytest.mark.parametrize("slope", [0.0, -1.0, math.inf, math.nan, True, "1"])
def test_slopes_that_would_change_the_order_are_refused(slope: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"calibration\.slope"):
        Calibration("platt", slope, 0.0)


def test_other_values_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"calibration\.method"):
        Calibration("isotonic", 1.0, 0.0)
    with pytest.raises(InvalidInputError, match=r"calibration\.intercept"):
        Calibration("platt", 1.0, math.nan)
    with pytest.raises(InvalidInputError, match="needs 0 for the method temperature"):
        Calibration("temperature", 1.0, 0.5)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"template": "compact"}, "another template"),
        ({"instruction": "Find recipes"}, "another instruction"),
        ({"long_documents": "pieces"}, "another way to judge long documents"),
    ],
)
def test_a_calibration_for_another_prompt_is_refused(write: Write, settings: dict[str, str], what: str) -> None:
    with pytest.raises(InvalidInputError, match=what):
        Reranker("bundled:tiny", calibration=write(), **settings)  # type: ignore[arg-type]


def test_a_calibration_for_other_weights_is_refused(write: Write, tiny: Path, tmp_path: Path) -> None:
    path = write()
    folder = tmp_path / "other"
    shutil.copytree(tiny, folder)
    Reranker(folder, calibration=path).close()  # the same weights elsewhere
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InvalidInputError, match="fitted with another model"):
        Reranker(folder, calibration=path)


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"calibration='.+': Is a directory; give a path to write to"):
        Calibration("platt", 1.0, 0.0, {}).write(tmp_path)


def test_files_that_are_no_calibration_are_refused(write: Write, tmp_path: Path) -> None:
    path = write()
    good = json.loads(path.read_text(encoding="utf-8"))

    def refused(content: str, why: str) -> None:
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InvalidInputError, match=why) as caught:
            Reranker("bundled:tiny", calibration=path)
        assert "calibration.json" in str(caught.value)

    refused("{", "is not JSON")
    refused("[]", "is not a calibration")
    refused(json.dumps({"slope": 1}), "is not a calibration")
    refused(json.dumps(good | {"format": 2}), "has format 2, this version reads 1")
    refused(json.dumps(good | {"slope": -0.5}), "is damaged.*positive")
    refused(json.dumps(good | {"slope": "0.5"}), "is damaged.*finite")
    refused(json.dumps(good).replace("0.5", "NaN"), "is damaged.*finite")
    refused(json.dumps(good | {"more": 1}), "is damaged: needs the fields")
    refused(json.dumps(good | {"fitted_on": {}}), "fitted with another model")
    with pytest.raises(InvalidInputError, match=r"No such file.*bench threshold --calibrate"):
        Reranker("bundled:tiny", calibration=tmp_path / "missing.json")
