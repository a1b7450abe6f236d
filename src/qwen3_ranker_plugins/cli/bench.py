"""`qwen3-ranker bench ...` and `qwen3-ranker tune`: flags only. What they need is imported when they run.

Exit code 0: measured; 1: some requests or cells failed, or it cannot be done here; 2: an argument.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import typer

from .bench_options import (
    DtypeOption,
    MaxLengthOption,
    OutputOption,
    PresetOption,
    QuietOption,
    TagOption,
    TemplateOption,
    console,
    numbers,
    say,
    settings_of,
    show_progress,
)
from .bench_server import latency, matrix
from .options import (
    DeviceOption,
    EngineOption,
    EngineOptionsOption,
    InstructionOption,
    ModelOption,
    TokenBudgetOption,
    read_engine_options,
)

bench = typer.Typer(
    no_args_is_help=True, help="Measure quality, throughput and latency, and compare what was measured."
)
bench.command()(latency)
bench.command()(matrix)

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="demo; a folder in BEIR's form; a .jsonl(.gz) of candidate lists; ir_datasets:ID; DL19 or DL20.",
    ),
]
QueriesOption = Annotated[int | None, typer.Option(help="At most so many queries, evenly spread. Default: all.")]
CandidatesOption = Annotated[int, typer.Option(help="Documents of each query that are reranked.")]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="A TREC run with the candidates. Default: BM25, or the data's own.")
]
QrelsOption = Annotated[Path | None, typer.Option("--qrels", help="Judgements, TREC's or BEIR's. Default: the data's.")]
SplitOption = Annotated[str, typer.Option(help="Which qrels/*.tsv of a folder.")]
RelevantOption = Annotated[
    int | None, typer.Option(help="Grade from which a document is relevant to MRR, MAP, Recall. Default: 1; DL19: 2.")
]


@bench.command()
def quality(
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
            help="NAME=VALUE, a setting of a second configuration; repeat it. Also preset=fast, and the others by name."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the randomisation test.")] = 0,
    model: ModelOption = None,
    engine: EngineOption = "auto",
    engine_option: EngineOptionsOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    template: TemplateOption = None,
    instruction: InstructionOption = None,
    max_length: MaxLengthOption = None,
    token_budget: TokenBudgetOption = None,
    preset: PresetOption = None,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet: QuietOption = False,
) -> None:
    """What reranking does to nDCG, MRR, MAP and recall, query by query; or one configuration against another.

    With --output also TREC files of every ranking, for other evaluators.
    """
    from ..bench import quality as measuring
    from ..bench.output import check_output, present
    from ..data.collection import open_collection

    settings = settings_of(
        model=model,
        engine=engine,
        engine_options=read_engine_options(engine_option),
        device=device,
        dtype=dtype,
        template=template,
        instruction=instruction,
        max_length=max_length,
        token_budget=token_budget,
        preset=preset,
    )
    systems = [settings] if not against else [settings, measuring.override(settings, against)]
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
    with _bar("queries", len(collection.queries) * len(systems), quiet=quiet) as advance:
        result = measuring.measure_quality(collection, systems, seed=seed, progress=lambda: advance(1))
    present(result, output, tag, measuring.trec_files(result))


@bench.command()
def throughput(
    source: SourceArgument = "demo",
    batch_sizes: Annotated[str, typer.Option(help="Pairs in one call.")] = "4,8,16,32,64",
    repeat: Annotated[int, typer.Option(help="Rounds; the batch sizes take turns in each.")] = 3,
    run: RunOption = None,
    qrels: QrelsOption = None,
    split: SplitOption = "test",
    candidates: CandidatesOption = 10,
    queries: QueriesOption = None,
    relevant_from: RelevantOption = None,
    model: ModelOption = None,
    engine: EngineOption = "auto",
    engine_option: EngineOptionsOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    template: TemplateOption = None,
    instruction: InstructionOption = None,
    max_length: MaxLengthOption = None,
    token_budget: TokenBudgetOption = None,
    preset: PresetOption = None,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet: QuietOption = False,
) -> None:
    """Pairs per second, latency, memory and quality over the number of pairs in one call, on labelled pairs."""
    from ..bench.output import check_output, present
    from ..bench.throughput import measure_throughput
    from ..data.collection import open_collection

    sizes = numbers("batch_sizes", batch_sizes)
    settings = settings_of(
        model=model,
        engine=engine,
        engine_options=read_engine_options(engine_option),
        device=device,
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
    with _bar("pairs", len(collection.pairs) * len(sizes) * repeat, quiet=quiet) as advance:
        result = measure_throughput(collection, settings, sizes, repeat=repeat, progress=advance)
    present(result, output, tag)


@bench.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="A result of bench or tune.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Another one of the same kind.")],
) -> None:
    """Ratios of two results, and everything that differs between them."""
    from ..bench.compare import compare_results
    from ..bench.results import read_result

    compare_results(read_result(a), read_result(b), (a.name, b.name)).print(console())


@bench.command()
def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A result of bench or tune.")],
    output: OutputOption = None,
    tag: TagOption = None,
) -> None:
    """Compute the report of a result file again, from its raw values."""
    from ..bench.output import check_output, present, recompute
    from ..bench.results import read_result

    result = read_result(file)
    check_output(output, tag)
    recompute(result)
    present(result, output, tag or file.stem)


@bench.command()
def titles(
    count: Annotated[int, typer.Argument(help="How many.")] = 1000,
    language: Annotated[str, typer.Option(help="zh, en or both.")] = "zh",
    seed: Annotated[int, typer.Option(help="The same seed gives the same titles.")] = 0,
) -> None:
    """Print generated product titles, one a line."""
    from ..bench.titles import generate_titles

    typer.echo("\n".join(generate_titles(count, language=language, seed=seed)))


def tune(
    preset: Annotated[str, typer.Option("--preset", help="accurate, balanced or fast.")] = "balanced",
    sample: Annotated[
        Path | None, typer.Option(help="A file with your documents, one a line. Default: generated product titles.")
    ] = None,
    documents: Annotated[int, typer.Option(help="Documents in a request: so many of the sample, drawn by seed.")] = 100,
    requests: Annotated[int, typer.Option(help="Timed requests of each configuration.")] = 5,
    memory_limit: Annotated[
        float | None, typer.Option(help="MiB that it may take: on the GPU if there is one, else on the host.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for one configuration.")] = 900.0,
    seed: Annotated[int, typer.Option(help="Of the sample and the queries.")] = 0,
    model: ModelOption = None,
    engine: EngineOption = "auto",
    engine_option: EngineOptionsOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    template: TemplateOption = None,
    instruction: InstructionOption = None,
    max_length: MaxLengthOption = None,
    yaml: Annotated[Path | None, typer.Option("--yaml", help="Write the settings there, for serve --config.")] = None,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet: QuietOption = False,
) -> None:
    """Find settings for this device and your documents by measuring, and say what time and memory they take."""
    import random

    from ..bench.output import check_output, present
    from ..bench.presets import preset_named
    from ..bench.results import write_text
    from ..bench.titles import generate_titles, read_titles
    from ..bench.titles import sample as draw
    from ..bench.tune import tune as measure
    from ..bench.tune import tune_yaml

    settings = settings_of(
        model=model,
        engine=engine,
        engine_options=read_engine_options(engine_option),
        device=device,
        dtype=dtype,
        template=template,
        instruction=instruction,
        max_length=max_length,
        preset=preset,
    )
    check_output(output, tag)
    found = generate_titles(max(documents, 1), seed=seed) if sample is None else read_titles(sample)
    chosen = draw(found, documents, random.Random(seed))  # noqa: S311 - nothing secret
    result = measure(
        settings,
        preset_named(preset),
        chosen,
        requests=requests,
        seed=seed,
        memory_limit_mib=memory_limit,
        timeout=timeout,
        progress=None if quiet else say,
    )
    text = tune_yaml(result)
    present(result, output, tag, {"config.yaml": text})
    typer.echo("\n" + text, nl=False)
    if yaml is not None:
        write_text(yaml, text)
        say(f"written: {yaml}")


def _bar(what: str, total: int, *, quiet: bool) -> _Bar:
    return _Bar(what, total, shown=show_progress(quiet=quiet))


class _Bar:
    """A progress bar on standard error, or nothing; gives a function that advances it."""

    def __init__(self, what: str, total: int, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), disable=not shown)
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, steps: int) -> None:
        self._bar.advance(self._task, steps)
