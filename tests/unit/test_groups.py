"""How pytest-xdist spreads the suite, see conftest.py in the root of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[2] / "conftest.py"
TESTS = """
import os, pathlib, time, pytest

@pytest.mark.parametrize("number", range(8))
def test_one(number):
    time.sleep(0.05)
    with pathlib.Path(__file__).with_suffix(".processes").open("a") as file:
        file.write(f"{os.getpid()}\\n")
"""


def test_one_process_runs_all_tests_of_a_file(tmp_path: Path) -> None:
    """Else both processes would start the engines, servers and models that the tests of a file share."""
    shutil.copy(CONFTEST, tmp_path)
    files = [tmp_path / f"test_{name}.py" for name in "abcd"]
    for file in files:
        file.write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist.plugin", "-n", "2", "--rootdir", str(tmp_path)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout
    processes = [file.with_suffix(".processes").read_text().split() for file in files]
    assert [len(each) for each in processes] == [8] * 4
    assert [len(set(each)) for each in processes] == [1] * 4
    assert len({each[0] for each in processes}) == 2
