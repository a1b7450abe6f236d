"""Build all distributions into dist/, check them, and try them in empty environments; uploads nothing.

    python tools/release.py [TORCH] [--publish]

TORCH is installed before the packages that require torch in any version. With --publish, a placeholder in place of the
project's address is an error.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen3_ranker_plugins.pip_command import CORE, FOLDERS

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
PAGE = ROOT / "docs" / "install.md"
BEGIN, END = "<!-- wheels: tools/release.py -->\n", "<!-- end of wheels -->"
#: Distribution -> a program that shows that its wheel works with what it depends on, and nothing else.
PROGRAMS = {
    CORE: "import qwen3_ranker_plugins as it; print(it.__version__, it.Reranker.__name__)",
    "qwen3-ranker-tiny": "import qwen3_ranker_tiny as it; print(it.__name__)",
    "qwen3-ranker-haystack": "from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker as it; print(it)",
    "langchain-qwen3-ranker": "from langchain_qwen3_ranker import Qwen3Rerank as it; print(it)",
    "llama-index-postprocessor-qwen3-ranker": (
        "from llama_index.postprocessor.qwen3_ranker import Qwen3Rerank as it; print(it)"
    ),
}
FIND = "from qwen3_ranker_plugins.models import resolve_model as it; print(it('bundled:tiny'))"
#: In [project.urls] and READMEs until the project has a public address, and until an index has its packages.
PLACEHOLDERS = ("github.com/OWNER/", "REPOSITORY_URL", "not on PyPI yet")


def run(*command: str | Path, cwd: Path | None = None, path: Path | None = None) -> str:
    """Run it and return what it printed; stop if it fails."""
    print("$", shlex.join(map(str, command)), flush=True)
    environment = os.environ if path is None else os.environ | {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, check=False
    )
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


@contextmanager
def empty_environment() -> Iterator[Path]:
    """The folder of the programs of a new virtual environment."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        yield Path(folder) / ("Scripts" if sys.platform == "win32" else "bin")


def install(programs: Path, *requirements: str | Path) -> None:
    """Without bytecode, which takes longer than the rest and would be used once."""
    run(
        programs / "python",
        "-m",
        "pip",
        "install",
        "-qq",
        "--no-compile",
        "--disable-pip-version-check",
        "--find-links",
        DIST,
        *requirements,
    )


def wheel(distribution: str) -> Path:
    return next(DIST.glob(f"{distribution.replace('-', '_')}-*.whl"))


def try_alone(distribution: str, program: str) -> None:
    """Install it from dist/, with what it depends on from the index, and import it outside of the clone."""
    with empty_environment() as programs:
        install(programs, wheel(distribution))
        run(programs / "python", "-c", program, cwd=programs)


def try_the_remedy() -> None:
    """The command in the error of a production installation brings the demonstration model."""
    with empty_environment() as programs:
        install(programs, wheel(CORE))
        print("$ python -c", shlex.quote(FIND), flush=True)
        done = subprocess.run(
            [str(programs / "python"), "-c", FIND], cwd=programs, capture_output=True, text=True, check=False
        )
        error = done.stderr.strip().rpartition("\n")[2]
        print(error)
        if done.returncode == 0 or "pip install" not in error:
            sys.exit("bundled:tiny was found without its distribution, or the error names no command")
        run("sh", "-c", f"pip install -qq {error.partition('pip install ')[2]}", cwd=programs, path=programs)
        run(programs / "python", "-c", FIND, cwd=programs)


def try_together(torch: str) -> None:
    """Everything in one environment, and the demonstration."""
    with empty_environment() as programs:
        if torch:
            install(programs, torch)
        install(programs, f"{CORE}[demo]", *(name for name in FOLDERS if name != CORE))
        run(programs / "qwen3-ranker", "demo", cwd=programs, path=programs)


def check_names_and_versions(built: list[Path]) -> None:
    versions = {path.name.removesuffix(".tar.gz").split("-")[1] for path in built}
    if len(versions) != 1 or len(built) != 2 * len(FOLDERS):
        sys.exit(f"expected a wheel and an sdist of each distribution, all of one version: {[p.name for p in built]}")


def placeholders() -> list[str]:
    """Wheels whose metadata, which include the README, hold what has to be replaced before publishing."""
    found = []
    for path in sorted(DIST.glob("*.whl")):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            text = " ".join(archive.read(name).decode().split())
            found += [f"{placeholder!r} in {path.name}" for placeholder in PLACEHOLDERS if placeholder in text]
    return found


def write_sizes() -> None:
    """The sizes of the wheels, into docs/install.md."""
    rows = [f"| {name} | {wheel(name).stat().st_size / 2**20:.2f} MiB |\n" for name in FOLDERS]
    text = PAGE.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(text[:start] + "| wheel | size |\n|---|---|\n" + "".join(rows) + text[end:], encoding="utf-8")
    print("".join(rows), end="")


def main(torch: str = "", *options: str) -> None:
    if set(options) - {"--publish"}:
        sys.exit(f"usage: {__doc__}")
    shutil.rmtree(DIST, ignore_errors=True)
    for folder in FOLDERS.values():
        # In this environment, which must meet [build-system].requires: ten isolated ones would take minutes, and `pip
        # install -e` has already built each distribution in isolation.
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, ROOT / folder)
    built = sorted(DIST.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *built)
    check_names_and_versions(built)
    for distribution, program in PROGRAMS.items():
        try_alone(distribution, program)
    try_the_remedy()
    try_together(torch)
    write_sizes()
    if found := placeholders():
        print(f"replace before publishing: {', '.join(found)}")
        if "--publish" in options:
            sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
