"""The command line: parse -> core call -> exit code.

0: done; 1: it cannot be done here, the message says why; 2: an argument is unusable; 130: interrupted.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._version import __version__
from ..config import (
    BUNDLED_MODEL,
    check_text,
    device_from_environment,
    model_from_environment,
)
from ..demo import DEFAULT_CANDIDATES
from ..errors import InvalidInputError, RankerError
from ..prompt import DEFAULT_MAX_LENGTH
from ..reranker import Reranker
from ..types import RerankResult
from .bench import bench, tune
from .options import (
    DeviceOption,
    DtypeOption,
    EngineOption,
    EngineOptionsOption,
    InstructionOption,
    MaxLengthOption,
    ModelOption,
    TemplateOption,
    read_engine_options,
)
from .rerank import rerank
from .serve import serve

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug's traceback is for a bug report: plain, and without local values
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qwen3-ranker-plugins {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Rerank documents with P(yes) of a Qwen3 reranker."""


@app.command()
def demo(
    queries: Annotated[int, typer.Option(help="How many questions to show.")] = 4,
    top_k: Annotated[int, typer.Option(help="How many passages of each to show.")] = 5,
    candidates: Annotated[int, typer.Option(help="How many passages BM25 hands to the reranker.")] = DEFAULT_CANDIDATES,
    adapter: Annotated[str, typer.Option(help="both, haystack or langchain.")] = "both",
    model: ModelOption = None,
    device: DeviceOption = None,
) -> None:
    """Rerank a real corpus in Haystack and in LangChain, and measure what it changes."""
    from ..demo.run import run_demo

    run_demo(
        _console(),
        model=_model(model),
        device=device_from_environment() if device is None else device,
        adapter=adapter,
        queries=queries,
        top_k=top_k,
        candidates=candidates,
    )


app.command()(rerank)
app.command()(serve)
app.add_typer(bench, name="bench")
app.command()(tune)


class By(StrEnum):
    """What a document is."""

    LINE = "line"
    FILE = "file"


@app.command()
def rank(
    query: Annotated[str, typer.Option("--query", "-q", help="What the documents are judged for.")],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="Text files; - or nothing for standard input.")
    ] = None,
    by: Annotated[By, typer.Option(help="Rank lines (empty ones left out), or whole files.")] = By.LINE,
    top_k: Annotated[int, typer.Option(help="Print at most this many.")] = 10,
    score_threshold: Annotated[float | None, typer.Option(help="Only those with P(yes) of at least this.")] = None,
    min_confidence: Annotated[
        float | None, typer.Option(help="Only those with |P(yes) - P(no)| of at least this.")
    ] = None,
    instruction: InstructionOption = None,
    template: TemplateOption = "standard",
    max_length: MaxLengthOption = DEFAULT_MAX_LENGTH,
    model: ModelOption = None,
    engine: EngineOption = "auto",
    engine_option: EngineOptionsOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Rerank lines of text or whole files, best first."""
    check_text("query", query)
    documents = [document for name in files or ["-"] for document in _read(name, by)]
    name = _model(model)
    with Reranker(
        name,
        engine=engine,
        engine_options=read_engine_options(engine_option),
        device=device_from_environment() if device is None else device,
        dtype=dtype,
        template=template,
        instruction=instruction,
        max_length=max_length,
        top_k=top_k,
        score_threshold=score_threshold,
        min_confidence=min_confidence,
    ) as reranker:
        result = reranker.rerank(query, [document.text for document in documents], show_progress=sys.stderr.isatty())
        facts = reranker.describe()
    if not documents:
        _errors().print("nothing to rank: no line with text in it", highlight=False)
    if as_json:
        _print_json(result, documents)
    elif documents:
        caption = (
            f"{len(result)} of {len(documents)} by {name}, {facts.engine} on {facts.device} in {facts.dtype}, "
            f"{result.usage.seconds:.2f} s"
        )
        _console().print(_ranking(result, documents, caption))


@app.command()
def doctor(
    model: ModelOption = None,
    engine: EngineOption = "auto",
    engine_option: EngineOptionsOption = None,
    device: DeviceOption = None,
) -> None:
    """Say what is installed and usable here, and prove it by scoring known pairs."""
    from ..doctor import diagnose

    healthy = diagnose(
        _console(),
        model=_model(model),
        engine=engine,
        engine_options=read_engine_options(engine_option),
        device=device_from_environment() if device is None else device,
    )
    raise typer.Exit(0 if healthy else 1)


@dataclass(frozen=True)
class _Document:
    """A text with where it came from: "notes.txt:12", or "notes.txt"."""

    source: str
    text: str


def _read(name: str, by: By) -> list[_Document]:
    """The documents of a file, or of standard input if its name is "-".

    Raises:
        InvalidInputError: it cannot be read.
    """
    source = "stdin" if name == "-" else name
    try:
        if name == "-" and sys.stdin.isatty():
            _errors().print("reading standard input, one document a line; Ctrl-D ends it", highlight=False)
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise InvalidInputError("FILE", name, f"{error.strerror}; give text files, or - for standard input") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = content.decode("utf-8-sig", errors="replace")
        _errors().print(Text(f"{source} is not UTF-8, first at byte {error.start}: what cannot be read became U+FFFD"))
    if by is By.FILE:
        return [_Document(source, text)] if text.strip() else []
    # Not splitlines(), which also ends lines at form feeds and others that no editor counts.
    lines = re.split(r"\r\n|\r|\n", text)
    return [_Document(f"{source}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]


def _print_json(result: RerankResult, documents: Sequence[_Document]) -> None:
    for rank, hit in enumerate(result, start=1):
        fields = {
            "rank": rank,
            "index": hit.index,
            "source": documents[hit.index].source,
            "score": hit.score,
            "margin": hit.margin,
            "confidence": hit.confidence,
            "truncated_tokens": hit.truncated_tokens,
            "document": hit.document,
        }
        typer.echo(json.dumps(fields))


def _ranking(result: RerankResult, documents: Sequence[_Document], caption: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("P(yes)", justify="right")
    table.add_column("source", overflow="fold", style="dim")
    table.add_column("text")
    for rank, hit in enumerate(result, start=1):
        # Characters that move a terminal's cursor or change its colours are no part of a table.
        printable = "".join(character if character.isprintable() else " " for character in hit.document[:2000])
        text = Text(" ".join(printable.split()))
        text.truncate(240, overflow="ellipsis")
        if hit.truncated_tokens:
            text.append(f" (its last {hit.truncated_tokens} tokens were not read)", style="yellow")
        table.add_row(str(rank), f"{hit.score:.3f}", Text(documents[hit.index].source), text)
    return table


def _model(option: str | None) -> str:
    return model_from_environment(BUNDLED_MODEL) if option is None else option


def _console() -> Console:
    """Standard output, 100 columns wide where it is no terminal that says how wide it is."""
    console = Console()
    return console if console.is_terminal else Console(width=100)


def _errors() -> Console:
    return Console(stderr=True, soft_wrap=True)


def main() -> None:
    """The `qwen3-ranker` command."""
    # Read by OpenMP when torch is imported. Threads that wait by spinning, as is its default, make a pass on a CPU up
    # to ten times slower as soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no star or box shows "?" instead
            stream.reconfigure(errors="replace")
    try:
        app()
    except RankerError as error:
        _errors().print(Text(f"error: {error}"))
        sys.exit(2 if isinstance(error, InvalidInputError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
