"""What is installed, and the pip command that installs missing packages from the same source as this package."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

CORE = "qwen3-ranker-plugins"
#: Distribution -> its folder in the repository.
FOLDERS = {
    CORE: ".",
    "qwen3-ranker-tiny": "models/tiny",
    "qwen3-ranker-haystack": "integrations/haystack",
    "langchain-qwen3-ranker": "integrations/langchain",
    "llama-index-postprocessor-qwen3-ranker": "integrations/llamaindex",
}


def installed_version(distribution: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def pip_install(*extras: str, also: tuple[str, ...] = ()) -> str:
    """The command that installs extras of this package, and other distributions of its repository.

    pip and uv record the source of a distribution (`direct_url.json`, PEP 610), unless it is an index.

    Args:
        extras: names of extras of this package.
        also: other distributions, which are keys of `FOLDERS`.

    >>> pip_install("server", "packed")  # installed from an index
    'pip install "qwen3-ranker-plugins[server,packed]"'
    """
    wanted = {CORE: f"[{','.join(extras)}]" if extras else "", **dict.fromkeys(also, "")}
    origin = _origin()
    url = origin.get("url", "")
    if "vcs_info" in origin:
        info = origin["vcs_info"]
        revision = f"@{info['requested_revision']}" if "requested_revision" in info else ""
        source = f"{info['vcs']}+{url}{revision}"
        return _command("", [f"{name}{extra} @ {source}{_subdirectory(name)}" for name, extra in wanted.items()])
    if not url.startswith("file:"):
        if url:  # an archive on a server; the other distributions are looked up by name
            wanted[CORE] += f" @ {url}"
        return _command("", [f"{name}{extra}" for name, extra in wanted.items()])
    # Not urllib.request's url2pathname: its import takes a tenth of a second. On Windows the path is /C:/folder.
    place = Path(unquote(urlsplit(url).path).removeprefix("/" if os.name == "nt" else ""))
    if "dir_info" not in origin:  # a wheel or sdist, with the other distributions in the same folder
        return _command(f'--find-links "{place.parent}" ', [f"{name}{extra}" for name, extra in wanted.items()])
    editable = "-e " if origin["dir_info"].get("editable") else ""
    if (place / "pyproject.toml").is_file():
        clone, where = f"{place}{os.sep}", ""
    else:  # the folder is gone, as after the build of an image
        clone, where = "./", f"in a clone of {CORE}: "
    paths = [f"{clone}{FOLDERS[name]}".removesuffix("/.") + extra for name, extra in wanted.items()]
    return where + "pip install " + " ".join(f'{editable}"{path}"' for path in paths)


def _command(options: str, requirements: list[str]) -> str:
    return f"pip install {options}" + " ".join(f'"{requirement}"' for requirement in requirements)


def _subdirectory(name: str) -> str:
    return "" if name == CORE else f"#subdirectory={FOLDERS[name]}"


def _origin() -> Mapping[str, Any]:
    """Where this package was installed from; empty for an index."""
    try:
        text = distribution(CORE).read_text("direct_url.json")
    except PackageNotFoundError:
        # Neither pip nor uv installed it: its source is on the path.
        return {"url": Path(__file__).parents[2].as_uri(), "dir_info": {"editable": True}}
    origin: Mapping[str, Any] = json.loads(text) if text else {}
    return origin
