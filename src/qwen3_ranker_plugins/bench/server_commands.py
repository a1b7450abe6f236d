"""`qwen3-ranker bench latency` and `matrix`: flags only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import DeviceOption, InstructionOption, ModelOption
from .options import (
    DtypeOption,
    OutputOption,
    TagOption,
    names,
    numbers,
    say,
    settings_of,
)

if TYPE_CHECKING:
    from ..config import RerankerSettings
    from .latency import LatencyPlan

CountsArgument = Annotated[str, typer.Argument(metavar="COUNTS", help="Documents in a request.")]
RepeatOption = Annotated[int, typer.Option(help="Timed requests for each count.")]
SeedOption = Annotated[int, typer.Option(help="Of the titles and queries.")]
WarmupOption = Annotated[int, typer.Option(help="Requests before, without a clock.")]
WarmupDocumentsOption = Annotated[
    int | None, typer.Option(help="Documents in them. Default: 400, or the largest count.")
]
TimeoutOption = Annotated[float, typer.Option(help="Seconds for one answer.")]
StartTimeoutOption = Annotated[float, typer.Option(help="Seconds until a server has to be ready.")]
TitlesOption = Annotated[
    Path | None, typer.Option("--titles", help="A file, one title a line. Default: generated ones.")
]
LanguageOption = Annotated[str, typer.Option(help="Of generated titles and queries: zh, en or both.")]
QueryOption = Annotated[str | None, typer.Option("--query", help="Of requests with the same query. Default: the T4's.")]
FreshOption = Annotated[
    bool | None,
    typer.Option(
        "--fresh-queries/--same-query", help="Only requests with a new query each, or with one for all. Default: both."
    ),
]
SummaryOption = Annotated[Path | None, typer.Option("--json-summary-out", help="Write the result there, as JSON.")]
QuietRunsOption = Annotated[bool, typer.Option("--quiet-runs", help="No line for each request.")]
ServerEngineOption = Annotated[str, typer.Option("--engine", help="Of a server of our own: auto, or an engine's name.")]
COUNTS = "100,200,400,600,800,1000"


def latency(
    counts: CountsArgument = COUNTS,
    url: Annotated[
        str | None, typer.Option(help="A running server, such as http://127.0.0.1:8001. Default: start one.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file whose first line is the server's key.")] = None,
    repeat: RepeatOption = 5,
    seed: SeedOption = 99,
    warmup: WarmupOption = 3,
    warmup_documents: WarmupDocumentsOption = None,
    timeout: TimeoutOption = 360.0,
    titles: TitlesOption = None,
    language: LanguageOption = "zh",
    query: QueryOption = None,
    fresh_queries: FreshOption = None,
    model: ModelOption = None,
    engine: ServerEngineOption = "auto",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    template: Annotated[str, typer.Option("--template", help="Of a server of our own.")] = "standard",
    instruction: InstructionOption = None,
    max_length: Annotated[int, typer.Option("--max-length", help="Of a server of our own.")] = 8192,
    start_timeout: StartTimeoutOption = 900.0,
    json_summary_out: SummaryOption = None,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet_runs: QuietRunsOption = False,
) -> None:
    """Client wall time of POST /rerank over the number of documents, as the T4 report measured it."""
    from contextlib import ExitStack

    from .latency import failed, latency_result, measure_latency
    from .output import check_output, present
    from .results import environment, write_result
    from .server import Client, RunningServer

    plan, found, source = _plan(
        counts, repeat, seed, warmup, warmup_documents, timeout, titles, language, query, fresh_queries
    )
    check_output(output, tag)
    about = environment()
    key = None if api_key_file is None else _key(api_key_file)
    with ExitStack() as stack:
        if url is None:
            settings = settings_of(
                model=model,
                engine=engine,
                device=device,
                dtype=dtype,
                template=template,
                instruction=instruction,
                max_length=max_length,
            )
            server = _server_settings(settings, max(*plan.counts, plan.warmup_documents), timeout)
            server |= {"engine": engine, "template": template, "max_length": max_length}
            say("starting a server ...")
            address = stack.enter_context(RunningServer(server, start_timeout=start_timeout)).url
        else:
            server, address = {"url": url}, url
        client = Client(address, timeout=timeout, api_key=key)
        stack.callback(client.close)
        client.health()
        rows = measure_latency(client, plan, found, progress=None if quiet_runs else say)
        result = latency_result(about, rows, plan, client.health(), titles=source, tag=tag, server=server)
    if json_summary_out is not None:
        write_result(json_summary_out, result)
    present(result, output, tag)
    if failed(result):
        raise typer.Exit(1)


def matrix(
    counts: CountsArgument = COUNTS,
    engines: Annotated[str, typer.Option(help="Engines, with commas between them.")] = "auto",
    templates: Annotated[str, typer.Option(help="Instruction formats, with commas between them.")] = "compact,standard",
    max_lengths: Annotated[str, typer.Option(help="Length limits in tokens, with commas; the T4 report's is 160.")] = (
        "160"
    ),
    repeat: RepeatOption = 5,
    seed: SeedOption = 99,
    warmup: WarmupOption = 3,
    warmup_documents: WarmupDocumentsOption = None,
    timeout: TimeoutOption = 360.0,
    titles: TitlesOption = None,
    language: LanguageOption = "zh",
    query: QueryOption = None,
    fresh_queries: FreshOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    instruction: InstructionOption = None,
    start_timeout: StartTimeoutOption = 900.0,
    json_summary_out: SummaryOption = None,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet_runs: QuietRunsOption = False,
) -> None:
    """Latency of engines x formats x length limits, each a server of its own; a failing one costs only its row."""
    from .matrix import measure_matrix
    from .output import check_output, present
    from .results import write_result

    plan, found, source = _plan(
        counts, repeat, seed, warmup, warmup_documents, timeout, titles, language, query, fresh_queries
    )
    settings = settings_of(model=model, device=device, dtype=dtype, instruction=instruction)
    check_output(output, tag)
    result = measure_matrix(
        plan,
        found,
        engines=names(engines),
        templates=names(templates),
        max_lengths=numbers("max_lengths", max_lengths),
        server=_server_settings(settings, max(*plan.counts, plan.warmup_documents), timeout),
        titles_source=source,
        start_timeout=start_timeout,
        progress=None if quiet_runs else say,
    )
    if json_summary_out is not None:
        write_result(json_summary_out, result)
    present(result, output, tag)
    if any("error" in cell for cell in result["cells"]):
        raise typer.Exit(1)


def _plan(
    counts: str,
    repeat: int,
    seed: int,
    warmup: int,
    warmup_documents: int | None,
    timeout: float,
    titles: Path | None,
    language: str,
    query: str | None,
    fresh_queries: bool | None,
) -> tuple[LatencyPlan, list[str], str]:
    """(plan, titles, where they come from)."""
    from .latency import LatencyPlan
    from .titles import DEFAULT_QUERY, generate_titles, read_titles

    sizes = numbers("counts", counts)
    plan = LatencyPlan(
        counts=sizes,
        repeat=repeat,
        warmup=warmup,
        warmup_documents=min(400, max(sizes)) if warmup_documents is None else warmup_documents,
        seed=seed,
        queries={None: "both", True: "fresh", False: "same"}[fresh_queries],
        query=DEFAULT_QUERY if query is None else query,
        language=language,
        timeout=timeout,
    )
    if titles is not None:
        found = read_titles(titles)
        return plan, found, f"{titles.name}, {len(found)} lines"
    count = max(2000, 2 * max(sizes))
    return plan, generate_titles(count, language=language, seed=seed), f"{count} generated, language {language}"


def _server_settings(settings: RerankerSettings, documents: int, timeout: float) -> dict[str, object]:
    """Flags of `serve` that all cells share; the largest request must pass."""
    return {
        "model": settings.model,
        "device": settings.device,
        "dtype": settings.dtype,
        "instruction": settings.instruction,
        "max_documents": max(2000, documents),
        "request_timeout": timeout,
        "log_level": "warning",
    }


def _key(path: Path) -> str:
    from .titles import read_titles

    return read_titles(path)[0]
