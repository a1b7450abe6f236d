"""The `serve` command: flags only. What it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..config import BUNDLED_MODEL
from ..errors import MissingDependencyError
from .options import EngineOptionsOption, read_engine_options


def serve(
    config: Annotated[Path | None, typer.Option("--config", help="A YAML file; see examples/config.yaml.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Where to listen. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Default: 8001; 0 takes a free one.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help=f"A hub name, a folder, or {BUNDLED_MODEL}, the default.")
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option("--served-model-name", help="A name that requests may give; repeat it. Default: --model."),
    ] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="auto, or the name of an engine.")] = None,
    engine_option: EngineOptionsOption = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="standard, standard-hf, compact, or the text of a template.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="The task, unless a request has one.")
    ] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="Longest prompt in tokens.")] = None,
    token_budget: Annotated[int | None, typer.Option("--token-budget", help="Tokens of one forward pass.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="A key a line. Also: $QWEN3_RANKER_API_KEYS.")
    ] = None,
    max_documents: Annotated[int | None, typer.Option("--max-documents", help="Of one request.")] = None,
    max_request_tokens: Annotated[int | None, typer.Option("--max-request-tokens", help="Of one request.")] = None,
    max_body_bytes: Annotated[int | None, typer.Option("--max-body-bytes", help="Of one request.")] = None,
    max_queue_documents: Annotated[int | None, typer.Option("--max-queue-documents", help="Of all waiting.")] = None,
    max_queue_tokens: Annotated[int | None, typer.Option("--max-queue-tokens", help="Of all waiting.")] = None,
    request_timeout: Annotated[float | None, typer.Option("--request-timeout", help="Seconds until 504.")] = None,
    drain_timeout: Annotated[float | None, typer.Option("--drain-timeout", help="Seconds after SIGTERM.")] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the configuration and exit.")] = False,
) -> None:
    """Serve the reranker over HTTP, in the shapes of Cohere, Jina, vLLM and TEI, with a page to try it.

    Every setting can also be a line of the file or a variable QWEN3_RANKER_<NAME>; flags go before variables, and
    variables before the file. docs/server.md has all of them.
    """
    try:
        from ..server.run import run
        from ..server.settings import load_settings
    except ImportError as error:
        raise MissingDependencyError(
            f'the server needs {error.name}: pip install "qwen3-ranker-plugins[server,packed]"'
        ) from error

    given = {
        "host": host,
        "port": port,
        "model": model,
        "served_model_names": served_model_name or None,
        "engine": engine,
        "engine_options": read_engine_options(engine_option) if engine_option else None,
        "device": device,
        "dtype": dtype,
        "template": template,
        "instruction": instruction,
        "max_length": max_length,
        "token_budget": token_budget,
        "api_key_file": api_key_file,
        "max_documents": max_documents,
        "max_request_tokens": max_request_tokens,
        "max_body_bytes": max_body_bytes,
        "max_queue_documents": max_queue_documents,
        "max_queue_tokens": max_queue_tokens,
        "request_timeout": request_timeout,
        "drain_timeout": drain_timeout,
        "log_level": log_level,
    }
    configuration = load_settings(config, {name: value for name, value in given.items() if value is not None})
    typer.echo(configuration.dump())
    if not print_config:
        raise typer.Exit(run(configuration))
