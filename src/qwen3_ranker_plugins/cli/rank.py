"""`qwen3-ranker rank`. Exit code 0: there are hits; 1: there are none (as with grep), or the command failed."""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ..checks import canonical_size, check_text
from ..config import RankingOptions, RerankerSettings
from ..documents import TEXT, DocumentFormat
from ..errors import InvalidInputError
from ..prompt import DEFAULT_MAX_LENGTH
from ..reranker import Reranker
from ..types import DEFAULT_PIECES, Explanation, RerankResult, ScoredDocument
from .options import (
    AdapterOption,
    CacheOption,
    CachePathOption,
    CalibrationOption,
    DeviceOption,
    DevicesOption,
    DocumentTemplateOption,
    DtypeOption,
    EngineOption,
    EngineOptionsOption,
    InstructionOption,
    LongDocumentsOption,
    MaxLengthOption,
    MaxPiecesOption,
    ModelOption,
    PieceOverlapOption,
    PieceTokensOption,
    RankFieldsOption,
    ScoringOption,
    TemplateOption,
    model_name,
    names,
    placement,
    read_engine_options,
)
from .terminal import errors, loading, output

#: A text file has no zero bytes, and few bytes that are not UTF-8: Latin-1 text has some, a compressed file many.
_UNREADABLE_SHARE = 0.3
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class By(StrEnum):
    """What a document is."""

    LINE = "line"
    FILE = "file"


def rank(
    query: Annotated[str, typer.Option("--query", "-q", help="Query for which the documents are ranked.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Text files, or folders, of which all text files except hidden ones are read; - for standard "
            "input, which is the default.",
        ),
    ] = None,
    by: Annotated[By, typer.Option(help="What a document is: a line that is not blank, or a whole file.")] = By.LINE,
    rank_fields: RankFieldsOption = None,
    document_template: DocumentTemplateOption = None,
    top_k: Annotated[int, typer.Option(help="Maximum number of hits to print.")] = 10,
    score_threshold: Annotated[
        float | None, typer.Option(help="Minimum P(yes) of a printed document, from 0 to 1. Default: no minimum.")
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(help="Minimum |P(yes) - P(no)| of a printed document, from 0 to 1. Default: no minimum."),
    ] = None,
    instruction: InstructionOption = None,
    template: TemplateOption = "standard",
    max_length: MaxLengthOption = DEFAULT_MAX_LENGTH,
    long_documents: LongDocumentsOption = "truncate",
    piece_tokens: PieceTokensOption = DEFAULT_PIECES.tokens,
    piece_overlap: PieceOverlapOption = DEFAULT_PIECES.overlap,
    max_pieces: MaxPiecesOption = DEFAULT_PIECES.limit,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    scoring: ScoringOption = None,
    calibration: CalibrationOption = None,
    cache: CacheOption = None,
    cache_path: CachePathOption = None,
    engine: EngineOption = "auto",
    engine_option: EngineOptionsOption = None,
    device: DeviceOption = None,
    devices: DevicesOption = None,
    dtype: DtypeOption = "auto",
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show which part of each hit was judged, and what each sentence adds to logit(yes) - logit(no).",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each hit as a line of JSON, in UTF-8.")] = False,
) -> None:
    """Rank lines of text or whole files for a query, best first.

    With --rank-fields or --document-template, documents are the objects of JSON lines or the rows of Parquet files.

    Exit code 0: there are hits; 1: no document is a hit, or the command failed; 2: an argument is unusable.
    """
    check_text("query", query)
    one, several = placement(device, devices)
    settings = RerankerSettings(
        model_name(model),
        engine,
        one,
        dtype,
        template=template,
        instruction=instruction,
        max_length=max_length,
        engine_options=read_engine_options(engine_option),
        adapter=adapter,
        scoring=scoring,
        devices=several,
        calibration=calibration,
        cache=canonical_size("cache", cache),
        cache_path=cache_path,
        long_documents=long_documents,
        piece_tokens=piece_tokens,
        piece_overlap=piece_overlap,
        max_pieces=max_pieces,
    )
    settings.check_cache_outlives_the_process()
    options = RankingOptions(top_k, score_threshold, min_confidence)
    form = _document_format(rank_fields, document_template, by)
    documents = [
        document
        for name in files or ["-"]
        for document in (_documents(name, by) if form is None else _records(name, form))
    ]
    if not documents:
        errors().print("nothing to rank: no line contains text")
        raise typer.Exit(1)
    with loading(settings.model):
        reranker = Reranker(**asdict(settings), **asdict(options))
    with reranker:
        result = reranker.rerank(
            query,
            [document.text for document in documents],
            show_progress=sys.stderr.isatty(),
            explain="sentences" if explain else False,
        )
        facts = reranker.describe()
    if not result:
        errors().print(Text(_no_hit(options, len(documents))))
        raise typer.Exit(1)
    if as_json:
        _print_json(result, documents, settings.model)
        return
    caption = (
        f"{len(result)} of {len(documents)} by {settings.model}, {facts.engine} on {facts.device} in "
        f"{facts.dtype}, {result.usage.seconds:.2f} s"
    )
    if settings.cache is not None:
        caption += f"; {result.usage.cached_documents} from the cache"
    output().print(_ranking(result, documents, caption))
    for hit in result:
        if hit.explanation is not None:
            output().print(_explained(hit, hit.explanation, documents[hit.index].source))


@dataclass(frozen=True)
class _Document:
    """A text with where it came from: "notes.txt:12", or "notes.txt"."""

    source: str
    text: str


def _documents(name: str, by: By) -> Iterator[_Document]:
    """The documents of a file, of the text files below a folder, or of standard input if the name is "-".

    Raises:
        InvalidInputError: it cannot be read, or it is not text.
    """
    if name != "-" and Path(name).is_dir():
        yield from _below(Path(name), by)
        return
    source = "stdin" if name == "-" else name
    try:
        if name == "-" and sys.stdin.isatty():
            errors().print("reading standard input, one document per line; Ctrl-D ends it")
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        remedy = f"{error.strerror}; give text files, folders of text files, or - for standard input"
        raise InvalidInputError("FILE", name, remedy) from error
    text = _decoded(content, source)
    if text is None:
        raise InvalidInputError("FILE", name, "is binary; give text, such as the output of pdftotext, gunzip or pandoc")
    yield from _split(text, source, by)


def _document_format(rank_fields: str | None, document_template: str | None, by: By) -> DocumentFormat | None:
    """How the text of a document with fields is made; None if documents are texts.

    Raises:
        InvalidInputError: the options are unusable, or contradict each other.
    """
    if rank_fields is None and document_template is None:
        return None
    if by is By.FILE:
        raise InvalidInputError("by", by.value, "a whole file has no fields: leave it out, or leave out the fields")
    return DocumentFormat(None if rank_fields is None else names("rank-fields", rank_fields), document_template)


def _records(name: str, form: DocumentFormat) -> Iterator[_Document]:
    """The documents of a file of objects.

    Raises:
        InvalidInputError: it cannot be read, or an object has none of the fields; names the line.
    """
    from ..data.records import read_records

    source = "stdin" if name == "-" else name
    for number, record in read_records(name):
        place = f"{source}:{number}"
        text = None
        if isinstance(record, dict):
            text = form.text(record, place=place)
        elif isinstance(record, str) and (form.fields is None or TEXT in form.fields):
            text = record
        if text is None:
            wanted = "an object with fields" if form.fields is None else f"one of the fields {', '.join(form.fields)}"
            raise InvalidInputError("FILE", place, f"needs {wanted}, with a value")
        yield _Document(place, text)


def _below(folder: Path, by: By) -> Iterator[_Document]:
    """The documents of a folder's text files, in the order of their names; links to folders are not followed.

    Raises:
        InvalidInputError: the folder, or a file below it, cannot be read, or none of them is text.
    """
    texts = binary = 0

    def fail(error: OSError) -> None:
        raise error

    try:
        for parent, folders, files in os.walk(folder, onerror=fail):
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            for path in (Path(parent, each) for each in sorted(files) if not each.startswith(".")):
                if not path.is_file():  # a socket, or a link to nothing
                    continue
                if (text := _decoded(path.read_bytes(), str(path))) is None:
                    binary += 1
                else:
                    texts += 1
                    yield from _split(text, str(path), by)
    except OSError as error:
        raise InvalidInputError("FILE", error.filename, f"{error.strerror}; give what can be read") from error
    if not texts:
        raise InvalidInputError("FILE", str(folder), f"has no text file in it ({binary} binary ones): give text files")
    if binary:
        errors().print(Text(f"{folder}: left out {binary} binary file{'s' if binary > 1 else ''}"))


def _decoded(content: bytes, source: str) -> str | None:
    """The text of a file; None if it is binary."""
    if content.startswith(_UTF16_MARKS):
        return content.decode("utf-16", errors="replace")
    if b"\0" in content or content.startswith(b"%PDF-"):
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = content.decode("utf-8-sig", errors="replace")
        if text.count("\ufffd") > _UNREADABLE_SHARE * len(text):
            return None
        errors().print(Text(f"{source} is not UTF-8, first at byte {error.start}: what cannot be read became U+FFFD"))
        return text


def _split(text: str, source: str, by: By) -> Iterator[_Document]:
    if by is By.FILE:
        if text.strip():
            yield _Document(source, text)
        return
    # Not splitlines(), which also ends lines at form feeds and other characters that no editor counts as line ends.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if line.strip():
            yield _Document(f"{source}:{number}", line)


def _no_hit(options: RankingOptions, documents: int) -> str:
    wanted = [
        f"{what} of at least {value:g}"
        for what, value in (
            ("P(yes)", options.score_threshold),
            ("|P(yes) - P(no)|", options.min_confidence),
        )
        if value is not None
    ]
    of = "the only document has no" if documents == 1 else f"none of {documents} documents has"
    return f"no hit reached the threshold: {of} {' and '.join(wanted)}"


def _print_json(result: RerankResult, documents: Sequence[_Document], model: str) -> None:
    for rank, hit in enumerate(result, start=1):
        fields = {
            "rank": rank,
            "index": hit.index,
            "source": documents[hit.index].source,
            "score": hit.score,
            "margin": hit.margin,
            "confidence": hit.confidence,
            "truncated_tokens": hit.truncated_tokens,
            **({} if hit.piece is None else {"piece": list(hit.piece)}),
            **({} if hit.explanation is None else {"explanation": asdict(hit.explanation)}),
            "model": model,
            "document": hit.document,
        }
        # Bytes, because JSON is UTF-8, whatever the terminal's encoding. UTF-8 may be unable to encode a file's name.
        typer.echo(json.dumps(fields, ensure_ascii=False).encode("utf-8", errors="replace"))


def _explained(hit: ScoredDocument, explanation: Explanation, source: str) -> Table:
    """A table of what each sentence of a hit adds, with notes on the part of the hit that the prompt contains."""
    start, end = explanation.judged
    title = (
        f"{explanation.rank}. {source}: margin {hit.margin:+.3f}, P(yes) {hit.score:.3f}, was {explanation.rank_before}"
    )
    notes = [] if explanation.prompt_tokens is None else [f"prompt of {explanation.prompt_tokens} tokens"]
    if (start, end) != (0, len(hit.document)):
        notes.append(f"judged: characters {start} to {end} of {len(hit.document)}")
    if hit.truncated_tokens:
        notes.append(f"not read: {hit.truncated_tokens} tokens at the end")
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(title),
        title_justify="left",
        caption=Text("; ".join(notes)),
        caption_justify="left",
    )
    table.add_column("adds", justify="right")
    table.add_column("sentence")
    for sentence in explanation.sentences or ():
        style = "green" if sentence.contribution > 0 else "red"
        table.add_row(
            Text(f"{sentence.contribution:+.3f}", style=style), _printable(hit.document[sentence.start : sentence.end])
        )
    return table


def _printable(text: str) -> Text:
    """The beginning of a text on one line, without control characters that move the cursor or change colours."""
    printable = "".join(character if character.isprintable() else " " for character in text[:2000])
    shown = Text(" ".join(printable.split()))
    shown.truncate(240, overflow="ellipsis")
    return shown


def _ranking(result: RerankResult, documents: Sequence[_Document], caption: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, caption=Text(caption), caption_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("P(yes)", justify="right")
    table.add_column("source", overflow="fold", style="dim")
    table.add_column("text")
    for rank, hit in enumerate(result, start=1):
        # Of a long document, the piece with the highest score.
        text = _printable(hit.document if hit.piece is None else hit.document[slice(*hit.piece)])
        if hit.truncated_tokens:
            text.append(f" (its last {hit.truncated_tokens} tokens were not read)", style="yellow")
        table.add_row(str(rank), f"{hit.score:.3f}", Text(documents[hit.index].source), text)
    return table
