"""Flags that the commands here share, beside those of all commands, and what becomes of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..config import (
    BUNDLED_MODEL,
    RerankerSettings,
    device_from_environment,
    model_from_environment,
)
from ..errors import InvalidInputError

# Like those of `..options`, with None for "as the preset has it".
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
TemplateOption = Annotated[
    str | None, typer.Option("--template", help="standard, standard-hf, compact, or a text with {query}, {document}.")
]
MaxLengthOption = Annotated[int | None, typer.Option("--max-length", help="Longest prompt in tokens.")]
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
    engine_options: Mapping[str, object] | None = None,
    preset: str | None = None,
) -> RerankerSettings:
    """Defaults < preset < flags.

    Raises:
        InvalidInputError: one of them is unusable.
    """
    from ..bench.presets import preset_named

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


def names(argument: str, text: str) -> list[str]:
    """The parts of "a,b".

    Raises:
        InvalidInputError: there is none, or one stands there twice.
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found or len(set(found)) < len(found):
        raise InvalidInputError(argument, text, "give names with commas between them, none of them twice")
    return found


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
