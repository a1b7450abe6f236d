"""Options that name labelled data, for the sub-commands that measure on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Labelled data: demo; a folder in BEIR format; a .jsonl or .jsonl.gz file of candidate lists, or of pairs "
        "with query, document and label; ir_datasets:ID; DL19 or DL20.",
    ),
]
QueriesOption = Annotated[
    int | None, typer.Option(help="Maximum number of queries, spread evenly over the data. Default: all.")
]
CandidatesOption = Annotated[int, typer.Option(help="Maximum number of documents of each query that are reranked.")]
RunOption = Annotated[
    Path | None,
    typer.Option("--run", help="TREC run with the candidates. Default: BM25, or the candidates of the data."),
]
QrelsOption = Annotated[
    Path | None,
    typer.Option("--qrels", help="File of judgements, in TREC or BEIR format. Default: those of the data."),
]
SplitOption = Annotated[str, typer.Option(help="Name of the file in a BEIR folder's qrels/ to use.")]
RelevantOption = Annotated[
    int | None,
    typer.Option(help="Lowest grade that counts as relevant to MRR, MAP and recall. Default: 1; for DL19 and DL20: 2."),
]
