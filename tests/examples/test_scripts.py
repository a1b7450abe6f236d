"""The short versions of the notebooks run as they stand, and are short."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tools.notebooks import ENVIRONMENT, EXAMPLES, NOT_PASSED_ON

#: Script -> what it must print, besides ending well: the passage that the reranker puts first, or the count of a job.
EXPECTED = {
    "haystack_rag": "[1] P(yes) 0.63  dict-2",
    "langchain_rag": "[1] P(yes) 0.63  dict-2",
    "llamaindex_rag": "[1] P(yes) 0.63  dict-2",
    "large_scale": "pairs scored",
    "serving": "remote: ",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_script_runs(name: str) -> None:
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 60
    environment = {key: value for key, value in os.environ.items() if key not in NOT_PASSED_ON} | ENVIRONMENT
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert run.returncode == 0, run.stderr
    assert EXPECTED[name] in run.stdout
