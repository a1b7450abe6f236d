"""Options that several commands have in common, so that they are named, explained and read alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from ..config import BUNDLED_MODEL, DEVICE_VARIABLE, MODEL_VARIABLE
from ..errors import InvalidInputError

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help=f"A hub name, a folder, or {BUNDLED_MODEL}. Default: ${MODEL_VARIABLE}, or {BUNDLED_MODEL}."
    ),
]
EngineOption = Annotated[str, typer.Option("--engine", help="auto, or the name of an engine.")]
EngineOptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        metavar="NAME=VALUE",
        help="An option of the engine's own; can be repeated. VALUE is JSON, or else a text.",
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help=f"auto, cpu, cuda or cuda:N. Default: ${DEVICE_VARIABLE}, or auto.")
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
InstructionOption = Annotated[str | None, typer.Option("--instruction", help="The task, in the model's prompt.")]
TemplateOption = Annotated[
    str, typer.Option("--template", help="standard, standard-hf, compact, or a text with {query} and {document}.")
]
MaxLengthOption = Annotated[
    int, typer.Option("--max-length", help="Longest prompt in tokens; longer documents are cut at their end.")
]
TokenBudgetOption = Annotated[
    int | None, typer.Option("--token-budget", help="Tokens of one forward pass. Default: by device.")
]


def read_engine_options(options: Sequence[str] | None) -> dict[str, object]:
    """`--engine-option` as `RerankerSettings.engine_options` takes them.

    Raises:
        InvalidInputError: not NAME=VALUE, or a name comes twice.
    """
    read: dict[str, object] = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not (name and equals):
            raise InvalidInputError("engine-option", option, "use NAME=VALUE")
        if name in read:
            raise InvalidInputError("engine-option", option, f"{name} is given twice")
        try:
            read[name] = json.loads(value)
        except ValueError:
            read[name] = value
    return read
