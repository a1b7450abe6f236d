"""The tables of `gpu_bench.py`, from the results of its parts alone."""

from __future__ import annotations

from typing import Any

#: label -> (part, milliseconds that issue 5 asks for on one H100 with the 0.6B shape)
GOALS = {
    "10 titles": ("goals", 8),
    "100 titles": ("goals", 10),
    "1000 titles": ("goals", 45),
    "100 chunks": ("goals", 50),
}
HIGHEST_RATIO = 1.15
HIGHEST_GIB = 20

Report = dict[str, Any]


def with_differences(report: Report) -> None:
    """Put the largest margin difference to the reference beside every time, and the fraction of the floor."""
    about, results = report["about"], report["results"]
    reference = rows_of(report, "reference")
    for part in results:
        for label, row in rows_of(report, part).items():
            truth = reference.get(label)
            if part == "reference" or truth is None or "median_ms" not in row:
                continue
            floor = 1000 * truth["packed_tokens"] * about["flops_per_token"] / about["floor_flops_per_second"]
            row["fraction_of_floor"] = round(floor / row["median_ms"], 3)
            if "margins" in row:
                row["largest_margin_difference"] = difference(row["margins"], truth["margins"])
    one, other = (
        rows_of(report, "alternative shared-beginning").get(label)
        for label in ("each head whole", "their beginning once")
    )
    if one and other:
        one["largest_margin_difference"], other["largest_margin_difference"] = (
            0.0,
            difference(other["margins"], one["margins"]),
        )


def difference(some: list[float], others: list[float]) -> float:
    return round(max(abs(one - other) for one, other in zip(some, others, strict=True)), 5)


def rows_of(report: Report, part: str) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = report["results"].get(part, {}).get("rows", {})
    return rows


def markdown(report: Report) -> str:
    """All tables; what did not run says so."""
    about, results = report["about"], report["results"]
    versions = ", ".join(f"{name} {number}" for name, number in sorted(about["versions"].items()))
    lines = [
        f"{about['device']}, shape {about['shape']}, random weights, {about['cores']} cores, {versions}, commit "
        f"{about['commit'][:7]}, {about['date']}; median of {about['repeat']} calls with a new query each"
        + (f"; numbers of documents divided by {about['scale']}" if about["scale"] != 1 else "")
        + ".",
        "",
        *goals(report),
        *systems(report),
        *inside(report),
        *profile(report),
        *starts(report),
    ]
    if others := {
        part: result["commit"]
        for part, result in results.items()
        if result.get("commit", about["commit"]) != about["commit"]
    }:
        lines += [
            "## Parts measured at another commit",
            "",
            *(f"- {part}: {commit}" for part, commit in others.items()),
            "",
        ]
    if failed := {part: result["failed"] for part, result in results.items() if "failed" in result}:
        lines += ["## Parts that failed", "", *(f"- {part}: {why}" for part, why in failed.items()), ""]
    return "\n".join(lines)


def goals(report: Report) -> list[str]:
    """Each goal of the issue with what was measured."""
    lines = ["## Goals", "", "| goal | at most | measured | margin difference | reached |", "|---|---|---|---|---|"]
    for label, (part, most) in GOALS.items():
        row = rows_of(report, part).get(label)
        lines.append(goal(f"{label}, end to end", f"{most} ms", row and row["median_ms"], most, row))
    pass_row = rows_of(report, "goals").get("1000 titles")
    lines.append(goal("1000 titles, a pass", "40 ms", pass_row and pass_row["pass_ms"], 40, pass_row))
    ratio = rows_of(report, "concurrent").get("8 x 100 titles")
    lines.append(
        goal("8 x 100 titles at once, of 1 x 800", str(HIGHEST_RATIO), ratio and ratio["ratio"], HIGHEST_RATIO, None)
    )
    for label, row in rows_of(report, "memory").items():
        peak = (row["peak"] or {}).get("reserved_gib")
        lines.append(
            goal(f"{label} of {row['tokens_per_document']} tokens", f"{HIGHEST_GIB} GiB", peak, HIGHEST_GIB, None)
        )
    return [*lines, ""]


def goal(name: str, most: str, measured: float | None, limit: float, row: dict[str, Any] | None) -> str:
    reached = "not measured" if measured is None else "yes" if measured <= limit else "no"
    apart = "-" if row is None else row.get("largest_margin_difference", "-")
    return f"| {name} | {most} | {'-' if measured is None else measured} | {apart} | {reached} |"


def systems(report: Report) -> list[str]:
    """Every system and alternative by case."""
    lines = [
        "## All systems",
        "",
        "Times of the alternatives are the device's for a pass, of all others from strings to results.",
        "The floor is that of the linear layers over packed tokens.",
        "",
        "| case | system | ms | of the floor | margin difference to float32 |",
        "|---|---|---|---|---|",
    ]
    labels = [
        *rows_of(report, "reference"),
        "8 x 100 titles",
        "1 x 800 titles",
        "each head whole",
        "their beginning once",
    ]
    for label in labels:
        for part in report["results"]:
            row = rows_of(report, part).get(label)
            if row is None or "median_ms" not in row:
                continue
            lines.append(
                f"| {label} | {part} | {row['median_ms']} | {row.get('fraction_of_floor', '-')} "
                f"| {row.get('largest_margin_difference', '-')} |"
            )
    return [*lines, ""]


def inside(report: Report) -> list[str]:
    """Where the time of a call goes."""
    lines = [
        "## Inside a call",
        "",
        "| case | engine | packed / padded tokens | tokenization | packing | pass | whole call |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, truth in rows_of(report, "reference").items():
        lines += [
            f"| {label} | {part} | {truth['packed_tokens']} / {row['padded_tokens']} "
            f"| {row['tokenization_ms']} | {row['packing_ms']} | {row['pass_ms']} | {row['median_ms']} |"
            for part in ("goals", "float8", "eager")
            if (row := rows_of(report, part).get(label))
        ]
    return [*lines, ""]


def profile(report: Report) -> list[str]:
    """Linear, attention and the rest, and the kernels that take longest."""
    rows = rows_of(report, "profile")
    lines = [
        "## Profile of a pass",
        "",
        "| case | linear | attention | rest | linear at the floor |",
        "|---|---|---|---|---|",
    ]
    about, reference = report["about"], rows_of(report, "reference")
    for label, row in rows.items():
        floor = 1000 * reference[label]["packed_tokens"] * about["flops_per_token"] / about["floor_flops_per_second"]
        lines.append(f"| {label} | {row['linear_ms']} | {row['attention_ms']} | {row['rest_ms']} | {floor:.2f} |")
    lines.append("")
    for label, row in rows.items():
        lines += [f"{label}:", "", "| ms | kind | kernel |", "|---|---|---|"]
        lines += [
            f"| {each['ms']} | {each['kind']} | `{each['name'].replace('|', '/')}` |" for each in row["kernels"][:8]
        ]
        lines.append("")
    return lines if rows else []


def starts(report: Report) -> list[str]:
    """Cold starts."""
    rows = rows_of(report, "cold")
    lines = ["## Starts", "", "| | size classes | imports | start | first request |", "|---|---|---|---|---|"]
    lines += [
        f"| {label} | {row['size_classes']:.0f} "
        f"| {row['import_s']} s | {row['start_s']} s | {row['first_request_s']} s |"
        for label, row in rows.items()
    ]
    return [*lines, ""] if rows else []
