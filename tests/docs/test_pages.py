"""What pages tell people to type exists and works. (tests/docs/test_readme.py runs the Python examples.)

- ```console blocks are executed, line by line, in an empty folder. A line `<!-- not run: REASON -->` above a block says
  why it is not: it needs a GPU or the hub.
- Of all other mentions of `qwen3-ranker COMMAND --option`, `make TARGET`, `python FILE` and `pip install`, the command,
  its options, the target, the file, the folder and the extra have to exist.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.min_confidence import measured
from qwen3_ranker_plugins.bench.published import QUALITY
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.pip_command import FOLDERS
from tools.notebooks import ENVIRONMENT

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("integrations/*/README.md"))]
NOT_RUN = re.compile(r"<!-- not run: .+? -->\n+```console\n.*?```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"(?:^ {4}|^\$ |`)((?:qwen3-ranker|make|python|pip install)(?: [^`\n#]*)?)", re.MULTILINE)
PROJECTS = {name: ROOT / folder / "pyproject.toml" for name, folder in FOLDERS.items()}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[str]:
    """Everything on the page that looks like a command of this project."""
    return [each.strip() for each in COMMAND.findall(page.read_text(encoding="utf-8"))]


@cache
def parameters() -> dict[str, set[str]]:
    """Command -> its options; "serve" and also "bench latency"."""

    def walk(command: Any, path: tuple[str, ...]) -> dict[str, set[str]]:
        found = {" ".join(path): {"--help"} | {o for p in command.params for o in (*p.opts, *p.secondary_opts)}}
        for child, each in getattr(command, "commands", {}).items():
            found |= walk(each, (*path, child))
        return found

    return walk(typer.main.get_command(app), ())


@cache
def extras(project: str) -> set[str]:
    data = tomllib.loads(PROJECTS[project].read_text(encoding="utf-8"))
    return set(data["project"].get("optional-dependencies", {}))


@pytest.mark.parametrize("page", [page for page in PAGES if CONSOLE.search(page.read_text())], ids=name)
def test_console_blocks_run(page: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    command = tools / "qwen3-ranker"  # the one of this checkout, whatever else is installed
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qwen3_ranker_plugins.cli "$@"\n')
    command.chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    environment = os.environ | ENVIRONMENT | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    for block in CONSOLE.findall(NOT_RUN.sub("", page.read_text(encoding="utf-8"))):
        for line in re.findall(r"^\$ (.+)$", block, re.MULTILINE):
            run = subprocess.run(
                ["sh", "-c", line],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=250,
                check=False,
            )
            assert run.returncode == 0, f"{page.name}: {line}\n{run.stdout}{run.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    for line in commands(page):
        try:
            words = shlex.split(line)
        except ValueError:  # a sentence that begins with the name of a command
            continue
        if words[0] == "qwen3-ranker":
            _check_ranker(line, words[1:])
        elif words[0] == "make" and len(words) > 1:
            target = words[1]
            found = re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert found, f"{line}: the Makefile has no such target"
        elif words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), f"{line}: no such file"
        elif words[:2] == ["pip", "install"]:
            _check_pip(line, [word for word in words[2:] if not word.startswith("-")])


def _check_ranker(line: str, words: list[str]) -> None:
    known = parameters()
    plain = [word for word in words if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
    path = next((p for p in (" ".join(plain[:2]), " ".join(plain[:1])) if p in known), None)
    if words and words[0].isupper():  # `qwen3-ranker COMMAND --help`
        return
    assert path is not None, f"{line}: no such command"
    for word in words:
        if re.match(r"--?[a-zA-Z]", word):
            assert word.partition("=")[0] in known[path] | known[""], f"{line}: {path or 'qwen3-ranker'} has no {word}"


def _check_pip(line: str, packages: list[str]) -> None:
    for package in packages:
        if match := re.fullmatch(r"(\.[\w./-]*|[\w-]+)\[([\w,-]+)\]|(\.[\w./-]*)", package):
            place = match.group(1) or match.group(3)
            if place.startswith("."):
                assert (ROOT / place / "pyproject.toml").is_file(), f"{line}: {place} is no project"
                project = next(each for each, path in PROJECTS.items() if path.parent == (ROOT / place).resolve())
            else:
                project = place
            if match.group(2) and project in PROJECTS:
                assert set(match.group(2).split(",")) <= extras(project), f"{line}: {project} has other extras"


def test_the_command_line_page_is_current() -> None:
    run = subprocess.run(
        [sys.executable, "tools/cli_reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_every_page_is_in_the_navigation() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    pages += [f"examples/{path.name}" for path in (ROOT / "examples").glob("*.ipynb")]
    assert not [page for page in pages if f": {page}" not in site]
    named = re.findall(r": ([\w/-]+\.(?:md|ipynb))$", site, re.MULTILINE)
    assert sorted(named) == sorted(pages), "the navigation names a page that does not exist"


def test_wrong_scores_page_holds_the_measured_figures() -> None:
    stored = json.loads((ROOT / "docs/results/wrong_scores.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/wrong-scores.md").read_text(encoding="utf-8")
    for row, value in stored["rows"].items():
        figures = f"{value['mean']:.4f} | {value['largest']:.4f} | {value['another_first']} of {stored['questions']}"
        assert f"| {row} | {figures} |" in page
    for row, value in stored["fallback"].items():
        assert f"| {row} | {value['true']:.2f} | {value['with_fallback']:.2f} |" in page


def test_choose_page_holds_published_and_measured_figures() -> None:
    page = (ROOT / "docs/choose.md").read_text(encoding="utf-8")
    for model, values in QUALITY.items():
        assert f"| {model} | {' | '.join(f'{value:.2f}' for value in values)} |" in page
    for kept in measured():
        assert f"| {kept.limit} | {kept.relevant} | {kept.all} | {kept.precision:.2f} |" in page
    cases = ("10 titles", "100 titles", "1000 titles", "100 chunks")
    medians = {}
    for shape, file in (("0.6B", "gpu_bench.json"), ("4B", "gpu_bench_4b.json")):
        rows = json.loads((ROOT / "docs/results" / file).read_text(encoding="utf-8"))["results"]["goals"]["rows"]
        medians[shape] = [rows[case]["median_ms"] for case in cases]
        [row] = re.findall(rf"^\| {shape}, measured \|(.+)$", page, re.MULTILINE)
        assert [float(ms) for ms in re.findall(r"([\d.]+) ms", row)] == pytest.approx(medians[shape], abs=0.0501)
    rows = json.loads((ROOT / "docs/results/splitting.json").read_text(encoding="utf-8"))["rows"].values()
    assert re.findall(r"([\d.]+) s(?: of\s+processor time| \(\[file)", page) == [
        f"{r['processor_seconds']:.2f}" for r in rows
    ]
    estimates = " | ".join(f"*{ms * 6945.8 / 3633.3:.0f} ms*" for ms in medians["4B"])  # matrices, millions of weights
    assert f"| 8B, *estimated* | {estimates} |" in page


def test_min_confidence_is_recommended_nowhere() -> None:
    """Outside the section that explains it, it stands next to what to use, or in a schema or a dump of settings."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"### min_confidence\n.*", "", text, flags=re.DOTALL)
        for line in text.splitlines():
            if "min_confidence=" in line:
                assert line.startswith("| `min_confidence"), f"{page.name}: {line}"
    for notebook in (ROOT / "examples").glob("*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        assert not [cell for cell in cells if "min_confidence" in "".join(cell["source"])], notebook.name
