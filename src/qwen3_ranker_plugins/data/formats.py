"""The formats of input files: their names and suffixes. `sources` and `records` have the readers."""

from __future__ import annotations

#: Suffix -> name of the format. Each may be followed by .gz or .zst.
SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
    ".csv": "csv", ".tsv": "tsv",
}  # fmt: skip
INPUT_FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
