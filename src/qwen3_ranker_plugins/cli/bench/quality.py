"""`qwen3-ranker bench quality`."""

from __future__ import annotations

from typing import Annotated

import typer

from ...config import RerankerSettings
from ..options import OutputOption, QuietOption, SeedOption, TagOption, takes_settings
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
def quality(
    *,
    source: SourceArgument = "demo",
    run: RunOption = None,
    qrels: QrelsOption = None,
    split: SplitOption = "test",
    candidates: CandidatesOption = 100,
    queries: QueriesOption = None,
    relevant_from: RelevantOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Setting of a second configuration, such as template=compact or preset=fast; can be given several "
            "times.",
        ),
    ] = None,
    seed: SeedOption = 0,
    settings: RerankerSettings,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure what reranking does to nDCG, MRR, MAP and recall, query by query, or compare two configurations.

    With --output it also writes every ranking as a TREC run, and the judgements, for other evaluators.
    """
    from ...bench.quality.reranking import measure_quality, override, trec_files
    from ...bench.report_files import check_output
    from ...data.collection import open_collection
    from ..present import present

    systems = [settings] if not against else [settings, override(settings, against)]
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
    with ProgressBar("queries", len(collection.queries) * len(systems), quiet=quiet) as advance:
        result = measure_quality(collection, systems, seed=seed, progress=advance)
    present(result, output, tag, trec_files(result))
