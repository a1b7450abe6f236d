"""The example that people copy runs, and puts the right document first."""

import re
from pathlib import Path

import pytest

from qwen3_ranker_plugins import Reranker


def test_readme_example(core: Reranker, capsys: pytest.CaptureFixture[str]) -> None:
    [example] = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102
    first, _second = capsys.readouterr().out.splitlines()
    assert first.endswith("The with statement closes the file when its block ends.")
