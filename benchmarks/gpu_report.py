"""Makes the tables of `gpu_bench.py` from nothing but the results of its parts."""

from __future__ import annotations

from typing import Any

Report = dict[str, Any]


def with_differences(report: Report) -> None:
    """Add to every row the largest margin difference to the reference and the fraction of the floor."""
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
        *systems(report),
        *inside(report),
        *profile(report),
        *throughput(report),
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


def systems(report: Report) -> list[str]:
    """Every system by case."""
    lines = [
        "## All systems",
        "",
        "From strings to results. The floor is that of the linear layers over packed tokens.",
        "",
        "| case | system | ms | of the floor | margin difference to float32 |",
        "|---|---|---|---|---|",
    ]
    for label in [*rows_of(report, "reference"), "8 x 100 titles", "1 x 800 titles"]:
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
        "| case | engine | tokens | tokenization | packing | pass | whole call |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, truth in rows_of(report, "reference").items():
        lines += [
            f"| {label} | {part} | {truth['packed_tokens']} "
            f"| {row['tokenization_ms']} | {row['packing_ms']} | {row['pass_ms']} | {row['median_ms']} |"
            for part in ("packed", "float8", "layers")
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


def throughput(report: Report) -> list[str]:
    """Concurrent requests and the long request."""
    lines = []
    if ratio := rows_of(report, "concurrent").get("8 x 100 titles"):
        lines.append(f"- 8 x 100 titles at once take {ratio['ratio']} of the time of 1 x 800.")
    for label, row in rows_of(report, "memory").items():
        peak = "" if row["peak"] is None else f", {row['peak']['reserved_gib']} GiB reserved"
        lines.append(
            f"- {label} of {row['tokens_per_document']} tokens in one call: {row['seconds']} s, "
            f"{row['tokens_per_second']} tokens/s{peak}."
        )
    return ["## Many requests, many documents", "", *lines, ""] if lines else []
