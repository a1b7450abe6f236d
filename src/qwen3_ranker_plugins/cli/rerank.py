"""`qwen3-ranker rerank`. Exit code 0: every pair was scored; 1: some were not, or the job stopped; 2: an argument."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from ..config import BUNDLED_MODEL, device_from_environment, model_from_environment
from ..prompt import DEFAULT_MAX_LENGTH
from .options import (
    DeviceOption,
    DtypeOption,
    EngineOption,
    EngineOptionsOption,
    InstructionOption,
    MaxLengthOption,
    ModelOption,
    TemplateOption,
    TokenBudgetOption,
    read_engine_options,
)


def rerank(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="JSONL (or .jsonl.gz) or Parquet of query_id, doc_id, query, document; or query and documents; or a "
            "BEIR folder or ir_datasets:ID with --run.",
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Written when all is scored: .jsonl, .parquet, or .trec, .run, .txt.")
    ],
    run: Annotated[str | None, typer.Option(help="A TREC run: the documents of each query.")] = None,
    output_format: Annotated[
        str | None, typer.Option("--format", help="jsonl, parquet or trec. Default: by suffix.")
    ] = None,
    include_text: Annotated[bool, typer.Option("--include-text", help="Write query and document texts too.")] = False,
    processing_time: Annotated[
        bool,
        typer.Option(help="Write processing_time, the only field that differs between two runs of one job."),
    ] = True,
    max_errors: Annotated[
        int | None,
        typer.Option(help="Stop when more pairs than this cannot be scored. Default: score the rest to the end."),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an earlier run of this output left.")] = False,
    runner: Annotated[str, typer.Option(help="local, or ray.")] = "local",
    gpus: Annotated[
        str | None, typer.Option(help="With the local runner, one engine on each: all, or numbers such as 0,1.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="With Ray, how many engines. Default: one on each GPU, or one.")
    ] = None,
    ray_address: Annotated[str | None, typer.Option(help="With Ray, the cluster to join. Default: start one.")] = None,
    instruction: InstructionOption = None,
    template: TemplateOption = "standard",
    max_length: MaxLengthOption = DEFAULT_MAX_LENGTH,
    token_budget: TokenBudgetOption = None,
    model: ModelOption = None,
    engine: EngineOption = "auto",
    engine_option: EngineOptionsOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no summary.")] = False,
) -> None:
    """Rerank a file of pairs into another one. Killed, it goes on where it was when it is run again."""
    from ..offline.job import RerankJob
    from ..offline.progress import describe
    from ..offline.runners.local import cuda_devices

    results = RerankJob(
        source,
        output,
        run=run,
        model=model_from_environment(BUNDLED_MODEL) if model is None else model,
        engine=engine,
        engine_options=read_engine_options(engine_option),
        device=device_from_environment() if device is None else device,
        dtype=dtype,
        template=template,
        instruction=instruction,
        max_length=max_length,
        token_budget=token_budget,
        format=output_format,
        include_text=include_text,
        processing_time=processing_time,
        max_errors=max_errors,
        runner=runner,
        devices=None if gpus is None else cuda_devices(gpus),
        workers=workers,
        ray_address=ray_address,
        restart=restart,
        show_progress=sys.stderr.isatty() and not quiet,
    ).run()
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if not quiet:
        console.print(describe(results.summary))
        console.print(f"written to {results.path}", markup=False)
    if results.summary.errors:
        console.print(f"{results.summary.errors} pairs have no score: see {results.errors_path}", markup=False)
        raise typer.Exit(1)
