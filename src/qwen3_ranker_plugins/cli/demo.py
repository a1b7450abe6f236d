"""`qwen3-ranker demo`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ..data.demo import DEFAULT_CANDIDATES
from .options import DeviceOption, ModelOption, device_name, model_name
from .terminal import output

NAME = "qwen3-ranker"


def demo(
    queries: Annotated[
        int, typer.Option(help="Number of questions to show: three typical gains and the largest loss first.")
    ] = 4,
    top_k: Annotated[int, typer.Option(help="Number of passages to show for each question.")] = 5,
    candidates: Annotated[
        int, typer.Option(help="Number of passages that BM25 hands to the reranker for each question.")
    ] = DEFAULT_CANDIDATES,
    adapter: Annotated[
        str,
        typer.Option(
            help="Framework to search in: haystack, langchain, or both, which shows questions in both and measures all "
            "questions in Haystack."
        ),
    ] = "both",
    model: ModelOption = None,
    device: DeviceOption = None,
) -> None:
    """Rerank a real corpus in Haystack and in LangChain, and measure what changes."""
    from ..demo.run import run_demo

    console = output()
    started = time.monotonic()
    run_demo(
        console,
        model=model_name(model),
        device=device_name(device),
        adapter=adapter,
        queries=queries,
        top_k=top_k,
        candidates=candidates,
    )
    program = _program()
    console.print(f"\nThat took {time.monotonic() - started:.0f} s. What to do next:")
    console.print(
        f"  try it in a browser    {program} serve, then open http://127.0.0.1:8001\n"
        f'  rank your own files    {program} rank --query "what you are looking for" FILE ...\n'
        f"  take a real model      {program} demo --model Qwen/Qwen3-Reranker-0.6B (1.2 GB, downloaded once)",
        soft_wrap=True,
    )


def _program() -> str:
    """The command that calls this program again; `make demo` calls it by its path, because it is not on PATH."""
    called = Path(sys.argv[0])
    by_path = called.name == NAME and called.is_file() and shutil.which(NAME) is None
    return os.path.relpath(called) if by_path else NAME
