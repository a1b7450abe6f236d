"""Finds settings for this device and the given documents by measuring."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ...checks import check_positive
from ...config import RerankerSettings
from ...models import resolve_model
from ...prompt import DEFAULT_INSTRUCTION, PromptEncoder, load_tokenizer
from ...ranking import sigmoid
from ..errors import BenchError
from ..figures import Bar, configuration_bars
from ..machine import environment
from ..peak_memory import MemoryPeak
from ..presets import PRESETS, Preset
from ..report import Report, Table, about_lines, model_name
from ..results import Result
from ..titles import generate_queries
from .own_process import Trial, run_trial

#: Another dtype is chosen if its time is at most this share, and it changes no P(yes) by more than the second number.
_WORTH_IT = 0.9
_MAY_MOVE = 0.02
#: A smaller token budget is chosen if it certainly takes at most this many times the time.
_AS_FAST = 1.05

_BUDGETS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """One configuration that was tried, with the fields of its `Outcome`.

    Attributes:
        stage: "dtype" or "token_budget": the setting that the trial helps to decide.
        settings: settings of the reranker.
    """

    stage: str
    settings: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    load_seconds: float = 0.0
    margins: list[float] = field(default_factory=list)
    truncated_documents: int = 0
    computed_tokens: int = 0
    engine: dict[str, str] = field(default_factory=dict)
    memory: MemoryPeak = field(default_factory=MemoryPeak)
    error: str | None = None

    @property
    def median(self) -> float:
        """Median seconds of a request."""
        return float(statistics.median(self.seconds))

    @property
    def mib(self) -> float:
        """Peak memory in MiB, on the device if there is one, else on the host."""
        return self.memory.device_mib or self.memory.host_mib or 0.0

    @property
    def budget(self) -> int | None:
        """The token budget, as given or as the engine chose it."""
        given, told = self.settings["token_budget"], self.engine.get("token_budget", "")
        return given if given is not None else int(told) if str(told).isdecimal() else None

    @property
    def label(self) -> str:
        """Label in the picture."""
        return f"{self.settings['dtype']}, {self.budget or '-'}"

    def overlaps(self, other: Measured) -> bool:
        """Whether the times do not tell which is faster: their ranges overlap, or have only one value each."""
        if min(len(self.seconds), len(other.seconds)) < 2:
            return True
        return min(self.seconds) <= max(other.seconds) and min(other.seconds) <= max(self.seconds)


@dataclass(frozen=True, kw_only=True)
class TuneResult(Result):
    """Raw values of everything that was tried.

    Attributes:
        prompt_tokens: number of tokens of each document's whole prompt.
        trials: the trials, in their order.
        chosen: the settings that were chosen.
    """

    kind: ClassVar[str] = "tune"

    prompt_tokens: list[int]
    trials: list[Measured]
    chosen: dict[str, Any]


def tune(
    settings: RerankerSettings,
    preset: Preset,
    documents: Sequence[str],
    *,
    requests: int = 5,
    seed: int = 0,
    memory_limit_mib: float | None = None,
    timeout: float = 900.0,
    progress: Progress | None = None,
) -> TuneResult:
    """Measure what a preset leaves open: the dtype, then the token budget.

    Args:
        settings: the preset's settings, with those that the user fixed.
        preset: determines which dtypes may be tried.
        documents: a sample of the user's documents; every request contains all of them and a new query.
        requests: number of timed requests of each configuration.
        seed: seed of the queries.
        memory_limit_mib: maximum memory of a configuration in MiB, on the device if there is one, else on the host.
        timeout: maximum seconds for one configuration, loading included.
        progress: called with a line on what is measured next.

    Raises:
        BenchError: no configuration that was tried can run here.
        InvalidInputError: an argument is unusable. Further errors as for `resolve_model`.
    """
    check_positive("requests", requests)
    about = environment()
    lengths = prompt_lengths(settings, documents)
    warmup, *queries = generate_queries(requests + 1, language="en", seed=seed)
    trials: list[Measured] = []

    def attempt(changed: RerankerSettings, stage: str) -> Measured:
        if progress is not None:
            progress(f"{stage}: dtype {changed.dtype}, token budget {changed.token_budget or 'of the engine'}")
        outcome = run_trial(Trial(asdict(changed), documents, queries, warmup), timeout=timeout)
        entry = Measured(stage, asdict(changed), **asdict(outcome) | {"memory": outcome.memory})
        if outcome.error is None and memory_limit_mib is not None and entry.mib > memory_limit_mib:
            entry = replace(entry, error=f"takes {entry.mib:,.0f} MiB, more than the limit of {memory_limit_mib:,.0f}")
        trials.append(entry)
        return entry

    for dtype in dict.fromkeys((settings.dtype, *preset.also_try)):
        attempt(replace(settings, dtype=dtype), "dtype")
    dtype = choose_dtype(trials).settings["dtype"]
    tokens = max((each.computed_tokens for each in trials), default=0)
    # Budgets beyond twice the whole request make no difference.
    for budget in [each for each in _BUDGETS if each < 2 * tokens] or [_BUDGETS[0]]:
        if attempt(replace(settings, dtype=dtype, token_budget=budget), "token_budget").error is not None:
            break
    chosen = choose_budget(trials, dtype)
    return TuneResult(
        about=about.after(chosen.engine),
        settings={
            **asdict(settings),
            "preset": preset.name,
            "documents": len(documents),
            "requests": requests,
            "memory_limit_mib": memory_limit_mib,
        },
        seed=seed,
        prompt_tokens=lengths,
        trials=trials,
        chosen={name: value for name, value in chosen.settings.items() if name != "engine_options"},
    )


def prompt_lengths(settings: RerankerSettings, documents: Sequence[str]) -> list[int]:
    """Tokens of each document's whole prompt with a short query, as if nothing were ever cut."""
    encoder = PromptEncoder(load_tokenizer(resolve_model(settings.model)), settings.template, 2**40)
    instruction = DEFAULT_INSTRUCTION if settings.instruction is None else settings.instruction
    request = encoder.encode("a short query of six words", documents, instruction)
    return [len(request.prefix) + len(segment) for segment in request.segments]


def choose_dtype(trials: Sequence[Measured]) -> Measured:
    """The trial of the first dtype, or of one that is clearly faster and hardly changes a score.

    Raises:
        BenchError: no trial succeeded.
    """
    ran = _that_ran(trials)
    best = reference = ran[0]
    for other in ran[1:]:
        if _worth_it(other, best, reference) and not other.overlaps(best):
            best = other
    return best


def choose_budget(trials: Sequence[Measured], dtype: str) -> Measured:
    """The trial of the smallest token budget that is certainly about as fast as the engine's own, to save memory.

    Certainly: its slowest request takes at most 5 % more time than the fastest request with the engine's own budget. A
    budget that is clearly faster than the engine's own takes its place in this comparison.

    Raises:
        BenchError: no trial succeeded.
    """
    ran = [each for each in _that_ran(trials) if each.settings["dtype"] == dtype]
    fastest = min(ran, key=_median)
    default = next((each for each in ran if each.settings["token_budget"] is None), fastest)
    if _AS_FAST * fastest.median < default.median and not fastest.overlaps(default):
        default = fastest
    limit = _AS_FAST * min(default.seconds)
    certain = [each for each in ran if len(each.seconds) > 1 and max(each.seconds) <= limit]
    return min([*certain, default], key=lambda each: each.budget or 0)


def undecided(trials: Sequence[Measured]) -> list[str]:
    """Lines on what the medians alone would have chosen, and why it was not chosen."""
    ran = _that_ran(trials)
    dtypes = [each for each in ran if each.stage == "dtype"] or ran
    dtype = choose_dtype(dtypes)
    lines = [
        f"dtype {other.settings['dtype']} overlaps with {dtype.settings['dtype']}, which is kept"
        for other in dtypes
        if _worth_it(other, dtype, dtypes[0]) and other.overlaps(dtype)
    ]
    same = [each for each in ran if each.settings["dtype"] == dtype.settings["dtype"]]
    budget = choose_budget(ran, dtype.settings["dtype"])
    limit = _AS_FAST * min(map(_median, same))
    lines += [
        f"token budget {other.budget} overlaps with {budget.budget}, which is kept"
        for other in same
        if other.median <= limit and (other.budget or 0) < (budget.budget or 0)
    ]
    return lines


def score_change(a: Measured, b: Measured) -> float:
    """The largest difference of P(yes) of a document between two trials."""
    first, second = (sigmoid(np.asarray(each.margins)) for each in (a, b))
    return float(np.abs(first - second).max())


def _worth_it(other: Measured, best: Measured, reference: Measured) -> bool:
    return other.median < _WORTH_IT * best.median and score_change(reference, other) <= _MAY_MOVE


def _median(trial: Measured) -> float:
    return trial.median


def _that_ran(trials: Sequence[Measured]) -> list[Measured]:
    ran = [each for each in trials if each.error is None]
    if not ran:
        raise BenchError(f"no configuration that was tried can run here; the first reason: {trials[0].error}")
    return ran


def tune_report(result: TuneResult) -> Report:
    """The report: what was tried, what was chosen and why."""
    settings, lengths = result.settings, result.prompt_tokens
    percentiles = np.percentile(lengths, (50, 95, 100))
    cut = sum(length > settings["max_length"] for length in lengths)
    title = f"Settings for {model_name(result.chosen['model'])}"
    lines = [
        f"preset {settings['preset']}; every request: {settings['documents']} documents and a new query",
        f"{settings['requests']} timed requests for each row, each row in a process of its own",
        "prompts: {:.0f} tokens (median), {:.0f} (95%), {:.0f} (longest); ".format(*percentiles)
        + f"max_length {settings['max_length']} cuts {cut} of {len(lengths)}",
        *about_lines(result.about),
    ]
    remedy = "measure again with more --requests, or on a quieter machine"
    lines += [f"not decided: {line}; {remedy}" for line in undecided(result.trials)]
    chosen = chosen_trial(result)
    bars = [Bar(each.label, [1000 * value for value in each.seconds], each is chosen) for each in result.trials
            if each.error is None]  # fmt: skip
    picture = configuration_bars(bars, title, [result.about.device_line, result.about.version_line])
    words = "Milliseconds of one request with each configuration"
    return Report(title, lines, [_trials(result), _choice(result)], (picture, words))


def _trials(result: TuneResult) -> Table:
    documents = result.settings["documents"]
    reference = next((each for each in result.trials if each.error is None), None)
    rows = []
    for each in result.trials:
        label = [each.stage, each.settings["dtype"]]
        if each.error is not None or reference is None:
            rows.append([*label, str(each.settings["token_budget"] or "-"), each.error or "", "", "", "", "", ""])
            continue
        device = each.memory.device_mib
        rows.append(
            [
                *label,
                str(each.budget or "-"),
                f"{1000 * each.median:.0f}",
                f"{1000 * min(each.seconds):.0f} - {1000 * max(each.seconds):.0f}",
                f"{documents / each.median:.0f}",
                f"{each.memory.host_mib:,.0f}",
                "-" if device is None else f"{device:,.0f}",
                f"{score_change(reference, each):.4f}",
            ]
        )
    header = ["measured", "dtype", "token budget", "median ms", "from - to", "documents/s", "host MiB", "device MiB",
              "max |ΔP(yes)|"]  # fmt: skip
    note = (
        f"A dtype other than the first is taken if it is at least {1 - _WORTH_IT:.0%} faster than what was chosen "
        f"before it and changes no P(yes) by more than {_MAY_MOVE}; then the smallest token budget whose slowest "
        f"request takes at most {_AS_FAST - 1:.0%} more than the fastest with the engine's own. Where ranges "
        "overlap by more, the default is kept. Milliseconds: of one request. Memory: peak, loading included."
    )
    return Table("Measured", header, rows, note)


def chosen_trial(result: TuneResult) -> Measured:
    """The trial whose settings were chosen, found again from the raw values."""
    dtype = choose_dtype([each for each in result.trials if each.stage == "dtype"]).settings["dtype"]
    return choose_budget(result.trials, dtype)


def _choice(result: TuneResult) -> Table:
    reasons = PRESETS[result.settings["preset"]].reasons
    trial = chosen_trial(result)
    rows = [[name, str(trial.settings[name]), reasons[name]] for name in ("template", "max_length", "dtype")]
    rows.append(["token_budget", str(trial.budget), "measured; a smaller one takes less memory"])
    return Table("Chosen", ["setting", "value", "what the preset says"], rows, figures=False)


def tune_yaml(result: TuneResult) -> str:
    """The settings as YAML that `qwen3-ranker serve --config` reads, with their time and memory as comments."""
    trial = chosen_trial(result)
    memory, documents = trial.memory, result.settings["documents"]
    device = "" if memory.device_mib is None else f", {memory.device_mib:,.0f} MiB on the device"
    lines = [
        f"# Found by qwen3-ranker tune, preset {result.settings['preset']}, {result.about.date[:10]}, on",
        f"# {result.about.device_line}",
        f"# {1000 * trial.median:.0f} ms for {documents} documents (median of {len(trial.seconds)} requests),",
        f"# {memory.host_mib:,.0f} MiB on the host{device}",
    ]
    fields = {name: trial.settings[name] for name in ("model", "engine", "device", "dtype", "template",
                                                      "instruction", "max_length", "adapter", "scoring")}  # fmt: skip
    fields["token_budget"] = trial.budget
    # A JSON value is a YAML value.
    lines += [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items() if value is not None]
    return "\n".join(lines) + "\n"
