"""`qwen3-ranker bench latency` and `matrix`: flags only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidInputError
from .bench_options import (
    DtypeOption,
    MaxLengthOption,
    OutputOption,
    PresetOption,
    TagOption,
    TemplateOption,
    names,
    numbers,
    say,
    settings_of,
)
from .options import DeviceOption, InstructionOption, ModelOption, TokenBudgetOption

if TYPE_CHECKING:
    from ..bench.latency import LatencyPlan
    from ..bench.results import Result
    from ..config import RerankerSettings

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
ServerEngineOption = Annotated[
    str | None, typer.Option("--engine", help="Of a server of our own: an engine's name. Default: auto.")
]
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
    engine: ServerEngineOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    template: TemplateOption = None,
    instruction: InstructionOption = None,
    max_length: MaxLengthOption = None,
    token_budget: TokenBudgetOption = None,
    preset: PresetOption = None,
    start_timeout: StartTimeoutOption = 900.0,
    json_summary_out: SummaryOption = None,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet_runs: QuietRunsOption = False,
) -> None:
    """Client wall time of POST /rerank over the number of documents, as the T4 report measured it.

    Model, engine, preset and what goes with them are those of a server of our own; one at --url has its own.
    """
    from contextlib import ExitStack

    from ..bench.latency import failed, latency_result, measure_latency
    from ..bench.output import check_output, present
    from ..bench.results import environment, write_result
    from ..bench.server import Client, RunningServer

    plan, found, source = _plan(
        counts, repeat, seed, warmup, warmup_documents, timeout, titles, language, query, fresh_queries
    )
    own = {
        "model": model,
        "engine": engine,
        "device": device,
        "dtype": dtype,
        "template": template,
        "instruction": instruction,
        "max_length": max_length,
        "token_budget": token_budget,
        "preset": preset,
    }
    if url is not None:
        _refuse_beside_url(own)
    settings = settings_of(**{**own, "engine": "auto" if engine is None else engine})  # type: ignore[arg-type]
    check_output(output, tag)
    about = environment()
    key = None if api_key_file is None else _key(api_key_file)
    with ExitStack() as stack:
        if url is None:
            server = _server_settings(settings, max(*plan.counts, plan.warmup_documents), timeout)
            for name in ("engine", "template", "max_length", "token_budget"):
                server[name] = getattr(settings, name)
            say("starting a server ...")
            address = stack.enter_context(RunningServer(server, start_timeout=start_timeout)).url
            server["preset"] = preset
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
    templates: Annotated[
        str | None, typer.Option(help="Instruction formats, with commas between them. Default: compact,standard.")
    ] = None,
    max_lengths: Annotated[
        str | None, typer.Option(help="Length limits in tokens, with commas. Default: 160, the T4 report's.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", help="accurate, balanced, fast, with commas: each in place of a template and a length limit."
        ),
    ] = None,
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
    """Latency of engines x formats x length limits, each a server of its own; a failing one costs only its row.

    With --preset, of engines x presets.
    """
    from ..bench.matrix import format_cells, measure_matrix, preset_cells
    from ..bench.output import check_output, present
    from ..bench.results import write_result

    plan, found, source = _plan(
        counts, repeat, seed, warmup, warmup_documents, timeout, titles, language, query, fresh_queries
    )
    settings = settings_of(model=model, device=device, dtype=dtype, instruction=instruction)
    asked = names("engines", engines)
    if preset is None:
        formats = names("templates", "compact,standard" if templates is None else templates)
        cells = format_cells(asked, formats, numbers("max_lengths", "160" if max_lengths is None else max_lengths))
    else:
        for name, value in (("templates", templates), ("max-lengths", max_lengths)):
            if value is not None:
                raise InvalidInputError(
                    "preset", preset, f"chooses template and length limit: leave out --{name} {value}"
                )
        cells = preset_cells(asked, names("preset", preset), dtype=dtype)
    check_output(output, tag)
    files = [] if json_summary_out is None else [json_summary_out]
    if output is not None:
        files.append(output / f"{tag or 'matrix'}.json")

    def keep(so_far: Result) -> None:
        for file in files:
            write_result(file, so_far)

    result = measure_matrix(
        plan,
        found,
        cells=cells,
        server=_server_settings(settings, max(*plan.counts, plan.warmup_documents), timeout),
        titles_source=source,
        start_timeout=start_timeout,
        progress=None if quiet_runs else say,
        on_cell=keep,
    )
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
    from ..bench.latency import LatencyPlan
    from ..bench.titles import DEFAULT_QUERY, generate_titles, read_titles

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


def _refuse_beside_url(own: Mapping[str, object]) -> None:
    """Settings of a server of our own would otherwise be in the command line and not in what was measured.

    Raises:
        InvalidInputError: one of them is given.
    """
    for name, value in own.items():
        if value is not None:
            raise InvalidInputError(name, value, "is for a server of our own: leave it out, or leave out --url")


def _key(path: Path) -> str:
    from ..bench.titles import read_titles

    return read_titles(path)[0]
