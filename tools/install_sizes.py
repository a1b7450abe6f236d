"""Try the install lines of docs/install.md in empty environments, and write packages, sizes and times into its table.

    python tools/install_sizes.py [--torch REQUIREMENT] [--uv PROGRAM] [--table-only]

Each line runs in the clone, in a new virtual environment. If the line needs torch, its CPU build is installed first.
Then bundled:tiny is added, and a program shows that the installation works. With --uv, `uv pip install` runs instead of
pip: this is much faster on a busy machine, but times are not recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "install.md"
RESULTS = ROOT / "docs" / "results" / "install.json"
BEGIN, END = "<!-- table: tools/install_sizes.py -->\n", "<!-- end of table -->"
QUERY = "query, documents = 'How do I close a file?', ['A list is mutable.', 'The with statement closes a file.']\n"
CORE = f"""{QUERY}from qwen3_ranker_plugins import Reranker
with Reranker('bundled:tiny') as reranker:
    assert reranker.rerank(query, documents)[0].index == 1
"""
HAYSTACK = f"""{QUERY}from haystack import Document
from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker
found = Qwen3Ranker(model='bundled:tiny').run(query=query, documents=[Document(content=each) for each in documents])
assert found['documents'][0].content == documents[1]
"""
LANGCHAIN = f"""{QUERY}from langchain_core.documents import Document
from langchain_qwen3_ranker import Qwen3Rerank
found = Qwen3Rerank(model='bundled:tiny').compress_documents([Document(each) for each in documents], query)
assert found[0].page_content == documents[1]
"""
LLAMAINDEX = f"""{QUERY}from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.qwen3_ranker import Qwen3Rerank
nodes = [NodeWithScore(node=TextNode(text=each)) for each in documents]
assert Qwen3Rerank(model='bundled:tiny').postprocess_nodes(nodes, query_str=query)[0].text == documents[1]
"""
REMOTE = """import importlib.util
from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker
Qwen3Ranker(model='any', engine='remote', engine_options={'url': 'http://127.0.0.1:9'})
assert importlib.util.find_spec('torch') is None
"""
SERVER = "from qwen3_ranker_plugins.server.app import create_app\n" + CORE
OFFLINE = """import json, pathlib
from qwen3_ranker_plugins.offline import RerankJob
import pyarrow.parquet, zstandard
pair = {'query': 'close a file', 'documents': ['A list.', 'With closes a file.']}
pathlib.Path('pairs.jsonl').write_text(json.dumps(pair))
RerankJob('pairs.jsonl', 'ranked.jsonl', model='bundled:tiny').run()
assert pathlib.Path('ranked.jsonl').stat().st_size
"""
BENCH = (
    "import matplotlib, scipy, ir_measures, msgspec, psutil\nimport qwen3_ranker_plugins.bench.report_files\n" + CORE
)
DEMO = HAYSTACK + LANGCHAIN + "import langchain_classic, ir_measures, rank_bm25, qwen3_ranker_plugins.server.app\n"
TORCH = "torch --index-url https://download.pytorch.org/whl/cpu"
#: Situation -> what follows `pip install`, and the program. Without torch, the line has no engine of its own.
LINES = {
    "Python": ('".[packed]"', CORE),
    "Haystack": ('".[packed]" ./integrations/haystack', HAYSTACK),
    "LangChain": ('".[packed]" ./integrations/langchain', LANGCHAIN),
    "LlamaIndex": ('".[packed]" ./integrations/llamaindex', LLAMAINDEX),
    "an HTTP server": ('".[packed,server]"', SERVER),
    "Haystack, and a service scores": ('".[remote]" ./integrations/haystack', REMOTE),
    "files, Parquet and `.zst` among them": ('".[packed,offline]"', OFFLINE),
    "measurements and charts": ('".[packed,bench]"', BENCH),
    "the demonstration": ('".[demo,server]" ./models/tiny ./integrations/haystack ./integrations/langchain', DEMO),
}


@dataclass(frozen=True)
class Tried:
    """What a line brought: megabytes (10^6 bytes) on disk, seconds, and the number of distributions."""

    situation: str
    line: str
    megabytes: float
    seconds: float | None
    distributions: int


def size(folder: Path) -> float:
    """Megabytes, without bytecode, which installers write or leave to the first import."""
    files = (each for each in folder.rglob("*") if each.suffix != ".pyc" and each.is_file() and not each.is_symlink())
    return sum(each.stat().st_size for each in files) / 1e6


def try_line(situation: str, line: str, program: str, torch: str, uv: str | None) -> tuple[Tried, Tried | None]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        environment = os.environ | {
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_WAIT_POLICY": "passive",
        }
        environment.pop("PYTHONPATH", None)

        def install(words: list[str]) -> tuple[float, float | None]:
            before, started = size(folder), time.perf_counter()
            if uv is None:
                command = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *words]
            else:
                command = [uv, "pip", "install", "-q", "--python", str(python), *words]
            subprocess.run(command, cwd=ROOT, env=environment, check=True)
            return size(folder) - before, time.perf_counter() - started if uv is None else None

        def distributions() -> int:
            listed = subprocess.run(
                [str(python), "-m", "pip", "list", "--format", "freeze"],
                env=environment,
                check=True,
                capture_output=True,
            )
            return len(listed.stdout.splitlines())

        first = None
        if "remote" not in line:
            count = distributions()
            first = Tried("torch for the CPU", f"pip install {TORCH}", *install([torch]), distributions() - count)
        count = distributions()
        tried = Tried(situation, f"pip install {line}", *install(shlex.split(line)), distributions() - count)
        if "remote" not in line and "tiny" not in line:
            install(["--no-deps", "./models/tiny"])
        subprocess.run([str(python), "-c", program], cwd=folder, env=environment, check=True)
        return tried, first


def table(tried: list[Tried]) -> str:
    rows = [
        f"| {each.situation} | `{each.line}` | {each.megabytes:.0f} MB, {each.distributions} |"
        + ("" if each.seconds is None else f" {each.seconds:.0f} s |")
        for each in tried
    ]
    timed = all(each.seconds is not None for each in tried)
    head = "| for | line | size, distributions |" + (" time |" if timed else "")
    return "\n".join([head, "|---|---|---|" + ("---|" if timed else ""), *rows, ""])


def write_page() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(text[:start] + table([Tried(**each) for each in results["lines"]]) + text[end:], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="torch==2.13.0", help="what brings torch for the CPU")
    parser.add_argument("--uv", help="path of uv")
    parser.add_argument("--table-only", action="store_true", help="write the page from the stored results")
    options = parser.parse_args()
    if not options.table_only:
        tried: list[Tried] = []
        load = os.getloadavg()[0]
        for situation, (line, program) in LINES.items():
            one, torch = try_line(situation, line, program, options.torch, options.uv)
            if not tried and torch is not None:
                tried.append(torch)
            tried.append(one)
            print(f"{situation}: {one.megabytes:.0f} MB", flush=True)
        machine = {
            "python": platform.python_version(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "load": load,
        }
        stored = {"machine": machine, "lines": [asdict(each) for each in tried]}
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    write_page()


if __name__ == "__main__":
    sys.exit(main())
