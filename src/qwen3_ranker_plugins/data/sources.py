"""INPUT -> its source, chosen by its kind and its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..errors import InvalidInputError
from .files import InputFile, is_pattern, matching_files, plain_name
from .formats import SUFFIXES
from .irds import PREFIX
from .jsonl import JsonlSource
from .pairs import Fields
from .parquet import ParquetSource
from .run_source import BeirSource, IrDatasetsSource
from .source import FileSource, PairsSource, PairTuple, ShardsSource, Source
from .table import TableSource

#: The name of standard input.
STANDARD_INPUT = "-"

#: Format -> the reader of its files.
_READERS: dict[str, Callable[[InputFile, Fields], FileSource]] = {
    "jsonl": JsonlSource,
    "parquet": ParquetSource,
    "csv": partial(TableSource, delimiter=","),
    "tsv": partial(TableSource, delimiter="\t"),
}


def open_source(
    source: str | InputFile | Sequence[PairTuple],
    *,
    run: Path | None,
    index: Path,
    fields: Fields,
    input_format: str | None = None,
) -> Source:
    """The source for an INPUT.

    Args:
        source: a file, a URL, a folder or pattern of files, a BEIR folder, "ir_datasets:ID", or tuples. An `InputFile`
            is JSONL unless `input_format` names another format.
        run: the TREC run that lists the documents of each query in a BEIR folder or data set.
        index: path of the index file for the texts of a BEIR folder.
        fields: names of the fields in the input.
        input_format: a name from INPUT_FORMATS; None takes it from the suffix of each file.

    Raises:
        InvalidInputError, MissingDependencyError: it cannot be read; the message says why.
    """
    if isinstance(source, InputFile):
        return _open_file(source, fields, input_format or "jsonl")
    if fields.form is not None and (run is not None or not isinstance(source, str)):
        remedy = "has no effect on tuples, BEIR folders and ir_datasets ids: give JSONL, Parquet, CSV or TSV"
        raise InvalidInputError("rank_fields", fields.form_text, remedy)
    if not isinstance(source, str):
        return PairsSource(source)
    if source.startswith(PREFIX):
        return IrDatasetsSource(source.removeprefix(PREFIX), run)
    path = Path(source)
    if path.is_dir() and (run is not None or (path / "qrels").is_dir() or _is_beir(path)):
        return BeirSource(path, run, index)
    if run is not None:
        raise InvalidInputError("run", str(run), "has no effect unless INPUT is a BEIR folder or an ir_datasets id")
    return _open_files(source, fields, input_format)


def _open_files(name: str, fields: Fields, input_format: str | None) -> Source:
    """A file, or all files of a folder or pattern."""
    path = Path(name)
    if path.is_file():
        return _open_file(InputFile.local(path), fields, input_format)
    is_url = "://" in name
    if not (path.is_dir() or is_url or is_pattern(name)):
        raise InvalidInputError("INPUT", name, "there is no such file")
    if is_url and not is_pattern(name) and _format_of(name, input_format) is not None:
        return _open_file(InputFile(name, name.rpartition("/")[2]), fields, input_format)
    found = matching_files(name)
    readable = [file for file in found if _format_of(file.name, input_format) is not None]
    if not readable:
        seen = f", among {', '.join(file.name for file in found[:5])}" if found else ""
        raise InvalidInputError("INPUT", name, f"no file of a known suffix ({', '.join(SUFFIXES)}) found{seen}")
    return ShardsSource([_open_file(file, fields, input_format) for file in readable], path if path.is_dir() else None)


def _is_beir(folder: Path) -> bool:
    return all(any(folder.glob(f"{name}.jsonl*")) for name in ("corpus", "queries"))


def _format_of(name: str, input_format: str | None) -> str | None:
    return input_format or SUFFIXES.get(Path(plain_name(name)).suffix)


def _open_file(file: InputFile, fields: Fields, input_format: str | None) -> FileSource:
    kind = _format_of(file.name, input_format)
    if kind is None:
        raise InvalidInputError(
            "INPUT",
            file.location,
            f"use {', '.join(SUFFIXES)}, each also with .gz or .zst, a folder or pattern of them, a BEIR folder, "
            f"{PREFIX}ID, or name its format with --input-format",
        )
    return _READERS[kind](file, fields)
