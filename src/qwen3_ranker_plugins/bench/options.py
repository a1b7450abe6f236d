"""Flags that several commands share, and what becomes of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..config import (
    BUNDLED_MODEL,
    DEVICE_VARIABLE,
    MODEL_VARIABLE,
    RerankerSettings,
    device_from_environment,
    model_from_environment,
)
from ..errors import InvalidInputError

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help=f"A hub name, a folder, or {BUNDLED_MODEL}. Default: ${MODEL_VARIABLE}, or {BUNDLED_MODEL}."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help=f"auto, cpu, cuda or cuda:N. Default: ${DEVICE_VARIABLE}, or auto.")
]
EngineOption = Annotated[str, typer.Option("--engine", help="auto, or the name of an engine.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
TemplateOption = Annotated[
    str | None, typer.Option("--template", help="standard, standard-hf, compact, or a text with {query}, {document}.")
]
InstructionOption = Annotated[str | None, typer.Option("--instruction", help="The task, in the model's prompt.")]
MaxLengthOption = Annotated[int | None, typer.Option("--max-length", help="Longest prompt in tokens.")]
TokenBudgetOption = Annotated[int | None, typer.Option("--token-budget", help="Tokens of one forward pass.")]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="accurate, balanced or fast; flags beside it go first.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="A folder for JSON, Markdown, PNG and HTML. Default: print only."),
]
TagOption = Annotated[str | None, typer.Option("--tag", help="Name of the files and of the report.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def settings_of(
    *,
    model: str | None,
    engine: str = "auto",
    device: str | None = None,
    dtype: str | None = None,
    template: str | None = None,
    instruction: str | None = None,
    max_length: int | None = None,
    token_budget: int | None = None,
    engine_options: dict[str, object] | None = None,
    preset: str | None = None,
) -> RerankerSettings:
    """Defaults < preset < flags.

    Raises:
        InvalidInputError: one of them is unusable.
    """
    from .presets import preset_named

    fields: dict[str, Any] = {} if preset is None else preset_named(preset).settings()
    flags = {
        "dtype": dtype,
        "template": template,
        "instruction": instruction,
        "max_length": max_length,
        "token_budget": token_budget,
        "engine_options": engine_options,
    }
    fields |= {name: value for name, value in flags.items() if value is not None}
    return RerankerSettings(
        model_from_environment(BUNDLED_MODEL) if model is None else model,
        engine,
        device_from_environment() if device is None else device,
        **fields,
    )


def engine_options(given: list[str] | None) -> dict[str, object] | None:
    """NAME=VALUE, the value as JSON if it is JSON, otherwise as text.

    Raises:
        InvalidInputError: it has no name or no value.
    """
    options: dict[str, object] = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise InvalidInputError("--engine-option", each, "write NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options or None


def numbers(argument: str, text: str) -> list[int]:
    """The numbers of "4,8,16".

    Raises:
        InvalidInputError: something else.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(argument, text, "give numbers with commas between them, such as 4,8,16") from error
    if any(number <= 0 for number in found) or len(set(found)) < len(found):
        raise InvalidInputError(argument, text, "give positive numbers, none of them twice")
    return found


def names(text: str) -> list[str]:
    """The parts of "a,b"."""
    return [part.strip() for part in text.split(",") if part.strip()]


def console() -> Console:
    """Standard output; wide where it is no terminal that says how wide it is, so that no table is broken."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(width=160, highlight=False)


def say(line: str) -> None:
    """A line of progress, on standard error."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(line, markup=False, style="dim")


def show_progress(*, quiet: bool) -> bool:
    """Whether bars are drawn."""
    return sys.stderr.isatty() and not quiet
