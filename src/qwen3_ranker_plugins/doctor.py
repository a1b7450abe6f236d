"""What `qwen3-ranker doctor` finds: what is installed, what is usable, and whether it scores as it should."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .config import BUNDLED_MODEL
from .engines import choose_engine
from .errors import ModelNotFoundError
from .models import resolve_model
from .reranker import Reranker

DISTRIBUTIONS = (
    "qwen3-ranker-plugins",
    "qwen3-ranker-haystack",
    "langchain-qwen3-ranker",
    "torch",
    "transformers",
    "tokenizers",
    "vllm",
    "haystack-ai",
    "langchain-core",
)


@dataclass(frozen=True)
class Probe:
    """A question with a passage that answers it and one that does not; any reranker tells them apart."""

    query: str
    relevant: str
    irrelevant: str


PROBES = (
    Probe(
        "what is the capital of France?",
        "Paris is the capital of France and its largest city.",
        "Bread is baked from flour, water, salt and yeast.",
    ),
    Probe(
        "how do I close a file in Python?",
        "Use the with statement: it closes the file in Python even when an error happens.",
        "Tigers are large cats that live in the forests of Asia.",
    ),
)


def diagnose(
    console: Console,
    *,
    model: str,
    engine: str = "auto",
    engine_options: Mapping[str, object] | None = None,
    device: str = "auto",
) -> bool:
    """Print everything; False if the model does not tell the probes apart.

    Raises:
        RankerError: the engine or the model cannot be used; the message says what to do.
    """
    facts = Table(box=None, show_header=False, padding=(0, 2))
    facts.add_column(style="bold", vertical="top")
    facts.add_column(overflow="fold")
    for name in DISTRIBUTIONS:
        facts.add_row(name, installed_version(name) or Text("not installed", style="dim"))
    for number, found in enumerate(devices()):
        facts.add_row("" if number else "devices", found)
    for number, found in enumerate(usable_models()):
        facts.add_row("" if number else "models", found)
    console.print(facts, highlight=False)

    name, reason = choose_engine(engine)
    console.print(Text(f"\nengine {engine!r} is {name!r}: {reason}"))
    started = time.perf_counter()
    with Reranker(model, engine=engine, engine_options=engine_options, device=device) as reranker:
        described = ", ".join(f"{key} {value}" for key, value in reranker.describe().items() if key != "engine")
        console.print(Text(f"{model} loaded in {time.perf_counter() - started:.1f} s: {described}\n"))
        healthy = _probe(console, reranker)
    if healthy:
        console.print(Text("usable", style="bold green"))
    else:
        console.print(
            Text(
                f"not usable: {model} puts a passage on another subject first. Is it a Qwen3 reranker? Compare with "
                f"--model {BUNDLED_MODEL}, with --device cpu, and with another release of torch.",
                style="bold red",
            )
        )
    return healthy


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def devices() -> list[str]:
    """One line per device, as torch sees them."""
    lines = [f"cpu: {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"]
    if find_spec("torch") is None:
        return lines
    import torch

    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        lines.append(f"cuda:{index}: {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    if len(lines) == 1 and shutil.which("nvidia-smi"):
        lines.append(f"nvidia-smi is there, but torch {torch.__version__} sees no GPU: install a CUDA build of torch")
    return lines


def usable_models() -> list[str]:
    """The bundled model, and what of Qwen3-Reranker lies in the hub's cache."""
    from huggingface_hub import scan_cache_dir  # imported here because it takes a tenth of a second
    from huggingface_hub.errors import CacheNotFound

    try:
        resolve_model(BUNDLED_MODEL)
        names = [BUNDLED_MODEL]
    except ModelNotFoundError as error:
        names = [str(error)]
    try:
        cached = scan_cache_dir().repos
    except CacheNotFound:
        cached = frozenset()
    names += sorted(repo.repo_id for repo in cached if repo.repo_type == "model" and "Qwen3-Reranker" in repo.repo_id)
    return names


def _probe(console: Console, reranker: Reranker) -> bool:
    """Score the probes and print them; True if every relevant passage comes first."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("query")
    for column in ("relevant", "irrelevant", "time"):
        table.add_column(column, justify="right")
    healthy = True
    for probe in PROBES:
        result = reranker.rerank(probe.query, [probe.relevant, probe.irrelevant])
        scores = {hit.index: hit.score for hit in result}
        healthy &= result[0].index == 0 and result[0].margin > result[1].margin
        table.add_row(
            Text(probe.query), f"{scores[0]:.3f}", f"{scores[1]:.3f}", f"{result.usage.seconds * 1000:.0f} ms"
        )
    console.print(table)
    return healthy
