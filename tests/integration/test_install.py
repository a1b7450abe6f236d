"""What people install: the wheels and sdists of all distributions, and what their metadata says."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.version import Version

import qwen3_ranker_plugins
from qwen3_ranker_plugins.pip_command import CORE, FOLDERS

REPOSITORY = Path(__file__).parents[2]
PROJECTS = {name.replace("-", "_"): REPOSITORY / folder for name, folder in FOLDERS.items()}
#: Distribution -> the folder of its files. The namespace packages have no files of their own above it.
PACKAGES = {
    "qwen3_ranker_plugins": "qwen3_ranker_plugins/",
    "qwen3_ranker_tiny": "qwen3_ranker_tiny/",
    "qwen3_ranker_haystack": "haystack_integrations/components/rankers/qwen3/",
    "langchain_qwen3_ranker": "langchain_qwen3_ranker/",
    "llama_index_postprocessor_qwen3_ranker": "llama_index/postprocessor/qwen3_ranker/",
}
LICENCES = dict.fromkeys(PROJECTS, "Apache-2.0") | {"qwen3_ranker_plugins": "Apache-2.0 AND PSF-2.0"}


#: The hooks that pip and build call (PEP 517), in one process for all projects.
BUILD = """
import os, sys
from hatchling.build import build_sdist, build_wheel
for project in sys.argv[2:]:
    os.chdir(project)
    build_wheel(sys.argv[1])
    if not project.endswith("tiny"):  # compressing the weights takes seconds
        build_sdist(sys.argv[1])
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheels and sdists, built without the network: hatchling and its plugin are there already."""
    folder = tmp_path_factory.mktemp("built")
    subprocess.run([sys.executable, "-c", BUILD, folder, *PROJECTS.values()], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheels(built: Path) -> dict[str, zipfile.ZipFile]:
    return {path.name.split("-")[0]: zipfile.ZipFile(path) for path in built.glob("*.whl")}


def metadata(wheel: zipfile.ZipFile) -> Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_wheels_build_for_python_3_11_and_later(wheels: dict[str, zipfile.ZipFile]) -> None:
    assert set(wheels) == set(PROJECTS) == set(PACKAGES)
    for name, wheel in wheels.items():
        assert metadata(wheel)["Requires-Python"] == ">=3.11"
        assert name == "qwen3_ranker_tiny" or any(file.endswith("/py.typed") for file in wheel.namelist())
        assert not any("test" in Path(file).stem.split("_") and file.endswith(".py") for file in wheel.namelist())


@pytest.mark.parametrize("name", PROJECTS)
def test_metadata_is_complete(name: str, wheels: dict[str, zipfile.ZipFile]) -> None:
    """What an index shows; `make release` also runs `twine check --strict`."""
    found = metadata(wheels[name])
    assert found["License-Expression"] == LICENCES[name]
    files = {Path(file).name for file in wheels[name].namelist() if ".dist-info/licenses/" in file}
    assert "LICENSE" in files
    assert files == {Path(file).name for file in found.get_all("License-File", [])}
    assert found["Author"]
    addresses = dict(each.split(", ") for each in found.get_all("Project-URL", []))
    assert {"Homepage", "Source", "Issues", "Changelog"} == set(addresses)
    assert all(each.startswith("https://github.com/OWNER/qwen3-ranker-plugins") for each in addresses.values())
    assert found["Description-Content-Type"] == "text/markdown"
    description = str(found.get_payload())
    assert description.lstrip().startswith("# ")
    links = re.findall(r"\]\(([^)\s]+)", description)
    assert [link for link in links if not link.startswith(("https://", "http://", "#"))] == []


def test_core_wheel_carries_the_demo_and_no_weights(wheels: dict[str, zipfile.ZipFile]) -> None:
    names = set(wheels["qwen3_ranker_plugins"].namelist())
    expected = ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "LICENSE.txt"]
    assert {f"qwen3_ranker_plugins/assets/demo/{name}" for name in expected} <= names
    assert "qwen3_ranker_plugins/py.typed" in names
    assert not any(name.endswith(".safetensors") for name in names)
    assert sum(each.compress_size for each in wheels["qwen3_ranker_plugins"].filelist) < 2**20


def test_the_weights_are_a_distribution_of_their_own(wheels: dict[str, zipfile.ZipFile]) -> None:
    names = set(wheels["qwen3_ranker_tiny"].namelist())
    expected = ["config.json", "model.safetensors", "tokenizer.json", "NOTICE", "README.md"]
    assert {f"qwen3_ranker_tiny/{name}" for name in expected} <= names
    assert metadata(wheels["qwen3_ranker_tiny"]).get_all("Requires-Dist") is None
    required = metadata(wheels["qwen3_ranker_plugins"]).get_all("Requires-Dist", [])
    required = [each for each in required if each.startswith("qwen3-ranker-tiny")]
    assert "qwen3-ranker-tiny<0.2,>=0.1; extra == 'tiny'" in required
    assert all("; extra == " in each for each in required)


def test_wheels_own_their_package_alone(wheels: dict[str, zipfile.ZipFile]) -> None:
    for distribution, package in PACKAGES.items():
        wheel = wheels[distribution]
        assert f"{package}__init__.py" in wheel.namelist()
        assert [name for name in wheel.namelist() if not name.startswith(package) and ".dist-info/" not in name] == []
        if distribution not in {"qwen3_ranker_plugins", "qwen3_ranker_tiny"}:
            requirements = metadata(wheel).get_all("Requires-Dist", [])
            assert any(each.startswith(f"{CORE}<") for each in requirements)


def test_sdists_hold_no_strangers(built: Path) -> None:
    """Only the package, its tests, and the files that belong to a release."""
    archives = sorted(built.glob("*.tar.gz"))
    assert len(archives) == len(PROJECTS) - 1
    for archive in archives:
        with tarfile.open(archive) as sdist:
            names = {each.name.partition("/")[2] for each in sdist if each.isfile()}
        folders = ("src/", "tests/", "langchain_qwen3_ranker/", "llama_index/")
        loose = {each for each in names if not each.startswith(folders)}
        assert loose - {".gitignore", "LICENSE", "README.md", "CHANGELOG.md", "PKG-INFO", "pyproject.toml"} == set()
        assert {"LICENSE", "README.md", "PKG-INFO", "pyproject.toml"} <= loose


def test_version_is_the_one_of_the_metadata(wheels: dict[str, zipfile.ZipFile]) -> None:
    assert {metadata(wheel)["Version"] for wheel in wheels.values()} == {qwen3_ranker_plugins.__version__}
    assert str(Version(qwen3_ranker_plugins.__version__)) == qwen3_ranker_plugins.__version__
