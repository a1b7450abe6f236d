"""`qwen3-ranker doctor`. Exit code 0: the model is usable here; 1: it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    AdapterOption,
    DeviceOption,
    DevicesOption,
    EngineOption,
    EngineOptionsOption,
    ModelOption,
    ScoringOption,
    model_name,
    placement,
    read_engine_options,
)
from .terminal import output


def doctor(
    model: ModelOption = None,
    adapter: AdapterOption = None,
    scoring: ScoringOption = None,
    engine: EngineOption = "auto",
    engine_option: EngineOptionsOption = None,
    device: DeviceOption = None,
    devices: DevicesOption = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Official checkpoint whose published scores are compared with the model's, such as "
            "Qwen/Qwen3-Reranker-0.6B. Default: the name of the model or of its folder."
        ),
    ] = None,
    reference_file: Annotated[
        Path | None, typer.Option(help="JSON file of published scores, in the format of the package's own file.")
    ] = None,
) -> None:
    """Show what is installed and usable here, and check that the model scores known pairs as it should."""
    from ..doctor import diagnose

    one, several = placement(device, devices)
    healthy = diagnose(
        output(),
        model=model_name(model),
        engine=engine,
        engine_options=read_engine_options(engine_option),
        device=one,
        devices=several,
        adapter=adapter,
        scoring=scoring,
        reference=reference,
        reference_file=reference_file,
    )
    raise typer.Exit(0 if healthy else 1)
