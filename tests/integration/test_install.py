"""What people install: the three wheels, and what the core exports."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import qwen3_ranker_plugins

REPOSITORY = Path(__file__).parents[2]
PROJECTS = {
    "qwen3_ranker_plugins": REPOSITORY,
    "qwen3_ranker_haystack": REPOSITORY / "integrations" / "haystack",
    "langchain_qwen3_ranker": REPOSITORY / "integrations" / "langchain",
    "llama_index_postprocessor_qwen3_ranker": REPOSITORY / "integrations" / "llamaindex",
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipFile]:
    """Built as pip builds them, without the network: hatchling is there already."""
    folder = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--no-index", "--wheel-dir", str(folder), *map(str, PROJECTS.values())),
        ],
        check=True,
    )
    return {path.name.split("-")[0]: zipfile.ZipFile(path) for path in folder.glob("*.whl")}


def metadata(wheel: zipfile.ZipFile) -> Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_three_wheels_build_for_python_3_11_and_later(wheels: dict[str, zipfile.ZipFile]) -> None:
    assert set(wheels) == set(PROJECTS)
    for wheel in wheels.values():
        assert metadata(wheel)["Requires-Python"] == ">=3.11"
        assert any(name.endswith("/py.typed") for name in wheel.namelist())
        assert not any("test" in Path(name).stem.split("_") and name.endswith(".py") for name in wheel.namelist())


def test_core_wheel_carries_the_model_and_the_demo(wheels: dict[str, zipfile.ZipFile]) -> None:
    names = set(wheels["qwen3_ranker_plugins"].namelist())
    expected = ["config.json", "model.safetensors", "tokenizer.json"]
    assert {f"qwen3_ranker_plugins/assets/tiny/{name}" for name in expected} <= names
    expected = ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "LICENSE.txt"]
    assert {f"qwen3_ranker_plugins/assets/demo/{name}" for name in expected} <= names
    assert "qwen3_ranker_plugins/py.typed" in names
    assert all(name.startswith("qwen3_ranker_plugins") for name in names)


def test_adapters_need_the_core_and_own_nothing_of_it(wheels: dict[str, zipfile.ZipFile]) -> None:
    packages = {
        "qwen3_ranker_haystack": "haystack_integrations/components/rankers/qwen3/",
        "langchain_qwen3_ranker": "langchain_qwen3_ranker/",
        "llama_index_postprocessor_qwen3_ranker": "llama_index/postprocessor/qwen3_ranker/",
    }
    for distribution, package in packages.items():
        wheel = wheels[distribution]
        assert f"{package}__init__.py" in wheel.namelist()
        assert all(name.startswith(package) or ".dist-info/" in name for name in wheel.namelist())
        requirements = metadata(wheel).get_all("Requires-Dist", [])
        assert any(each.startswith("qwen3-ranker-plugins<") for each in requirements)


def test_version_is_the_one_of_the_metadata(wheels: dict[str, zipfile.ZipFile]) -> None:
    assert metadata(wheels["qwen3_ranker_plugins"])["Version"] == qwen3_ranker_plugins.__version__
