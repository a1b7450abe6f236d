"""Build all distributions into dist/, check them, and try each wheel in an empty environment; uploads nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
# Distribution -> its folder, and a program that shows that its wheel works.
PROJECTS = {
    "qwen3_ranker_plugins": (ROOT, "import qwen3_ranker_plugins as it; print(it.__version__, it.Reranker.__name__)"),
    "qwen3_ranker_haystack": (
        ROOT / "integrations" / "haystack",
        "from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker as it; print(it.__name__)",
    ),
    "langchain_qwen3_ranker": (
        ROOT / "integrations" / "langchain",
        "from langchain_qwen3_ranker import Qwen3Rerank as it; print(it.__name__)",
    ),
    "llama_index_postprocessor_qwen3_ranker": (
        ROOT / "integrations" / "llamaindex",
        "from llama_index.postprocessor.qwen3_ranker import Qwen3Rerank as it; print(it.__name__)",
    ),
}


def run(*command: str | Path) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True)


def try_wheel(distribution: str, program: str) -> None:
    """Install it from dist/, with what it depends on from the index, and import it outside of the clone."""
    wheel = next(DIST.glob(f"{distribution}-*.whl"))
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--find-links", DIST, wheel)
        print("$ python -c", repr(program), flush=True)
        subprocess.run([str(python), "-c", program], check=True, cwd=folder)


def main() -> None:
    shutil.rmtree(DIST, ignore_errors=True)
    for folder, _ in PROJECTS.values():
        run(sys.executable, "-m", "build", "--outdir", DIST, folder)
    built = sorted(DIST.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *built)
    versions = {path.name.removesuffix(".tar.gz").split("-")[1] for path in built}
    if len(versions) != 1 or len(built) != 2 * len(PROJECTS):
        sys.exit(f"expected a wheel and an sdist of each distribution, all of one version: {[p.name for p in built]}")
    for distribution, (_, program) in PROJECTS.items():
        try_wheel(distribution, program)
    for path in built:
        print(f"{path.stat().st_size / 2**20:6.2f} MiB  {path.name}")


if __name__ == "__main__":
    main()
