"""`qwen3-ranker bench latency` and `bench matrix`, which send the same requests: to one server, or to several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...config import canonical_engine
from ...errors import InvalidInputError
from ...prompt import Template
from ..options import (
    DeviceOption,
    DevicesOption,
    InstructionOption,
    ModelOption,
    OutputOption,
    PresetDtypeOption,
    PresetMaxLengthOption,
    PresetOption,
    PresetTemplateOption,
    SeedOption,
    TagOption,
    TokenBudgetOption,
    names,
    numbers,
    settings_of,
)
from ..terminal import say

if TYPE_CHECKING:
    from ...bench.latency.matrix import MatrixResult
    from ...bench.latency.requests import LatencyPlan
    from ...config import RerankerSettings

CountsArgument = Annotated[
    str, typer.Argument(metavar="COUNTS", help="Numbers of documents in a request, separated by commas.")
]
RepeatOption = Annotated[int, typer.Option(help="Number of timed requests for each count.")]
WarmupOption = Annotated[int, typer.Option(help="Number of requests that are sent first and not timed.")]
WarmupDocumentsOption = Annotated[
    int | None,
    typer.Option(
        help="Number of documents in a request that is not timed. Default: 400, or the largest count if less."
    ),
]
TimeoutOption = Annotated[float, typer.Option(help="Maximum time for an answer in seconds.")]
StartTimeoutOption = Annotated[float, typer.Option(help="Maximum time in seconds for a server to start.")]
TitlesOption = Annotated[
    Path | None, typer.Option("--titles", help="File of titles, one per line. Default: generated titles.")
]
LanguageOption = Annotated[str, typer.Option(help="Language of generated titles and queries: zh, en or both.")]
QueryOption = Annotated[
    str | None,
    typer.Option("--query", help="Query of the requests that share one query. Default: a search for a T-shirt."),
]
FreshOption = Annotated[
    bool | None,
    typer.Option(
        "--fresh-queries/--same-query",
        help="Send only requests with a new query each, or only requests with the same query. Default: both kinds.",
    ),
]
SummaryOption = Annotated[
    Path | None, typer.Option("--json-summary-out", help="File for the result as JSON. Default: none.")
]
QuietRunsOption = Annotated[bool, typer.Option("--quiet-runs", help="Do not print a line for each request.")]
ServerEngineOption = Annotated[
    str | None,
    typer.Option("--engine", help="Engine of the server that is started, by its name. Default: auto."),
]
COUNTS = "100,200,400,600,800,1000"


def latency(
    counts: CountsArgument = COUNTS,
    url: Annotated[
        str | None,
        typer.Option(help="Address of a running server, such as http://127.0.0.1:8001. Default: a server is started."),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File whose first line is the key of the server. Default: no key is sent.")
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
    engine: ServerEngineOption = None,
    device: DeviceOption = None,
    devices: DevicesOption = None,
    dtype: PresetDtypeOption = None,
    template: PresetTemplateOption = None,
    instruction: InstructionOption = None,
    max_length: PresetMaxLengthOption = None,
    token_budget: TokenBudgetOption = None,
    preset: PresetOption = None,
    start_timeout: StartTimeoutOption = 900.0,
    json_summary_out: SummaryOption = None,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet_runs: QuietRunsOption = False,
) -> None:
    """Measure the wall time that a client of POST /rerank sees, over the number of documents in a request.

    Model, engine, preset and their options are for the server that is started; they cannot be given with --url.
    """
    from contextlib import ExitStack

    from ...bench.latency.client import Client
    from ...bench.latency.requests import latency_result, measure_latency
    from ...bench.latency.server_process import RunningServer
    from ...bench.machine import environment
    from ...bench.report_files import check_output
    from ...bench.results import write_result
    from ..present import present

    plan, found, source = _plan(
        counts, repeat, seed, warmup, warmup_documents, timeout, titles, language, query, fresh_queries
    )
    own = {
        "model": model,
        "engine": engine,
        "device": device,
        "devices": devices,
        "dtype": dtype,
        "template": template,
        "instruction": instruction,
        "max_length": max_length,
        "token_budget": token_budget,
        "preset": preset,
    }
    if url is not None:
        _refuse_with_url(own)
    settings = settings_of(**{**own, "engine": "auto" if engine is None else engine})  # type: ignore[arg-type]
    check_output(output, tag)
    about = environment()
    if about.warning is not None:
        say(about.warning)
    key = None if api_key_file is None else read_key(api_key_file)
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
    if result.failed:
        raise typer.Exit(1)


def matrix(
    counts: CountsArgument = COUNTS,
    engines: Annotated[str, typer.Option(help="Names of engines, separated by commas.")] = "auto",
    templates: Annotated[
        str | None, typer.Option(help="Names of templates, separated by commas. Default: compact,standard.")
    ] = None,
    max_lengths: Annotated[
        str | None,
        typer.Option(help="Maximum lengths of a prompt in tokens, separated by commas. Default: 160."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Names of presets (accurate, balanced, fast), separated by commas; each replaces a "
            "template and a length limit.",
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
    devices: DevicesOption = None,
    dtype: PresetDtypeOption = None,
    instruction: InstructionOption = None,
    start_timeout: StartTimeoutOption = 900.0,
    json_summary_out: SummaryOption = None,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet_runs: QuietRunsOption = False,
) -> None:
    """Measure the latency of several servers: engines x templates x length limits, or engines x presets.

    For each combination a server is started, measured and stopped. If one fails, only its own row is missing.
    """
    from ...bench.latency.matrix import format_cells, measure_matrix, preset_cells
    from ...bench.report_files import check_output
    from ...bench.results import write_result
    from ..present import present

    plan, found, source = _plan(
        counts, repeat, seed, warmup, warmup_documents, timeout, titles, language, query, fresh_queries
    )
    settings = settings_of(model=model, device=device, devices=devices, dtype=dtype, instruction=instruction)
    asked = names("engines", engines)
    for name in asked:  # before a server is started for any of them
        canonical_engine(name)
    if preset is None:
        formats = names("templates", "compact,standard" if templates is None else templates)
        for name in formats:
            Template.named(name)
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

    def keep(so_far: MatrixResult) -> None:
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
    if any(cell.error is not None for cell in result.cells):
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
    """Returns (plan, titles, where the titles come from)."""
    from ...bench.latency.requests import LatencyPlan
    from ...bench.titles import DEFAULT_QUERY, generate_titles, read_titles

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
    """Flags of `serve` that all cells share; their limits admit the largest request."""
    return {
        "model": settings.model,
        "device": settings.device,
        "devices": settings.devices,
        "dtype": settings.dtype,
        "instruction": settings.instruction,
        "max_documents": max(2000, documents),
        "request_timeout": timeout,
        "max_wait": timeout,
        "log_level": "warning",
    }


def _refuse_with_url(own: Mapping[str, object]) -> None:
    """Refuse settings for a new server together with --url, because the running server does not use them.

    Raises:
        InvalidInputError: one of them is given.
    """
    for name, value in own.items():
        if value is not None:
            raise InvalidInputError(
                name, value, "has no effect with --url, which names a running server: leave out one of the two"
            )


def read_key(path: Path) -> str:
    """The first line of a file that is not blank, which holds the key.

    Raises:
        InvalidInputError: the file cannot be read, or all its lines are blank.
    """
    from ...bench.titles import read_titles

    return read_titles(path)[0]
