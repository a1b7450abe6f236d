"""`qwen3-ranker demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..demo import DEFAULT_CANDIDATES
from .options import DeviceOption, ModelOption, device_name, model_name
from .terminal import output


def demo(
    queries: Annotated[int, typer.Option(help="Number of questions to show.")] = 4,
    top_k: Annotated[int, typer.Option(help="Number of passages to show for each question.")] = 5,
    candidates: Annotated[
        int, typer.Option(help="Number of passages that BM25 hands to the reranker for each question.")
    ] = DEFAULT_CANDIDATES,
    adapter: Annotated[str, typer.Option(help="Framework to search in: both, haystack or langchain.")] = "both",
    model: ModelOption = None,
    device: DeviceOption = None,
) -> None:
    """Rerank a real corpus in Haystack and in LangChain, and measure what changes."""
    from ..demo.run import run_demo

    run_demo(
        output(),
        model=model_name(model),
        device=device_name(device),
        adapter=adapter,
        queries=queries,
        top_k=top_k,
        candidates=candidates,
    )
