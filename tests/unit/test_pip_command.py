"""The pip command in errors installs from the place that the package came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen3_ranker_plugins.pip_command import CORE, FOLDERS, pip_install

ROOT = Path(__file__).parents[2]
TINY = ("qwen3-ranker-tiny",)


@pytest.fixture
def installed_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, object] | None], None]:
    """Metadata of this distribution as an installer leaves it, found before the real one."""

    def install(origin: dict[str, object] | None) -> None:
        folder = tmp_path / "qwen3_ranker_plugins-0.1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {CORE}\nVersion: 0.1.0\n", encoding="utf-8")
        if origin is not None:
            (folder / "direct_url.json").write_text(json.dumps(origin), encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_from_an_index(installed_from: Callable[[dict[str, object] | None], None]) -> None:
    installed_from(None)
    assert pip_install("server", "packed") == 'pip install "qwen3-ranker-plugins[server,packed]"'
    assert pip_install("tiny", also=TINY) == 'pip install "qwen3-ranker-plugins[tiny]" "qwen3-ranker-tiny"'


CLONE = f'"{ROOT}[tiny]" "{ROOT}/models/tiny"'
GIT = "git+https://host.example/team/qwen3-ranker-plugins.git"


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ({"url": ROOT.as_uri(), "dir_info": {}}, f"pip install {CLONE}"),
        (
            {"url": ROOT.as_uri(), "dir_info": {"editable": True}},
            f'pip install -e "{ROOT}[tiny]" -e "{ROOT}/models/tiny"',
        ),
        (
            {"url": "file:///a%20folder/that/is/gone", "dir_info": {}},
            f'in a clone of {CORE}: pip install ".[tiny]" "./models/tiny"',
        ),
        (
            {"url": GIT.removeprefix("git+"), "vcs_info": {"vcs": "git", "commit_id": "0" * 40}},
            f'pip install "{CORE}[tiny] @ {GIT}" "qwen3-ranker-tiny @ {GIT}#subdirectory=models/tiny"',
        ),
        (
            {
                "url": GIT.removeprefix("git+"),
                "vcs_info": {"vcs": "git", "commit_id": "0" * 40, "requested_revision": "v1"},
            },
            f'pip install "{CORE}[tiny] @ {GIT}@v1" "qwen3-ranker-tiny @ {GIT}@v1#subdirectory=models/tiny"',
        ),
        (
            {"url": "file:///wheel%20house/qwen3_ranker_plugins-0.1.0-py3-none-any.whl", "archive_info": {}},
            f'pip install --find-links "/wheel house" "{CORE}[tiny]" "qwen3-ranker-tiny"',
        ),
        (
            {"url": "https://host.example/qwen3_ranker_plugins-0.1.0-py3-none-any.whl", "archive_info": {}},
            (
                f'pip install "{CORE}[tiny] @ https://host.example/qwen3_ranker_plugins-0.1.0-py3-none-any.whl" '
                '"qwen3-ranker-tiny"'
            ),
        ),
    ],
    ids=["clone", "editable", "clone that is gone", "git", "git at a tag", "a wheel here", "a wheel on a server"],
)
def test_from_elsewhere(
    origin: dict[str, object], expected: str, installed_from: Callable[[dict[str, object] | None], None]
) -> None:
    installed_from(origin)
    assert pip_install("tiny", also=TINY) == expected


def test_folders_hold_the_distributions() -> None:
    for name, folder in FOLDERS.items():
        assert f'name = "{name}"' in (ROOT / folder / "pyproject.toml").read_text(encoding="utf-8")
    assert {path.parent for path in ROOT.glob("[!.]*/*/pyproject.toml")} == {
        ROOT / folder for folder in FOLDERS.values() if folder != "."
    }


def test_no_error_names_the_index_by_itself() -> None:
    """Every other module asks `pip_install`."""
    package = ROOT / "src" / "qwen3_ranker_plugins"
    found = [str(path) for path in package.rglob("*.py") if f"{CORE}[" in path.read_text(encoding="utf-8")]
    assert found == [str(package / "pip_command.py")]
