"""A hook of mkdocs that makes pages of the notebooks in examples/, as they are stored; it does not execute them.

The tags of cells are for the tests and do not appear.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "examples"  # mkdocs takes pages from docs/ only; git ignores the copies

_NOTEBOOK = re.compile(r"\]\(\.\./(examples/\w+\.ipynb)\)")
_LINK_OUT_OF_THE_SITE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_pre_build(config: Any) -> None:  # noqa: ARG001 - mkdocs gives it by name
    PAGES.mkdir(exist_ok=True)
    for notebook in (ROOT / "examples").glob("*.ipynb"):
        page = PAGES / notebook.name
        content = json.loads(notebook.read_text(encoding="utf-8"))
        for cell in content["cells"]:
            cell["metadata"].pop("tags", None)
        text = json.dumps(content, ensure_ascii=False).replace("](../docs/", "](../").replace(".md)", ".html)")
        if (
            not page.exists() or page.read_text(encoding="utf-8") != text
        ):  # otherwise `mkdocs serve` never stops building
            page.write_text(text, encoding="utf-8")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Pages are also read in the repository, where links lead to notebooks, or to files that the site lacks."""
    if page.file.src_uri.endswith(".ipynb"):
        return markdown
    return _LINK_OUT_OF_THE_SITE.sub(r"\1", _NOTEBOOK.sub(r"](\1)", markdown))
