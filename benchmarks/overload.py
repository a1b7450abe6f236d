"""The server at and past its limit, on a host without a GPU: what is answered, what is refused, and how late.

    PYTHONPATH=src:. python benchmarks/overload.py OUTPUT.json --commit "$(git rev-parse HEAD)"

`paced_engine.py` takes the place of the model, and sleeps `--slower` times as long as a pass takes on an H200 in the
0.6B shape, so that a host with few cores and one client process suffice. The rest is real: socket, server, queue,
tokenizer (which remembers texts that it knows, unless --encode-us is 0). Requests are those of `qwen3-ranker bench
load`: a query of 120 tokens and 10 items of about 180, at Poisson arrivals. Rates are shares of what the engine could
compute without a gap.

If OUTPUT.json exists, its rounds are kept and one is added, so that two commits can be measured in turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.host_path import paced_model, serve
from benchmarks.host_time import HostTime
from benchmarks.measure_wire import free_port, wait_for
from qwen3_ranker_plugins.bench.load.results import step_figures
from qwen3_ranker_plugins.bench.load.run import LoadPlan, measure_load
from qwen3_ranker_plugins.bench.load.target import Target
from qwen3_ranker_plugins.bench.load.workloads import Workload
from qwen3_ranker_plugins.bench.machine import environment

WORKLOAD = "120+180x10"
#: Tokens of such a request with its prompt, and microseconds of a token on an H200.
TOKENS, TOKEN_US = 2070, 1.8


def measure(site: Path, model: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each rate, without deadlines and with them."""
    options = {"pass_seconds": arguments.slower / 1e3, "token_seconds": arguments.slower * TOKEN_US / 1e6}
    if arguments.encode_us:
        options["encode_seconds"] = arguments.encode_us / 1e6
    port = free_port()
    flags = ["--model", str(model), "--engine", "paced", *arguments.flags.split()]
    flags += [part for name, value in options.items() for part in ("--engine-option", f"{name}={value}")]
    flags += ["--devices", "cpu"] if arguments.own_process else ["--device", "cpu"]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(site, port, flags, ""))
    server.start()
    limit = 1e6 / (arguments.slower * TOKEN_US * TOKENS)  # requests per second
    rows = []
    try:
        wait_for(port)
        target = Target.at(f"http://127.0.0.1:{port}")
        for deadline in (None, arguments.deadline):
            for share in map(float, arguments.shares.split(",")):
                plan = LoadPlan(
                    Workload.named(WORKLOAD),
                    rates=[share * limit],
                    seconds=arguments.seconds,
                    timeout=arguments.timeout,
                    processes=arguments.processes,
                )
                host = HostTime(server.pid or 0)
                part = measure_load(replace(target, deadline=deadline), plan, environment())
                (found,) = step_figures(part)
                spent = host.figures()["processes"]
                row = {"deadline": deadline, "offered": round(10 * share * limit)} | asdict(found)
                row["messages"] = part.steps[0].requests.messages
                row["cpu_ms_of_a_request"] = round(1e3 * sum(each["cpu_seconds"] for each in spent) / found.requests, 2)
                rows.append(row)
                print({name: value for name, value in row.items() if name != "messages"}, flush=True)
    finally:
        server.terminate()
        server.join()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--slower", type=float, default=4.0)
    parser.add_argument("--shares", default="0.5,0.8,1,1.25,1.5,2", help="of the engine's limit")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each rate")
    parser.add_argument("--timeout", type=float, default=10.0, help="of a request, in seconds")
    parser.add_argument("--deadline", type=float, default=1.0, help="of a request, in seconds; sent in a second series")
    parser.add_argument("--processes", type=int, default=1, help="of the client")
    parser.add_argument("--encode-us", type=float, default=0.25, help="for each token; 0: the tokenizer runs")
    parser.add_argument("--own-process", action="store_true", help="the engine has a process of its own")
    parser.add_argument("--flags", default="", help="of the server, with blanks between them")
    arguments = parser.parse_args()
    settings = vars(arguments) | {"commit": ""}
    result: dict[str, Any] = {"settings": settings, "environment": vars(environment()), "rounds": []}
    if arguments.output.exists():
        result = json.loads(arguments.output.read_text(encoding="utf-8"))
    with paced_model() as (site, model):
        rows = measure(site, model, arguments)
    result["rounds"].append({"commit": arguments.commit, "rows": rows})
    arguments.output.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
