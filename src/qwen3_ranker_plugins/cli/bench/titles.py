"""`qwen3-ranker bench titles`."""

from __future__ import annotations

from typing import Annotated

import typer


def titles(
    count: Annotated[int, typer.Argument(metavar="COUNT", help="Number of titles.")] = 1000,
    language: Annotated[str, typer.Option(help="Language: zh, en or both.")] = "zh",
    seed: Annotated[int, typer.Option(help="Seed; equal seeds give equal titles.")] = 0,
) -> None:
    """Print generated product titles, one per line."""
    from ...bench.titles import generate_titles

    typer.echo("\n".join(generate_titles(count, language=language, seed=seed)))
