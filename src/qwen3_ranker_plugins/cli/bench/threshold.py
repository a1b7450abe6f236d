"""`qwen3-ranker bench threshold`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...config import RerankerSettings
from ...errors import InvalidInputError
from ..options import OutputOption, QuietOption, SeedOption, TagOption, takes_settings
from ..terminal import ProgressBar, say
from .collection_options import (
    CandidatesOption,
    QrelsOption,
    QueriesOption,
    RunOption,
    SourceArgument,
    SplitOption,
)


@takes_settings()
def threshold(
    *,
    source: SourceArgument = "demo",
    run: RunOption = None,
    qrels: QrelsOption = None,
    split: SplitOption = "test",
    candidates: CandidatesOption = 100,
    queries: QueriesOption = None,
    relevant_from: Annotated[
        int | None, typer.Option(help="Lowest grade that counts as relevant. Default: 1; for DL19 and DL20: 2.")
    ] = None,
    judged_only: Annotated[
        bool,
        typer.Option("--judged-only", help="Leave out pairs without a judgement. Default: they count as not relevant."),
    ] = False,
    precision: Annotated[
        list[float] | None,
        typer.Option(help="Target precision; can be given several times. Default: 0.9."),
    ] = None,
    recall: Annotated[
        list[float] | None, typer.Option(help="Target recall; can be given several times. Default: 0.9.")
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Fit a calibration: platt (two parameters) or temperature (one). Default: fit none.",
        ),
    ] = None,
    calibration_output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File for the calibration that is fitted. Default: TAG-calibration.json in the folder of --output.",
        ),
    ] = None,
    seed: SeedOption = 0,
    settings: RerankerSettings,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet: QuietOption = False,
) -> None:
    """Find the score threshold for a target precision or recall, and measure how well scores are calibrated.

    Pairs of the same query, or of the same query_id if the data has that field, are counted as one group.
    """
    from ...bench.report_files import check_output
    from ...bench.threshold.measure import calibration_of, measure_thresholds
    from ...data.collection import open_collection
    from ..present import present

    if calibration_output is not None and calibrate is None:
        raise InvalidInputError(
            "calibration_output", str(calibration_output), "has no effect unless --calibrate says what to fit"
        )
    check_output(output, tag)
    collection = open_collection(
        source,
        candidates=candidates,
        run=run,
        qrels=qrels,
        split=split,
        relevant_from=relevant_from,
        queries=queries,
        every_label=True,
    )
    with ProgressBar("queries", len(collection.queries), quiet=quiet) as advance:
        result = measure_thresholds(
            collection,
            settings,
            precisions=precision or [0.9],
            recalls=recall or [0.9],
            calibrate=calibrate,
            judged_only=judged_only,
            seed=seed,
            progress=advance,
        )
    fitted = calibration_of(result)
    more = {} if fitted is None else {"calibration.json": fitted.text}
    present(result, output, tag, more)
    if fitted is not None and calibration_output is not None:
        fitted.write(calibration_output)
        say(f"calibration written to {calibration_output}")
