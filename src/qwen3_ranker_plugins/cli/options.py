"""Options that several commands have in common, so that they are named, explained and read alike."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import (
    BUNDLED_MODEL,
    DEVICE_VARIABLE,
    DEVICES_VARIABLE,
    MODEL_VARIABLE,
    RerankerSettings,
    device_from_environment,
    devices_from_environment,
    model_from_environment,
)
from ..errors import InvalidInputError
from ..prompt import TEMPLATES

_ENGINES = "Engine that computes the scores: auto, packed, vllm_score, vllm_generate, vllm_packed or remote."
DTYPE_HELP = "Data type of the weights: auto, float32, bfloat16 or float16."
TEMPLATE_HELP = f"Prompt template: {', '.join(TEMPLATES)}, or a text with {{query}} and {{document}}."
_MAX_LENGTH = "Maximum length of a prompt in tokens; a longer document is cut at its end."

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"Model: a name on the Hugging Face hub, a local folder, or {BUNDLED_MODEL}. "
        f"Default: ${MODEL_VARIABLE}, or {BUNDLED_MODEL}.",
    ),
]
EngineOption = Annotated[str, typer.Option("--engine", help=_ENGINES)]
EngineOptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        metavar="NAME=VALUE",
        help="Option of the engine itself; can be given several times. VALUE is read as JSON, or else as text.",
    ),
]
AdapterOption = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        help="LoRA adapter that is merged into the model: a local folder, or a name on the Hugging Face hub; none "
        "ignores an adapter in the model's folder.",
    ),
]
ScoringOption = Annotated[
    str | None,
    typer.Option(
        "--scoring",
        help="How the model judges: label tokens such as 'yes - no' or 'Yes / 5', or score-head. Default: what its "
        "checkpoint says.",
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Calibration file from bench threshold --calibrate: changes scores and what thresholds mean, not the "
        "order. "
        "Default: none; scores are P(yes) of the model.",
    ),
]
CacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="SIZE",
        help="Maximum size of a cache of scores, such as 256MB or 2GiB. Default: none, or 1GB with --cache-path.",
    ),
]
CachePathOption = Annotated[
    str | None,
    typer.Option(
        "--cache-path",
        metavar="FILE",
        help="File of the cache. It outlives the process, and other processes may use it. Default: in memory.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help=f"Device: auto, cpu, cuda or cuda:N. Default: ${DEVICE_VARIABLE}, or auto."),
]
DevicesOption = Annotated[
    str | None,
    typer.Option(
        "--devices",
        help="Devices, each of which gets an engine in its own process: all for every visible GPU, or names such as "
        f"cuda:0,cuda:1. Default: ${DEVICES_VARIABLE}, or one engine on --device.",
    ),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help=DTYPE_HELP)]
InstructionOption = Annotated[
    str | None,
    typer.Option(
        "--instruction",
        help="Task that the documents are judged for. Default: the instruction that the model was trained with.",
    ),
]
TemplateOption = Annotated[str, typer.Option("--template", help=TEMPLATE_HELP)]
MaxLengthOption = Annotated[int, typer.Option("--max-length", help=_MAX_LENGTH)]
LongDocumentsOption = Annotated[
    str,
    typer.Option(
        "--long-documents",
        help="What happens to a long document: truncate cuts it at its end to fit; pieces judges it in pieces, and "
        "the best piece gives its score.",
    ),
]
_PIECE_TOKENS = "Maximum number of tokens in a piece. With pieces, longer documents are cut into pieces."
_PIECE_OVERLAP = "Maximum number of tokens that a piece shares with the previous one."
_MAX_PIECES = "Maximum number of pieces of a document; the rest is not read."
PieceTokensOption = Annotated[int, typer.Option("--piece-tokens", help=_PIECE_TOKENS)]
PieceOverlapOption = Annotated[int, typer.Option("--piece-overlap", help=_PIECE_OVERLAP)]
MaxPiecesOption = Annotated[int, typer.Option("--max-pieces", help=_MAX_PIECES)]
TokenBudgetOption = Annotated[
    int | None,
    typer.Option("--token-budget", help="Maximum number of tokens in one forward pass. Default: chosen by device."),
]

RankFieldsOption = Annotated[
    str | None,
    typer.Option(
        "--rank-fields",
        metavar="NAME,...",
        help="Fields of each document that are judged, in this order. Default: its text alone.",
    ),
]
DocumentTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--document-template",
        help="How the fields of a document are joined: yaml, lines (one line NAME: VALUE per field), or a text with "
        "names of fields in braces, such as '{title}: {text}', which replaces --rank-fields. Default: one field as its "
        "text, several as YAML.",
    ),
]

# The same for commands that take a preset, where None stands for the preset's value.
PresetDtypeOption = Annotated[str | None, typer.Option("--dtype", help=f"{DTYPE_HELP} Default: the preset's, or auto.")]
PresetTemplateOption = Annotated[
    str | None, typer.Option("--template", help=f"{TEMPLATE_HELP} Default: the preset's, or standard.")
]
PresetMaxLengthOption = Annotated[
    int | None, typer.Option("--max-length", help=f"{_MAX_LENGTH} Default: the preset's, or 8192.")
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", help="Preset: accurate, balanced or fast. Other options take precedence over it."),
]

# What the commands that measure have in common.
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for the report as JSON, Markdown, PNG and HTML. Default: print only."),
]
TagOption = Annotated[
    str | None, typer.Option("--tag", help="Name of the report's files. Default: the name of the measurement.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]


#: Options of a command that measures a model: annotation and default of each.
_MEASURED: dict[str, tuple[Any, object]] = {
    "model": (ModelOption, None),
    "adapter": (AdapterOption, None),
    "scoring": (ScoringOption, None),
    "calibration": (CalibrationOption, None),
    "engine": (EngineOption, "auto"),
    "engine_option": (EngineOptionsOption, None),
    "device": (DeviceOption, None),
    "devices": (DevicesOption, None),
    "dtype": (PresetDtypeOption, None),
    "template": (PresetTemplateOption, None),
    "instruction": (InstructionOption, None),
    "max_length": (PresetMaxLengthOption, None),
    "token_budget": (TokenBudgetOption, None),
    "preset": (PresetOption, None),
}


def takes_settings(*, without: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator that replaces a command's parameter `settings` by the options of a model, from which it makes settings.

    Args:
        without: options that the command does not have. If the command has its own parameter `preset`, that one is
            used.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = {name: option for name, option in _MEASURED.items() if name not in without}
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in options}
            given["engine_options"] = read_engine_options(given.pop("engine_option"))
            given.setdefault("preset", arguments.get("preset"))
            command(settings=settings_of(**given), **arguments)

        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            if parameter.name == "settings":
                parameters += [
                    inspect.Parameter(name, parameter.kind, default=default, annotation=annotation)
                    for name, (annotation, default) in options.items()
                ]
            else:
                parameters.append(parameter)
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def model_name(option: str | None) -> str:
    """`--model`, or the variable, or the bundled model."""
    return model_from_environment(BUNDLED_MODEL) if option is None else option


def device_name(option: str | None) -> str:
    """`--device`, or the variable, or "auto"."""
    return device_from_environment() if option is None else option


def placement(device: str | None, devices: str | None) -> tuple[str, str | None]:
    """`--device` and `--devices` as `RerankerSettings` takes them; the variables count if neither is given."""
    if device is None and devices is None:
        return device_from_environment(), devices_from_environment()
    return device or "auto", devices


def read_engine_options(options: Sequence[str] | None) -> dict[str, object]:
    """`--engine-option` as `RerankerSettings.engine_options` takes them.

    Raises:
        InvalidInputError: an option is not NAME=VALUE, or a name is repeated.
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


def settings_of(
    *,
    model: str | None,
    engine: str = "auto",
    device: str | None = None,
    devices: str | None = None,
    dtype: str | None = None,
    template: str | None = None,
    instruction: str | None = None,
    max_length: int | None = None,
    token_budget: int | None = None,
    engine_options: Mapping[str, object] | None = None,
    adapter: str | None = None,
    scoring: str | None = None,
    calibration: str | None = None,
    preset: str | None = None,
) -> RerankerSettings:
    """Settings of a reranker: options take precedence over the preset, and the preset over the defaults.

    Raises:
        InvalidInputError: one of them is unusable.
    """
    from ..bench.presets import preset_named

    fields: dict[str, Any] = {} if preset is None else preset_named(preset).settings()
    given = {
        "dtype": dtype,
        "template": template,
        "instruction": instruction,
        "max_length": max_length,
        "token_budget": token_budget,
        "engine_options": engine_options,
        "adapter": adapter,
        "scoring": scoring,
        "calibration": calibration,
    }
    fields |= {name: value for name, value in given.items() if value is not None}
    one, several = placement(device, devices)
    return RerankerSettings(model_name(model), engine, one, devices=several, **fields)


def numbers(argument: str, text: str) -> list[int]:
    """Parse numbers such as "4,8,16".

    Raises:
        InvalidInputError: the text is something else.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(argument, text, "give numbers separated by commas, such as 4,8,16") from error
    if any(number <= 0 for number in found) or len(set(found)) < len(found):
        raise InvalidInputError(argument, text, "give positive numbers, none of them twice")
    return found


def names(argument: str, text: str) -> list[str]:
    """Parse names such as "a,b".

    Raises:
        InvalidInputError: there is no name, or a name is repeated.
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found or len(set(found)) < len(found):
        raise InvalidInputError(argument, text, "give names separated by commas, none of them twice")
    return found
