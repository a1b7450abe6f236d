"""Settings for this device and these documents, found by measuring."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ..config import RerankerSettings, check_positive
from ..models import resolve_model
from ..prompt import DEFAULT_INSTRUCTION, PromptEncoder, load_tokenizer
from .errors import BenchError
from .presets import Preset
from .report import Report, Table
from .results import Result, device_line, environment, new_result, version_line
from .titles import generate_queries
from .trial import Trial, run_trial

#: Another dtype has to be this much faster, and to move no P(yes) by more than the other number.
_WORTH_IT = 0.9
_MAY_MOVE = 0.02
#: A smaller token budget is taken if it costs at most this much time.
_AS_FAST = 1.05

_BUDGETS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

Progress = Callable[[str], None]


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
) -> Result:
    """Measure what a preset leaves open: the dtype, then the token budget.

    Args:
        settings: the preset's, with what the user fixed.
        preset: says which dtypes may be tried.
        documents: a sample of the user's; every request holds all of them, with a new query each.
        requests: timed requests of each configuration.
        seed: of the queries.
        memory_limit_mib: configurations that take more are left out: on the device if there is one, else on the host.
        timeout: seconds for one configuration, loading included.
        progress: called with what is measured next.

    Raises:
        BenchError: nothing that was tried can run here.
        InvalidInputError: an argument is unusable. Others as `resolve_model`.
    """
    check_positive("requests", requests)
    about = environment()
    lengths = prompt_lengths(settings, documents)
    warmup, *queries = generate_queries(requests + 1, language="en", seed=seed)
    trials: list[dict[str, Any]] = []

    def attempt(changed: RerankerSettings, stage: str) -> dict[str, Any]:
        if progress is not None:
            progress(f"{stage}: dtype {changed.dtype}, token budget {changed.token_budget or 'of the engine'}")
        outcome = run_trial(Trial(asdict(changed), documents, queries, warmup), timeout=timeout)
        entry = {"stage": stage, "settings": asdict(changed), **asdict(outcome)}
        if outcome.error is None and memory_limit_mib is not None and _memory(entry) > memory_limit_mib:
            entry["error"] = f"takes {_memory(entry):,.0f} MiB, more than the limit of {memory_limit_mib:,.0f}"
        trials.append(entry)
        return entry

    for dtype in dict.fromkeys((settings.dtype, *preset.also_try)):
        attempt(replace(settings, dtype=dtype), "dtype")
    dtype = choose_dtype(trials)["settings"]["dtype"]
    tokens = max((each["computed_tokens"] for each in trials), default=0)
    # A budget that holds the whole request twice changes nothing any more.
    for budget in [each for each in _BUDGETS if each < 2 * tokens] or [_BUDGETS[0]]:
        if attempt(replace(settings, dtype=dtype, token_budget=budget), "token_budget")["error"] is not None:
            break
    chosen = choose_budget(trials, dtype)
    result = new_result("tune", about, settings={**asdict(settings), "preset": preset.name, "documents": len(documents),
                                          "requests": requests, "memory_limit_mib": memory_limit_mib},
                        seed=seed, facts=chosen["engine"])  # fmt: skip
    result["prompt_tokens"] = lengths
    result["trials"] = trials
    result["chosen"] = {name: value for name, value in chosen["settings"].items() if name != "engine_options"}
    return result


def prompt_lengths(settings: RerankerSettings, documents: Sequence[str]) -> list[int]:
    """Tokens of each document's whole prompt with a short query, as if nothing were ever cut."""
    encoder = PromptEncoder(load_tokenizer(resolve_model(settings.model)), settings.template, 2**40)
    instruction = DEFAULT_INSTRUCTION if settings.instruction is None else settings.instruction
    request = encoder.encode("a short query of six words", documents, instruction)
    return [len(request.prefix) + len(segment) for segment in request.segments]


def choose_dtype(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first dtype's trial, or a faster one that hardly moves a score.

    Raises:
        BenchError: none of them ran.
    """
    ran = _that_ran(trials)
    best = reference = ran[0]
    for other in ran[1:]:
        if _time(other) < _WORTH_IT * _time(best) and score_change(reference, other) <= _MAY_MOVE:
            best = other
    return best


def choose_budget(trials: Sequence[Mapping[str, Any]], dtype: str) -> Mapping[str, Any]:
    """The trial with the smallest token budget that is about as fast as the fastest.

    Raises:
        BenchError: none of them ran.
    """
    ran = [each for each in _that_ran(trials) if each["settings"]["dtype"] == dtype]
    limit = _AS_FAST * min(map(_time, ran))
    return min((each for each in ran if _time(each) <= limit), key=lambda each: _budget(each) or 0)


def score_change(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """The largest difference of P(yes) of one document."""
    first, second = (0.5 * (1 + np.tanh(0.5 * np.asarray(each["margins"]))) for each in (a, b))
    return float(np.abs(first - second).max())


def _that_ran(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    ran = [each for each in trials if each["error"] is None]
    if not ran:
        raise BenchError(f"nothing that was tried can run here; the first reason: {trials[0]['error']}")
    return ran


def _time(trial: Mapping[str, Any]) -> float:
    return float(statistics.median(trial["seconds"]))


def _memory(trial: Mapping[str, Any]) -> float:
    device = trial["memory"]["device_mib"]
    return float(trial["memory"]["host_mib"] if device is None else device)


def _budget(trial: Mapping[str, Any]) -> int | None:
    """As the engine took it."""
    given = trial["settings"]["token_budget"]
    told = trial["engine"].get("token_budget", "")
    return given if given is not None else int(told) if str(told).isdecimal() else None


def tune_report(result: Result) -> Report:
    """What was tried, what was chosen and why."""
    settings, chosen, lengths = result["settings"], result["chosen"], result["prompt_tokens"]
    percentiles = np.percentile(lengths, (50, 95, 100))
    cut = sum(length > settings["max_length"] for length in lengths)
    lines = [
        f"preset {settings['preset']}; every request: {settings['documents']} documents and a new query",
        f"{settings['requests']} timed requests for each row, each row in a process of its own",
        "prompts: {:.0f} tokens (median), {:.0f} (95%), {:.0f} (longest); ".format(*percentiles)
        + f"max_length {settings['max_length']} cuts {cut} of {len(lengths)}",
        device_line(result),
        version_line(result),
        f"command: {result['about']['command']}",
    ]
    return Report(f"Settings for {chosen['model']}", lines, [_trials(result), _choice(result)])


def _trials(result: Result) -> Table:
    documents = result["settings"]["documents"]
    reference = next((each for each in result["trials"] if each["error"] is None), None)
    rows = []
    for each in result["trials"]:
        label = [each["stage"], each["settings"]["dtype"]]
        if each["error"] is not None or reference is None:
            rows.append([*label, str(each["settings"]["token_budget"] or "-"), each["error"], "", "", "", "", ""])
            continue
        device = each["memory"]["device_mib"]
        rows.append(
            [
                *label,
                str(_budget(each) or "-"),
                f"{1000 * _time(each):.0f}",
                f"{1000 * min(each['seconds']):.0f} - {1000 * max(each['seconds']):.0f}",
                f"{documents / _time(each):.0f}",
                f"{each['memory']['host_mib']:,.0f}",
                "-" if device is None else f"{device:,.0f}",
                f"{score_change(reference, each):.4f}",
            ]
        )
    header = ["measured", "dtype", "token budget", "median ms", "from - to", "documents/s", "host MiB", "device MiB",
              "max |ΔP(yes)|"]  # fmt: skip
    note = (
        f"A dtype other than the first is taken if it is at least {1 - _WORTH_IT:.0%} faster than what was chosen "
        f"before it and moves no P(yes) by more than {_MAY_MOVE}; then the smallest token budget within "
        f"{_AS_FAST - 1:.0%} of the fastest. Milliseconds: of one request. Memory: peak, loading included."
    )
    return Table("Measured", header, rows, note)


def chosen_trial(result: Result) -> Mapping[str, Any]:
    """The trial whose settings were chosen, found again from the raw values."""
    dtype = choose_dtype([each for each in result["trials"] if each["stage"] == "dtype"])["settings"]["dtype"]
    return choose_budget(result["trials"], dtype)


def _choice(result: Result) -> Table:
    from .presets import PRESETS

    reasons = PRESETS[result["settings"]["preset"]].reasons
    trial = chosen_trial(result)
    rows = [[name, str(trial["settings"][name]), reasons[name]] for name in ("template", "max_length", "dtype")]
    rows.append(["token_budget", str(_budget(trial)), "measured; a smaller one takes less memory"])
    return Table("Chosen", ["setting", "value", "what the preset says"], rows, figures=False)


def tune_yaml(result: Result) -> str:
    """The settings as YAML that `qwen3-ranker serve --config` reads, with what they take as comments."""
    trial = chosen_trial(result)
    memory, documents = trial["memory"], result["settings"]["documents"]
    device = "" if memory["device_mib"] is None else f", {memory['device_mib']:,.0f} MiB on the device"
    lines = [
        f"# Found by qwen3-ranker tune, preset {result['settings']['preset']}, {result['about']['date'][:10]}, on",
        f"# {device_line(result)}",
        f"# {1000 * _time(trial):.0f} ms for {documents} documents (median of {len(trial['seconds'])} requests),",
        f"# {memory['host_mib']:,.0f} MiB on the host{device}",
    ]
    fields = {name: trial["settings"][name] for name in ("model", "engine", "device", "dtype", "template",
                                                         "instruction", "max_length")}  # fmt: skip
    fields["token_budget"] = _budget(trial)
    # A JSON value is a YAML value.
    lines += [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items() if value is not None]
    return "\n".join(lines) + "\n"
