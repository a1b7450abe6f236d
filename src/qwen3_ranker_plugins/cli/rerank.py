"""`qwen3-ranker rerank`.

Exit code 0: every pair was scored; 1: some pairs were not, or the job stopped; 2: an argument is unusable.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..config import BUNDLED_MODEL, DEFAULT_MODEL, DEVICES_VARIABLE, MODEL_VARIABLE
from ..data.formats import INPUT_FORMATS, SUFFIXES
from ..errors import InvalidInputError
from ..prompt import DEFAULT_MAX_LENGTH
from ..types import DEFAULT_PIECES
from .options import (
    AdapterOption,
    CacheOption,
    CachePathOption,
    CalibrationOption,
    DeviceOption,
    DocumentTemplateOption,
    DtypeOption,
    EngineOption,
    EngineOptionsOption,
    InstructionOption,
    LongDocumentsOption,
    MaxLengthOption,
    MaxPiecesOption,
    PieceOverlapOption,
    PieceTokensOption,
    RankFieldsOption,
    ScoringOption,
    TemplateOption,
    TokenBudgetOption,
    names,
    placement,
    read_engine_options,
)

_STANDARD_OUTPUT = "-"


def rerank(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Pairs of query_id, doc_id, query, document, or records of query and documents: a file "
            f"({', '.join(SUFFIXES)}; also with .gz or .zst), a folder or quoted pattern of such files, a URL, or - "
            "for standard input. With --run: a BEIR folder or ir_datasets:ID.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="Output file, which appears when everything is scored: .jsonl, .csv, .trec, .run or .txt (also .gz), "
            "or .parquet; or - for standard output, in which case a killed job cannot be continued.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help=f"Model: a name on the Hugging Face hub such as {DEFAULT_MODEL}, a local folder, or {BUNDLED_MODEL} "
            f"for a trial. Required unless ${MODEL_VARIABLE} names one.",
        ),
    ] = None,
    adapter: AdapterOption = None,
    scoring: ScoringOption = None,
    calibration: CalibrationOption = None,
    cache: CacheOption = None,
    cache_path: CachePathOption = None,
    run: Annotated[
        str | None, typer.Option(help="TREC run that lists the documents of each query. Default: none.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=FIELD,...",
            help="Names of the fields in the input, such as qid=query_id,passage=document. FIELD is query_id, doc_id, "
            "query, document, documents, id, title or text.",
        ),
    ] = None,
    rank_fields: RankFieldsOption = None,
    document_template: DocumentTemplateOption = None,
    input_format: Annotated[
        str | None,
        typer.Option(
            help=f"Format of the input: {', '.join(INPUT_FORMATS)}. Default: by suffix; jsonl for standard input."
        ),
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Format of the output: jsonl, csv, parquet or trec. Default: by suffix; jsonl for standard output.",
        ),
    ] = None,
    include_text: Annotated[
        bool, typer.Option("--include-text", help="Also write the query and the judged text of the document.")
    ] = False,
    processing_time: Annotated[
        bool,
        typer.Option(help="Write processing_time, the only field that differs between two runs of one job."),
    ] = True,
    max_errors: Annotated[
        int | None,
        typer.Option(help="Maximum number of pairs that cannot be scored before the job stops. Default: no maximum."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace a finished output, or a file that no job has made. An unfinished job is continued.",
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Start from the beginning, even if an unfinished job for this output exists."),
    ] = False,
    runner: Annotated[str, typer.Option(help="Where engines run: local, or ray for a Ray cluster.")] = "local",
    devices: Annotated[
        str | None,
        typer.Option(
            help="Devices, each of which gets an engine in its own process: all for every visible GPU, or names such "
            f"as cuda:0,cuda:1. Not with --runner ray. Default: ${DEVICES_VARIABLE}, or one engine on --device."
        ),
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(help="The same as --devices, with numbers of GPUs: all, or numbers such as 0,1.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Number of engines with --runner ray. Default: one on each GPU, or one."),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Address of the cluster to join with --runner ray. Default: start one.")
    ] = None,
    instruction: InstructionOption = None,
    template: TemplateOption = "standard",
    max_length: MaxLengthOption = DEFAULT_MAX_LENGTH,
    long_documents: LongDocumentsOption = "truncate",
    piece_tokens: PieceTokensOption = DEFAULT_PIECES.tokens,
    piece_overlap: PieceOverlapOption = DEFAULT_PIECES.overlap,
    max_pieces: MaxPiecesOption = DEFAULT_PIECES.limit,
    token_budget: TokenBudgetOption = None,
    engine: EngineOption = "auto",
    engine_option: EngineOptionsOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", help="Show no progress bar, no description of the model and no summary. Warnings are shown."
        ),
    ] = False,
) -> None:
    """Rerank a file of pairs into another file. If the job is killed, the same command continues where it stopped."""
    from ..data.pairs import parse_columns
    from ..offline.job import RerankJob
    from ..offline.progress import describe

    if gpus is not None:
        devices = _devices_of_gpus(gpus, devices)
    one, several = placement(device, devices)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    _log_to(console, logging.WARNING if quiet else logging.INFO)
    to_standard_output = output == _STANDARD_OUTPUT
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qwen3-ranker-")) if to_standard_output else ""
        job = RerankJob(
            source,
            Path(folder, "output") if to_standard_output else output,
            run=run,
            model=model,
            engine=engine,
            engine_options=read_engine_options(engine_option),
            adapter=adapter,
            scoring=scoring,
            calibration=calibration,
            cache=cache,
            cache_path=cache_path,
            long_documents=long_documents,
            piece_tokens=piece_tokens,
            piece_overlap=piece_overlap,
            max_pieces=max_pieces,
            device=one,
            dtype=dtype,
            template=template,
            instruction=instruction,
            max_length=max_length,
            token_budget=token_budget,
            format="jsonl" if to_standard_output and output_format is None else output_format,
            columns=parse_columns(columns),
            rank_fields=None if rank_fields is None else names("rank-fields", rank_fields),
            document_template=document_template,
            input_format=input_format,
            include_text=include_text,
            processing_time=processing_time,
            max_errors=max_errors,
            runner=runner,
            devices=_named_devices(several if runner == "local" else devices),
            workers=workers,
            ray_address=ray_address,
            overwrite=overwrite,
            restart=restart,
            show_progress=sys.stderr.isatty() and not quiet,
        )
        try:
            results = job.run()
        except KeyboardInterrupt:
            console.print(_how_to_go_on(to_standard_output=to_standard_output, restart=restart), markup=False)
            raise typer.Exit(130) from None
        if not quiet:
            console.print(describe(results.summary), markup=False)
        if to_standard_output:
            with results.path.open("rb") as content:
                shutil.copyfileobj(content, sys.stdout.buffer, 2**20)
            sys.stdout.buffer.flush()
            if results.summary.errors:
                console.print(results.errors_path.read_text(encoding="utf-8").rstrip("\n"), markup=False)
                console.print(f"{results.summary.errors} pairs have no score, for these reasons", markup=False)
        else:
            if not quiet:
                console.print(f"written to {results.path}", markup=False)
            if results.summary.errors:
                console.print(f"{results.summary.errors} pairs have no score: see {results.errors_path}", markup=False)
    if results.summary.errors:
        raise typer.Exit(1)


def _devices_of_gpus(gpus: str, devices: str | None) -> str:
    """The devices of `--gpus`.

    Raises:
        InvalidInputError: `--devices` is given, too, or there is no such GPU.
    """
    from ..offline.runners.processes import cuda_devices

    if devices is not None:
        raise InvalidInputError("gpus", gpus, "is another name for --devices: give only one of them")
    return ",".join(cuda_devices(gpus))


def _named_devices(devices: str | None) -> list[str] | None:
    """The devices that `--devices` or its variable names.

    Raises:
        InvalidInputError: one of these devices does not exist.
    """
    from ..checks import canonical_devices
    from ..engines import device_names

    named = canonical_devices(devices)
    return None if named is None else device_names(named)


def _log_to(console: Console, level: int) -> None:
    """Show the log messages of jobs: the model in use, and what is unusual about the input."""

    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            prefix = "warning: " if record.levelno >= logging.WARNING else ""
            console.print(f"{prefix}{record.getMessage()}", markup=False)

    logger = logging.getLogger("qwen3_ranker_plugins.offline")
    logger.handlers = [Printing()]
    logger.setLevel(level)
    logger.propagate = False


def _how_to_go_on(*, to_standard_output: bool, restart: bool) -> str:
    if to_standard_output:
        return "interrupted: nothing is kept when the output is standard output; give a file to be able to continue"
    words = [word for word in sys.argv[1:] if not (restart and word == "--restart")]
    without = ", without --restart," if restart else ""
    command = shlex.join(["qwen3-ranker", *words])
    return f"interrupted: what was scored is kept. The same command{without} continues: {command}"
