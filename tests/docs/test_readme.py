"""Every Python example of the README and the docs runs as it stands, in the order of the page.

A line `<!-- not run: REASON -->` above an example says why it is left out.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_RUN = re.compile(r"<!-- not run: .+? -->\n+```python\n.*?```", re.DOTALL)


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", NOT_RUN.sub("", page.read_text()), re.DOTALL)


PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if examples(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset:DeprecationWarning")
def test_examples_run(
    page: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in examples(page):
        exec(compile(example, page.name, "exec"), names)  # noqa: S102
    assert capsys.readouterr().out


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("integrations/*/README.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
