"""The page about wrong scores: its script runs, and finds what is stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tools.notebooks import ENVIRONMENT, EXAMPLES

STORED = EXAMPLES.parent / "docs" / "results" / "wrong_scores.json"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_script_finds_what_is_stored() -> None:
    """Through its own `table()` in a process of its own, since it loads a model when it is imported."""
    code = "import json, wrong_scores; print(json.dumps(wrong_scores.table()))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=EXAMPLES,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    measured, stored = json.loads(run.stdout.splitlines()[-1]), json.loads(STORED.read_text(encoding="utf-8"))
    for name, row in measured["rows"].items():
        assert row == pytest.approx(stored["rows"][name], abs=0.001), name
    assert measured["rows"]["official prompt, one pair at a time"]["largest"] < 1e-4
    assert measured["forged"] == pytest.approx(stored["forged"], abs=0.002)
    assert measured["fallback"] == stored["fallback"]
    assert measured["margins_with_fallback"] == stored["margins_with_fallback"]
