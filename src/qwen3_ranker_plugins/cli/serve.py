"""The `serve` command. Its dependencies are imported when it runs, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..config import BUNDLED_MODEL
from ..errors import MissingDependencyError
from ..pip_command import pip_install
from .options import (
    DTYPE_HELP,
    TEMPLATE_HELP,
    AdapterOption,
    CacheOption,
    CachePathOption,
    CalibrationOption,
    DocumentTemplateOption,
    EngineOptionsOption,
    ScoringOption,
    read_engine_options,
)


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with settings, such as examples/config.yaml.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Port to listen on; 0 chooses a free one. Default: 8001.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help=f"Model: a name on the Hugging Face hub, or a local folder. Default: {BUNDLED_MODEL}."
        ),
    ] = None,
    adapter: AdapterOption = None,
    scoring: ScoringOption = None,
    calibration: CalibrationOption = None,
    cache: CacheOption = None,
    cache_path: CachePathOption = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            "--served-model-name",
            help="Additional name of the model; can be given several times. Answers contain the first one. '*' serves "
            "any name.",
        ),
    ] = None,
    strict_model_names: Annotated[
        bool | None,
        typer.Option(
            "--strict-model-names/--any-model-name",
            help="Answer 404 to requests for other model names instead of serving them. Default: any name is served.",
        ),
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="Engine that computes the scores, by its name. Default: auto.")
    ] = None,
    engine_option: EngineOptionsOption = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Device: auto, cpu, cuda or cuda:N. Default: auto.")
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            help="Devices, each of which gets an engine in its own process: all for every visible GPU, or names such "
            "as cuda:0,cuda:1. Default: one engine on --device; if that is auto too and there is an NVIDIA GPU, the "
            "packed engine gets a process as well.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help=f"{DTYPE_HELP} Default: auto."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", help=f"{TEMPLATE_HELP} Default: standard."),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(
            "--instruction",
            help="Task that documents are judged for, unless a request gives one. Default: the model's own.",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            help="Maximum length of a prompt in tokens; a longer document is cut at its end. Default: 8192.",
        ),
    ] = None,
    long_documents: Annotated[
        str | None,
        typer.Option(
            "--long-documents",
            help="truncate cuts a document that does not fit at its end; pieces judges it in pieces, and the best "
            "piece gives its score. Default: truncate.",
        ),
    ] = None,
    piece_tokens: Annotated[
        int | None,
        typer.Option(
            "--piece-tokens",
            help="Maximum number of tokens in a piece; also for requests with max_chunks_per_doc. Default: 512.",
        ),
    ] = None,
    piece_overlap: Annotated[
        int | None, typer.Option("--piece-overlap", help="Maximum number of tokens that two pieces share. Default: 64.")
    ] = None,
    max_pieces: Annotated[
        int | None,
        typer.Option("--max-pieces", help="Maximum number of pieces of a document; the rest is not read. Default: 64."),
    ] = None,
    token_budget: Annotated[
        int | None,
        typer.Option(
            "--token-budget", help="Maximum number of tokens in one forward pass. Default: chosen by the engine."
        ),
    ] = None,
    return_documents: Annotated[
        bool | None,
        typer.Option(
            "--return-documents/--no-return-documents",
            help="Return the document of each result, unless a request says otherwise. Default: only on /rerank, as "
            "vLLM does.",
        ),
    ] = None,
    rank_fields: Annotated[
        str | None,
        typer.Option(
            "--rank-fields",
            metavar="NAME,...",
            help="Judged fields of documents that are objects, unless a request names them. Default: text.",
        ),
    ] = None,
    document_template: DocumentTemplateOption = None,
    return_judged_text: Annotated[
        bool | None,
        typer.Option(
            "--return-judged-text/--no-return-judged-text",
            help="Return the text of each document that the model read, unless a request says otherwise. Default: no.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            help="Origin whose pages may call the server; can be given several times; '*' for any. Default: none.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            help="File with one API key on each line, in addition to those in $QWEN3_RANKER_API_KEYS. Default: no "
            "keys.",
        ),
    ] = None,
    max_documents: Annotated[
        int | None, typer.Option("--max-documents", help="Maximum number of documents in one request. Default: 2000.")
    ] = None,
    max_request_tokens: Annotated[
        int | None,
        typer.Option("--max-request-tokens", help="Maximum number of tokens in one request. Default: 1000000."),
    ] = None,
    max_body_bytes: Annotated[
        int | None,
        typer.Option(
            "--max-body-bytes", help="Maximum size of the decoded body of a request in bytes. Default: 16777216."
        ),
    ] = None,
    max_queue_documents: Annotated[
        int | None,
        typer.Option(
            "--max-queue-documents", help="Maximum number of documents in all unanswered requests. Default: 20000."
        ),
    ] = None,
    max_queue_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-queue-tokens", help="Maximum number of tokens in all unanswered requests. Default: 4000000."
        ),
    ] = None,
    max_wait: Annotated[
        float | None,
        typer.Option(
            "--max-wait",
            help="Maximum time in seconds that a request without X-Request-Timeout waits for other requests; if the "
            "estimated time is longer, it gets 503 at once. Default: 5.",
        ),
    ] = None,
    request_timeout: Annotated[
        float | None,
        typer.Option(
            "--request-timeout", help="Time in seconds after which a request is answered with 504. Default: 120."
        ),
    ] = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            "--drain-timeout",
            help="Time in seconds after SIGTERM within which accepted requests are still answered. Default: 60.",
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option("--log-level", help="Lowest level that is logged: debug, info, warning or error. Default: info."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the effective configuration as YAML and exit.")
    ] = False,
) -> None:
    """Serve the reranker over HTTP to clients of Cohere, Jina, vLLM, TEI, Voyage and NIM, with a page to try it.

    Every setting can also be a line of the YAML file or an environment variable QWEN3_RANKER_<NAME>. Flags take
    precedence over variables, and variables over the file. docs/server.md lists all settings.
    """
    try:
        from ..server.run import run
        from ..server.settings import load_settings
    except ImportError as error:
        raise MissingDependencyError(f"the server needs {error.name}: {pip_install('server', 'packed')}") from error

    given = {
        "host": host,
        "port": port,
        "model": model,
        "adapter": adapter,
        "scoring": scoring,
        "calibration": calibration,
        "cache": cache,
        "cache_path": cache_path,
        "served_model_names": served_model_name or None,
        "strict_model_names": strict_model_names,
        "return_documents": return_documents,
        "rank_fields": rank_fields,
        "document_template": document_template,
        "return_judged_text": return_judged_text,
        "cors_origins": cors_origin or None,
        "engine": engine,
        "engine_options": read_engine_options(engine_option) if engine_option else None,
        "device": device,
        "devices": devices,
        "dtype": dtype,
        "template": template,
        "instruction": instruction,
        "max_length": max_length,
        "long_documents": long_documents,
        "piece_tokens": piece_tokens,
        "piece_overlap": piece_overlap,
        "max_pieces": max_pieces,
        "token_budget": token_budget,
        "api_key_file": api_key_file,
        "max_documents": max_documents,
        "max_request_tokens": max_request_tokens,
        "max_body_bytes": max_body_bytes,
        "max_queue_documents": max_queue_documents,
        "max_queue_tokens": max_queue_tokens,
        "max_wait": max_wait,
        "request_timeout": request_timeout,
        "drain_timeout": drain_timeout,
        "log_level": log_level,
    }
    configuration = load_settings(config, {name: value for name, value in given.items() if value is not None})
    typer.echo(configuration.dump())
    if not print_config:
        raise typer.Exit(run(configuration))
