"""`qwen3-ranker bench throughput`."""

from __future__ import annotations

from typing import Annotated

import typer

from ...config import RerankerSettings
from ..options import OutputOption, QuietOption, TagOption, numbers, takes_settings
from ..terminal import ProgressBar
from .collection_options import (
    CandidatesOption,
    QrelsOption,
    QueriesOption,
    RelevantOption,
    RunOption,
    SourceArgument,
    SplitOption,
)


@takes_settings(without=["calibration"])
def throughput(
    *,
    source: SourceArgument = "demo",
    batch_sizes: Annotated[
        str, typer.Option(help="Numbers of pairs in one call, separated by commas.")
    ] = "4,8,16,32,64",
    repeat: Annotated[int, typer.Option(help="Number of rounds; each round measures every batch size once.")] = 3,
    run: RunOption = None,
    qrels: QrelsOption = None,
    split: SplitOption = "test",
    candidates: CandidatesOption = 10,
    queries: QueriesOption = None,
    relevant_from: RelevantOption = None,
    settings: RerankerSettings,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure pairs per second, latency, memory and quality over the number of labelled pairs in one call."""
    from ...bench.report_files import check_output
    from ...bench.throughput.batch_sizes import measure_throughput
    from ...data.collection import open_collection
    from ..present import present

    sizes = numbers("batch_sizes", batch_sizes)
    check_output(output, tag)
    collection = open_collection(
        source,
        candidates=candidates,
        run=run,
        qrels=qrels,
        split=split,
        relevant_from=relevant_from,
        queries=queries,
    )
    with ProgressBar("pairs", len(collection.pairs) * len(sizes) * repeat, quiet=quiet) as advance:
        result = measure_throughput(collection, settings, sizes, repeat=repeat, progress=advance)
    present(result, output, tag)
