"""Run the tests of the core, the adapters and the server with the lowest versions that the pyproject.toml files allow.

The environment is build/lowest: uv installs the named dependencies in their lowest versions, and then the test tools in
the newest versions that fit these. Options are passed on to pytest. With --record first, the versions and the number of
tests that passed are written to docs/results/lowest.json and docs/install.md.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / "build" / "lowest"
STAMP = ENVIRONMENT / ".installed"
RESULTS = ROOT / "docs" / "results" / "lowest.json"
PAGE = ROOT / "docs" / "install.md"
BEGIN, END = "<!-- lowest: tools/lowest.py -->\n", "<!-- end of lowest -->"
#: Those that a page names; the file has all.
SHOWN = ("torch", "transformers", "haystack-ai", "langchain-core", "llama-index-core", "fastapi")
PROJECTS = [
    ".[adapters,bench,demo,fsspec,gguf,offline,quantized,remote,server]",
    "models/tiny",
    "integrations/haystack",
    "integrations/langchain[conformance]",
    "integrations/llamaindex",
]
#: Old typer imports what click 8.5 deprecates. Old fastapi does not take starlette 1; without this, uv would raise
#: fastapi rather than lower starlette.
INDIRECT = ["click<8.5", "starlette<0.49"]
#: pytest 9.2 deprecates what the plugin of an anyio imports that goes with old httpx and starlette.
TOOLS = ["pytest<9.2"]
TESTS = ["tests/unit", "tests/integration", "integrations", "tests/server"]
#: Clients of the server from other distributions, which ask for newer frameworks.
LEFT_OUT = ["tests/server/test_clients.py", "tests/server/test_clients_elsewhere.py"]


def uv(*arguments: str | Path) -> str:
    """Run uv in the environment; what it printed."""
    command = [str(Path(sys.executable).with_name("uv")), *map(str, arguments)]
    print("$", *command, flush=True)
    environment = os.environ | {"VIRTUAL_ENV": str(ENVIRONMENT)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout


def tools() -> set[str]:
    """The names of the group test-tools, which are not what is tested."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    return {re.split(r"[<>=\[]", requirement)[0] for requirement in groups["test-tools"]}


def install() -> None:
    uv("venv", "--clear", "--python", sys.executable, ENVIRONMENT)
    projects = [part for project in PROJECTS for part in ("-e", project)]
    uv("pip", "install", "--resolution", "lowest-direct", *projects, *INDIRECT)
    frozen = uv("pip", "freeze", "--exclude-editable")
    lines = [line for line in frozen.splitlines() if line.partition("==")[0] not in tools()]
    constraints = ENVIRONMENT / "constraints.txt"
    constraints.write_text("\n".join(lines), encoding="utf-8")
    uv("pip", "install", "--upgrade", "--group", "test-tools", *TOOLS, "--constraint", constraints)
    STAMP.touch()


def named() -> set[str]:
    """The distributions that the pyproject.toml files name."""
    found: set[str] = set()
    for file in (ROOT / "pyproject.toml", *ROOT.glob("integrations/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
            found |= {re.split(r"[<>=\[]", requirement)[0] for requirement in requirements}
    return found


def record(summary: str) -> None:
    """Write what pytest's last line says, and the versions that it ran with."""
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped|failed|error)", summary)}
    installed = dict(
        line.split("==") for line in uv("pip", "freeze", "--exclude-editable").splitlines() if "==" in line
    )
    versions = {name: installed[name] for name in sorted(named()) if name in installed}
    result = {"python": platform.python_version(), "tests": TESTS, **counts, "versions": versions}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    failed = counts.get("failed", 0) + counts.get("error", 0)
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN)
    line = f"The last run with {shown}: {counts.get('passed', 0)} tests passed and {failed} failed"
    text = PAGE.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(f"{text[:start]}{line} ([file](results/lowest.json)).\n{text[end:]}", encoding="utf-8")


def main(*options: str) -> None:
    if not STAMP.exists():
        install()
    python = ENVIRONMENT / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    left_out = [f"--ignore={path}" for path in LEFT_OUT]
    recorded = options[:1] == ("--record",)
    command = [str(python), "-m", "pytest", *options[recorded:], *left_out, *TESTS]
    line = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as pytest:
        assert pytest.stdout is not None  # noqa: S101 - for mypy: it is a pipe
        for line in pytest.stdout:
            print(line, end="", flush=True)
    if recorded and pytest.returncode in (0, 1):  # not if it was interrupted
        record(line)
    sys.exit(pytest.returncode)


if __name__ == "__main__":
    print("uv", version("uv"), flush=True)
    main(*sys.argv[1:])
