"""Execute the example notebooks from top to bottom in fresh kernels, one after the other, and store their outputs.

`make notebooks`, or `python tools/notebooks.py examples/haystack_rag.ipynb ...`. tests/examples executes them the
same way and compares the cells tagged "stable".
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
#: The notebooks run offline, without telemetry, and with OpenMP threads that leave the cores to others.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "OMP_WAIT_POLICY": "passive",
    "TQDM_DISABLE": "1",  # a stored output needs no progress bar
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}
#: Where the notebooks would look for somebody's server, model or account.
NOT_PASSED_ON = ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL", "QWEN3_RANKER_MODEL", "QWEN3_RANKER_DEVICE")


def execute(path: Path, seconds_per_cell: int = 900) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in a fresh kernel, whose working folder is the notebook's.

    Raises:
        CellExecutionError: a cell raised; the message holds its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON} | ENVIRONMENT
    client = NotebookClient(
        notebook,
        timeout=seconds_per_cell,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
    )
    client.execute(env=environment)
    return notebook


def main(paths: list[str]) -> None:
    for path in [Path(each) for each in paths] or sorted(EXAMPLES.glob("*.ipynb")):
        started = time.perf_counter()
        nbformat.write(execute(path), path)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
