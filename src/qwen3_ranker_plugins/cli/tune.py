"""`qwen3-ranker tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..config import RerankerSettings
from .options import OutputOption, QuietOption, SeedOption, TagOption, takes_settings
from .terminal import say


@takes_settings(without=["calibration", "devices", "token_budget", "preset"])
def tune(
    *,
    preset: Annotated[
        str, typer.Option("--preset", help="Preset to start from: accurate, balanced or fast.")
    ] = "balanced",
    sample: Annotated[
        Path | None, typer.Option(help="File of your documents, one per line. Default: generated product titles.")
    ] = None,
    documents: Annotated[
        int, typer.Option(help="Number of documents in a request, chosen at random from the sample (see --seed).")
    ] = 100,
    requests: Annotated[int, typer.Option(help="Number of timed requests for each configuration.")] = 5,
    memory_limit: Annotated[
        float | None,
        typer.Option(help="Maximum memory in MiB, on the GPU if there is one, else on the host. Default: no limit."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Maximum time for one configuration in seconds, including the time to load the model.")
    ] = 900.0,
    seed: SeedOption = 0,
    settings: RerankerSettings,
    yaml: Annotated[
        Path | None, typer.Option("--yaml", help="File for the settings that were found, for serve --config.")
    ] = None,
    output: OutputOption = None,
    tag: TagOption = None,
    quiet: QuietOption = False,
) -> None:
    """Find settings for this device and your documents by measuring the time and the memory that they take.

    With --output it also writes the settings, as TAG-config.yaml.
    """
    import random

    from ..bench.presets import preset_named
    from ..bench.report_files import check_output
    from ..bench.results import make_folder, write_text
    from ..bench.titles import generate_titles, read_titles
    from ..bench.titles import sample as draw
    from ..bench.tune.search import tune as search
    from ..bench.tune.search import tune_yaml
    from .present import present

    check_output(output, tag)
    if yaml is not None:
        make_folder(yaml.parent)
    found = generate_titles(max(documents, 1), seed=seed) if sample is None else read_titles(sample)
    chosen = draw(found, documents, random.Random(seed))  # noqa: S311 - nothing secret
    result = search(
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
