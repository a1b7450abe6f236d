"""docs/architecture.md names files that exist, the layers that import-linter checks, and all dependencies.

CONTRIBUTING.md names files that exist, too.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tools.call_trace import calls_of_a_run

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "qwen3_ranker_plugins"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = {"architecture": ARCHITECTURE, "contributing": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")}


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    """A name is a path in the package or the repository, or that of a file next to one named before it in its line."""
    missing = []
    for line in PAGES[page].splitlines():
        folders = [ROOT, PACKAGE]
        for name in re.findall(r"`([\w./-]+(?:\.py|/))`", line):
            found = next((folder / name for folder in folders if (folder / name).exists()), None)
            if found is None:
                missing.append(name)
            else:
                folders.append(found if found.is_dir() else found.parent)
    assert missing == []


def test_the_tree_is_the_package() -> None:
    """Every module and package of the first level is in the picture, and nothing else."""
    picture = ARCHITECTURE.partition("src/qwen3_ranker_plugins/\n")[2].partition("    integrations/")[0]
    drawn = set(re.findall(r"^      (?:  )?([a-z0-9_]+(?:\.py|/)(?: +[a-z_]+\.py)*)", picture, re.MULTILINE))
    names = {name for each in drawn for name in each.split() if name not in {"base.py", "options.py", "token_rows.py"}}
    below = {"attention/", "packed/", "vllm/", "remote/", "workers/"}
    there = {
        f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name not in {"assets", "__pycache__"}
    }
    there |= {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("_")}
    assert names - below == there
    assert below <= {f"{path.name}/" for path in (PACKAGE / "engines").iterdir()}


def test_the_layers_are_those_of_the_linter() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    package, engines = (contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    page = ARCHITECTURE.partition("## Layers")[2].partition("## Where")[0]
    drawn = re.findall(r"^    (?:engines:|        )?(?: *)([a-z_ |]+?)(?: {2,}.*)?$", page, re.MULTILINE)
    at = package.index("engines")
    layers = [*package[:at], *engines, *package[at + 1 :]]
    assert drawn == ["adapters", *[layer.replace("_version | ", "") for layer in layers]]


def test_every_dependency_has_its_reason() -> None:
    """The tables of dependencies have a line for each in a pyproject.toml, no other, and ranges that are declared."""
    declared: dict[str, list[SpecifierSet]] = {}
    for path in (
        ROOT / "pyproject.toml",
        *ROOT.glob("integrations/*/pyproject.toml"),
        ROOT / "models/tiny/pyproject.toml",
    ):
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        project = data["project"]
        groups = [*project.get("optional-dependencies", {}).values(), *data.get("dependency-groups", {}).values()]
        for each in sum(groups, [*data["build-system"]["requires"], *project.get("dependencies", [])]):
            if isinstance(each, str):  # or an included group
                requirement = Requirement(each)
                declared.setdefault(requirement.name, []).append(requirement.specifier)
    del declared["qwen3-ranker-plugins"]
    explained = set()
    page = ARCHITECTURE.partition("## Dependencies")[2]
    for first, second in re.findall(r"^\| ([a-z][^|]*) \| ([^|]*?) ?\|", page, re.MULTILINE):
        listed, _, place = first.partition(" (")
        if first == "package" or place.startswith("Makefile"):
            continue
        names = [Requirement(name).name for name in listed.split(", ")]
        ranges = second.split(" / ") if second else []
        explained.update(names)
        if len(set(names)) == 1:
            names *= len(ranges) or 1
        for name, allowed in zip(names, ranges, strict=True) if ranges else ():
            assert SpecifierSet(allowed) in declared[name], f"{name}: {allowed}"
    assert explained == declared.keys()


def test_the_path_of_a_call_is_short() -> None:
    """From the Haystack adapter to the engine; the page prints the way with its data."""
    calls = calls_of_a_run(5)
    assert calls[0].endswith(":Qwen3Ranker.run")
    assert calls[-1].endswith(":PackedEngine.score")
    assert len(set(calls)) <= 40, "\n".join(calls)
