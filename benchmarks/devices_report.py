"""Make the tables and the plot of docs/performance.md for several GPUs from the files of a run.

    export PYTHONPATH=src:.
    python benchmarks/devices_report.py FOLDER [--plot docs/images/several-gpus.png]

FOLDER holds what a run wrote: `load_1.json`, `load_2.json`, ... of `gpu_load.py --devices`, `replicas_N.json` of
`replicas.py`, and `offline_N.json` of `gpu_offline.py`. A file that is not there is left out. The Markdown is printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

CLIENTS = (1, 8, 32, 128)
_PREFIX = "qwen3-ranker serve, devices: "


def servers(folder: Path) -> dict[int, dict[str, Any]]:
    """Number of devices -> what was measured of the server on them."""
    found: dict[int, dict[str, Any]] = {}
    for path in folder.glob("load_[0-9]*.json"):
        if ".raw" in path.suffixes:
            continue
        for name, result in json.loads(path.read_text(encoding="utf-8"))["results"].items():
            if name.startswith(_PREFIX) and result["parts"]:
                found[int(name.removeprefix(_PREFIX))] = result
    return dict(sorted(found.items()))


def step(result: dict[str, Any], part: str) -> dict[str, Any] | None:
    """Figures of the only step of a part; None if it was not run."""
    found = result["parts"].get(part)
    return None if found is None else found["steps"][0]


def header(titles: list[str]) -> list[str]:
    """The first two lines of a table whose first column is text."""
    return [f"| {' | '.join(titles)} |", "|---|" + "---:|" * (len(titles) - 1)]


def rates_table(found: dict[int, dict[str, Any]]) -> list[str]:
    """Documents a second by clients and devices, each with its ratio to one device and its latencies."""
    lines = header(["clients", *(f"{count} GPU{'s' * (count > 1)}" for count in found)])
    for clients in CLIENTS:
        cells = []
        alone = step(found.get(1, {"parts": {}}), f"closed loop, {clients}")
        for count, result in found.items():
            row = step(result, f"closed loop, {clients}")
            if row is None or row["p50"] is None:
                cells.append("-")
                continue
            rate = f"{row['items_per_second']:,.0f}"
            if alone is not None and count > 1:
                rate += f" ({row['items_per_second'] / alone['items_per_second']:.2f})"
            failed = sum(row["failed"].values())
            note = f", {failed} failed" if failed else ""
            cells.append(f"{rate}; {row['p50']:,.0f} / {row['p99']:,.0f} ms{note}")
        lines.append(f"| {clients} | {' | '.join(cells)} |")
    for part, label in (("1000-titles", "1000 titles, one request: P50"), ("100-titles", "100 titles: P50")):
        rows = {count: row for count, result in found.items() if (row := step(result, part)) is not None}
        times = {count: f"{row['p50']:.1f} ms" for count, row in rows.items()}
        for count in times:
            if count > 1 and 1 in rows:
                times[count] += f" ({rows[count]['p50'] / rows[1]['p50']:.2f})"
        lines.append(f"| {label} | {' | '.join(times.get(count, '-') for count in found)} |")
    return lines


def host_table(found: dict[int, dict[str, Any]]) -> list[str]:
    """Processor time of the server's processes in the closed loops."""
    titles = ["GPUs, clients", "cores used", "CPU s of 1000 documents", "of these the server's own process"]
    lines = header([*titles, "its busiest thread", "busiest thread of a replica"])
    for count, result in found.items():
        for clients in CLIENTS:
            host = result.get("host", {}).get(f"closed loop, {clients}")
            if host is None:
                continue
            server, *others = host["processes"]
            total, documents = sum(each["cpu_seconds"] for each in host["processes"]), max(1, host["documents"])
            lines.append(
                f"| {count}, {clients} | {total / host['seconds']:.1f} | {1000 * total / documents:.2f} | "
                f"{1000 * server['cpu_seconds'] / documents:.2f} | {server['busiest_thread']:.0%} | "
                f"{max((each['busiest_thread'] for each in others), default=0):.0%} |"
            )
    return lines


def replicas_table(folder: Path) -> list[str]:
    """A worker killed and a worker stopped."""
    titles = ["replicas, signal", "documents/s before", "noticed after", "runs again after", "rate is back after"]
    lines = header([*titles, "documents/s meanwhile", "wrong, lost of all answers"])
    for path in sorted(folder.glob("replicas_*.json")):
        for name, row in json.loads(path.read_text(encoding="utf-8")).items():
            if not isinstance(row, dict) or "answers" not in row:
                continue
            for number in ("SIGKILL", "SIGSTOP"):
                if number in row:
                    lost = row[number]
                    back = lost["seconds_until_the_rate_is_back"]
                    lines.append(
                        f"| {name}, {number} | {row['documents_per_second']:,.0f} | "
                        f"{lost['seconds_until_noticed']:.1f} s | {lost['seconds_until_it_runs_again']:.1f} s | "
                        f"{'not in the time watched' if back is None else f'{back:.0f} s'} | "
                        f"{lost['documents_per_second_meanwhile']:,.0f} | "
                        f"{row['wrong']}, {row['lost']} of {row['answers']} |"
                    )
    return lines


def offline_table(folder: Path) -> list[str]:
    """An offline job on several numbers of devices."""
    titles = ["GPUs", "pairs/s", "steady pairs/s", "times one", "times one, steady", "share of time in engines"]
    lines = header(titles)
    for path in sorted(folder.glob("offline_*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        lines += [
            f"| {count} | {rows[-1]['pairs_per_second']:,.0f} | {rows[-1]['steady_pairs_per_second']:,.0f} | "
            f"{report['speedup'][count]:.2f} | {report['steady_speedup'][count]:.2f} | "
            f"{rows[-1]['share_of_time_in_engines']:.0%} |"
            for count, rows in report["runs"].items()
            if rows
        ]
        equal = report["outputs_are_equal_byte_for_byte"]
        lines += ["", f"Outputs are {'equal byte for byte' if equal else 'NOT equal'}."]
    return lines


def plot(found: dict[int, dict[str, Any]], path: Path) -> None:
    """Documents a second over the number of GPUs, a line for each number of clients, and the line of one GPU's rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for clients, marker in zip(CLIENTS, "osD^", strict=True):
        points = [(count, row["items_per_second"]) for count, result in found.items()
                  if (row := step(result, f"closed loop, {clients}")) is not None]  # fmt: skip
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, label=f"{clients} client{'s' * (clients > 1)}")
    if (row := step(found.get(1, {"parts": {}}), f"closed loop, {CLIENTS[-1]}")) is not None:
        most = max(found)
        axes.plot([1, most], [row["items_per_second"], most * row["items_per_second"]], ":", color="#8a9199",
                  label="times one GPU")  # fmt: skip
    axes.set_xticks(list(found))
    axes.set_xlabel("GPUs")
    axes.set_ylabel("documents/s, 100 of 390 tokens a request")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, color="#e3e6e9", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    found = servers(arguments.folder)
    tables = {
        "Documents/s (times one GPU); P50 / P99": rates_table(found),
        "Processor time": host_table(found),
        "A lost worker": replicas_table(arguments.folder),
        "Offline jobs": offline_table(arguments.folder),
    }
    for title, lines in tables.items():
        print(f"### {title}", "", *lines, "", sep="\n")
    if arguments.plot is not None:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
