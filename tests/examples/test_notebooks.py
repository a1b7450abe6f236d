"""Every notebook runs from top to bottom in a fresh kernel, and prints what is stored where that is deterministic."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from tools.notebooks import EXAMPLES, NOT_PASSED_ON, execute

NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def printed(cell: nbformat.NotebookNode) -> str:
    """What a cell wrote and its value, word by word; pictures and what threads complain of meanwhile are left out."""
    # What a cell writes comes in as many pieces as the kernel happens to send.
    text = "".join(
        output.get("text", "") if output.output_type == "stream" else f"\n{output.data['text/plain']}\n"
        for output in cell.outputs
        if output.get("name") != "stderr"
    )
    return " ".join(text.split())


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_prints_what_is_stored(path: Path) -> None:
    stored = {cell.id: cell for cell in nbformat.read(path, as_version=4).cells}
    stable = [cell for cell in execute(path).cells if "stable" in cell.metadata.get("tags", [])]
    assert stable
    for cell in stable:
        assert printed(cell) == printed(stored[cell.id]), f"{path.name}, cell {cell.id}: make notebooks stores it anew"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_of_one_run_from_top_to_bottom(path: Path) -> None:
    """A notebook that was run in parts, or ended in an error, or warned, was not stored by `make notebooks`."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs) or path.stem != "haystack_rag"
    # Folders of the machine that stored it tell a reader nothing.
    assert not re.search(r"/(root|home|work)/", path.read_text(encoding="utf-8"))


def test_nobodys_account_is_used() -> None:
    assert {"OPENAI_BASE_URL", "OPENAI_API_KEY"} <= set(NOT_PASSED_ON)
