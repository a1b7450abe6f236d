"""Our Triton kernels where there is no GPU: under Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.forms import write_shallow

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton (vLLM and torch for CUDA bring it)")

SCRIPT = Path(__file__).with_name("kernels_script.py")


@pytest.mark.timeout(600)
def test_kernels_compute_what_they_stand_for(tiny: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, *(write_shallow(tiny, tmp_path / f"{layers}", layers) for layers in (2, 1))],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    differences = json.loads(done.stdout.splitlines()[-1])
    assert len(differences["attention"]) == 3
    assert max(differences["attention"].values()) < 4e-3  # float16 has steps of 2e-3 around 2
    assert differences["norm and gate"] < 4e-3
    assert differences["float8"] < 0.05
    assert differences["margins"] < 0.05
    assert differences["margins on Turing"] < 0.05
    assert differences["margins"] < differences["float8 margins"] < 1
