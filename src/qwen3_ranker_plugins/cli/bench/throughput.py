"""`qwen3-ranker bench throughput`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import (
    AdapterOption,
    DeviceOption,
    DevicesOption,
    EngineOption,
    EngineOptionsOption,
    InstructionOption,
    ModelOption,
    OutputOption,
    PresetDtypeOption,
    PresetMaxLengthOption,
    PresetOption,
    PresetTemplateOption,
    QuietOption,
    ScoringOption,
    TagOption,
    TokenBudgetOption,
    numbers,
    read_engine_options,
    settings_of,
)
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


def throughput(
    source: SourceArgument = "demo",
    batch_sizes: Annotated[
        str, typer.Option(help="Numbers of pairs in one call, with commas between them.")
    ] = "4,8,16,32,64",
    repeat: Annotated[int, typer.Option(help="Number of rounds; each round measures every batch size once.")] = 3,
    run: RunOption = None,
    qrels: QrelsOption = None,
    split: SplitOption = "test",
    candidates: CandidatesOption = 10,
    queries: QueriesOption = None,
    relevant_from: RelevantOption = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    scoring: ScoringOption = None,
    engine: EngineOption = "auto",
    engine_option: EngineOptionsOption = None,
    device: DeviceOption = None,
    devices: DevicesOption = None,
    dtype: PresetDtypeOption = None,
    template: PresetTemplateOption = None,
    instruction: InstructionOption = None,
    max_length: PresetMaxLengthOption = None,
    token_budget: TokenBudgetOption = None,
    preset: PresetOption = None,
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
    settings = settings_of(
        model=model,
        engine=engine,
        engine_options=read_engine_options(engine_option),
        adapter=adapter,
        scoring=scoring,
        device=device,
        devices=devices,
        dtype=dtype,
        template=template,
        instruction=instruction,
        max_length=max_length,
        token_budget=token_budget,
        preset=preset,
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
    )
    with ProgressBar("pairs", len(collection.pairs) * len(sizes) * repeat, quiet=quiet) as advance:
        result = measure_throughput(collection, settings, sizes, repeat=repeat, progress=advance)
    present(result, output, tag)
