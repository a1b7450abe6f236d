"""`qwen3-ranker bench load`: many callers of a service, at given rates or with given numbers of clients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ...errors import InvalidInputError, MissingDependencyError
from ...pip_command import pip_install
from ..options import OutputOption, SeedOption, TagOption, numbers
from ..terminal import say
from .latency import read_key


def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the service, such as http://127.0.0.1:8001.")],
    workload: Annotated[
        str,
        typer.Option(
            help="What a request consists of: QUERY+ITEMxCOUNT (tokens of the query, mean tokens of an item, number "
            "of items), COUNT-chunks (about 260 tokens each), COUNT-titles (product titles), or mix (85 % 120+180x10, "
            "10 % 100-chunks, 5 % 1000-titles)."
        ),
    ] = "120+180x10",
    kind: Annotated[
        str, typer.Option(help="Format of the service's requests: server (ours), vllm, cohere, jina or tei.")
    ] = "server",
    qps: Annotated[
        str | None,
        typer.Option(help="Open loop: rates of Poisson arrivals in requests per second, separated by commas."),
    ] = None,
    items_per_second: Annotated[
        str | None,
        typer.Option(help="Open loop: the same rates in items (documents) per second, separated by commas."),
    ] = None,
    clients: Annotated[
        str | None,
        typer.Option(
            help="Closed loop: numbers of clients, separated by commas; each sends a request when it has the "
            "answer to its previous one."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Duration of each rate or number of clients in seconds.")] = 10.0,
    timeout: Annotated[
        float, typer.Option(help="Maximum time for an answer in seconds, from the scheduled arrival of the request.")
    ] = 30.0,
    deadline: Annotated[
        float | None,
        typer.Option(
            help="Deadline of each request in seconds, sent as X-Request-Timeout. Our server refuses at once what it "
            "cannot answer in that time. Default: none is sent."
        ),
    ] = None,
    p99_limit: Annotated[
        float, typer.Option(help="Limit of P99 in milliseconds; the highest rate within it is reported.")
    ] = 500.0,
    warmup: Annotated[int, typer.Option(help="Number of requests that are sent first and not counted.")] = 8,
    processes: Annotated[
        int, typer.Option(help="Number of client processes, among which rates and clients are divided.")
    ] = 1,
    beside: Annotated[
        str | None,
        typer.Option(
            help="Second workload, sent at the same time in a closed loop and reported separately. Default: none."
        ),
    ] = None,
    beside_clients: Annotated[
        int,
        typer.Option(help="Number of clients that send the second workload. Has no effect unless --beside is given."),
    ] = 2,
    served_model: Annotated[
        str, typer.Option(help="The service's name for the model. Default: requests name no model.")
    ] = "",
    api_key_file: Annotated[
        Path | None, typer.Option(help="File whose first line is the key of the service. Default: no key is sent.")
    ] = None,
    seed: SeedOption = 0,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet_runs: Annotated[bool, typer.Option("--quiet-runs", help="Do not print a line for each step.")] = False,
) -> None:
    """Measure latency, items/s and errors of a service under load.

    Give --qps or --items-per-second (open loop), or --clients (closed loop). In the open loop requests arrive at random
    moments, whether the service keeps up or not, and latency counts from the scheduled arrival, not from the sending. A
    service that stalls therefore cannot hide the requests that would have waited (no coordinated omission). The rate at
    which P99 reaches its limit is interpolated linearly between the two measured rates around it; failed requests count
    there as slower than any other.
    """
    from ...bench.machine import environment
    from ...bench.report_files import check_output

    check_output(output, tag)
    try:
        from ...bench.load.run import LoadPlan, measure_load
        from ...bench.load.target import Target
    except ImportError as error:
        raise MissingDependencyError(f"bench load needs {error.name}: {pip_install('bench')}") from error
    from ...bench.load.workloads import Workload
    from ..present import present

    chosen = Workload.named(workload)
    given = {"qps": qps, "items-per-second": items_per_second, "clients": clients}
    if len([value for value in given.values() if value is not None]) != 1:
        raise InvalidInputError(
            "qps, items-per-second, clients",
            [name for name, value in given.items() if value is not None],
            "give exactly one of them, such as --items-per-second 600,1200",
        )
    rates = [] if qps is None else _rates("qps", qps)
    if items_per_second is not None:
        rates = [rate / chosen.items for rate in _rates("items-per-second", items_per_second)]
    plan = LoadPlan(
        chosen,
        rates=rates,
        clients=[] if clients is None else numbers("clients", clients),
        seconds=seconds,
        timeout=timeout,
        p99_limit_ms=p99_limit,
        warmup=warmup,
        processes=processes,
        beside=None if beside is None else Workload.named(beside),
        beside_clients=beside_clients,
        seed=seed,
    )
    key = None if api_key_file is None else read_key(api_key_file)
    target = replace(Target.at(url, kind, served_model=served_model, api_key=key), deadline=deadline)
    about = environment()
    if about.warning is not None:
        say(about.warning)
    result = measure_load(target, plan, about, tag=tag, progress=None if quiet_runs else say)
    present(result, output, tag)
    if result.failed:
        raise typer.Exit(1)


def _rates(argument: str, text: str) -> list[float]:
    """Parse numbers such as "0.5,60".

    Raises:
        InvalidInputError: the text is something else.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(argument, text, "give numbers separated by commas, such as 0.5,60") from error
    if not all(0 < number < float("inf") for number in found) or len(set(found)) < len(found):
        raise InvalidInputError(argument, text, "give positive numbers, none of them twice")
    return found
