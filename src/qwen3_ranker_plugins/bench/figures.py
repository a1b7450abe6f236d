"""Pictures as PNG bytes. matplotlib is used without pyplot, which has global state and may need a display."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MissingDependencyError
from ..pip_command import pip_install

# Blue and orange, which people with any kind of colour vision can distinguish.
_BLUE, _ORANGE, _GREY = "#2f6fb5", "#d98c21", "#8a9199"
_DPI = 160


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f"pictures need matplotlib: {pip_install('bench')}") from error
    figure: Any = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1, hspace=0.04)
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any, title: str, footer: Sequence[str]) -> bytes:
    """The finished figure under its title and over its notes."""
    figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.supxlabel("\n".join(footer), fontsize=8, color="#50575e")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _legend(axes: Any) -> None:
    """Add a legend above the axes, where it does not hide a curve."""
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.1)


def _plain(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, color="#e3e6e9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


@dataclass(frozen=True)
class SweepPoint:
    """The values that the four panels show for one batch size.

    Attributes:
        pairs_per_second: pairs per second of each round.
        latency_ms: "p50", "p95", "p99" -> milliseconds of one call.
        host_mib, device_mib: peak memory in MiB; None if it was not measured.
        quality: "nDCG@10", "balanced accuracy" -> value; empty if quality is meaningless, as with random weights.
    """

    batch_size: int
    pairs_per_second: Sequence[float]
    latency_ms: Mapping[str, float]
    host_mib: float | None
    device_mib: float | None
    quality: Mapping[str, float]


def throughput_panels(points: Sequence[SweepPoint], title: str, footer: Sequence[str]) -> bytes:
    """Four panels over batch size: throughput, latency, memory and quality."""
    figure = _figure(11, 8)
    panels = figure.subplots(2, 2)
    sizes = [point.batch_size for point in points]
    label = "batch size (pairs in one call)"

    axes = panels[0, 0]
    _plain(axes, "Throughput", label, "pairs / s")
    middles = [statistics.median(point.pairs_per_second) for point in points]
    below = [middle - min(point.pairs_per_second) for middle, point in zip(middles, points, strict=True)]
    above = [max(point.pairs_per_second) - middle for middle, point in zip(middles, points, strict=True)]
    axes.errorbar(sizes, middles, yerr=[below, above], color=_BLUE, marker="o", capsize=4)
    for size, middle in zip(sizes, middles, strict=True):
        axes.annotate(f"{middle:,.0f}", (size, middle), textcoords="offset points", xytext=(5, -13), fontsize=9)
    rounds = len(points[0].pairs_per_second)
    note = "median of rounds; bars: slowest and fastest" if rounds > 1 else "one round"
    axes.text(0.98, 0.03, note, transform=axes.transAxes, ha="right", fontsize=8, color=_GREY)

    axes = panels[0, 1]
    _plain(axes, "Latency of one call", label, "ms")
    for name, colour, marker, style in (
        ("p50", _BLUE, "o", "-"),
        ("p95", _ORANGE, "s", "--"),
        ("p99", _GREY, "^", ":"),
    ):
        values = [point.latency_ms[name] for point in points]
        axes.plot(sizes, values, color=colour, marker=marker, linestyle=style, label=name)
    _legend(axes)

    axes = panels[1, 0]
    _plain(axes, "Peak memory", label, "MiB")
    axes.plot(sizes, [point.host_mib for point in points], color=_ORANGE, marker="o", linestyle="--", label="host")
    if any(point.device_mib is not None for point in points):
        axes.plot(sizes, [point.device_mib for point in points], color=_BLUE, marker="s", label="device")
    axes.set_ylim(bottom=0)
    _legend(axes)

    axes = panels[1, 1]
    _plain(axes, "Quality", label, "value")
    axes.set_ylim(0, 1)
    if all(point.quality for point in points):
        for name, colour, marker, style in (("nDCG@10", _ORANGE, "o", "--"), ("balanced accuracy", _BLUE, "s", "-")):
            values = [point.quality[name] for point in points]
            axes.plot(sizes, values, color=colour, marker=marker, linestyle=style, label=name)
        axes.axhline(0.5, color=_GREY, linestyle=":", label="chance")
        _legend(axes)
    else:
        axes.set_xlim(min(sizes), max(sizes))
        axes.text(0.5, 0.5, "not shown: the weights are random", transform=axes.transAxes, ha="center", color=_GREY)

    for axes in panels.flat:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    for axes in (*panels[0], panels[1, 0]):
        axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
    return _png(figure, title, footer)


@dataclass(frozen=True)
class Gain:
    """One panel of gains.

    Attributes:
        title: which two rankings are compared.
        values: query id -> gain.
        summary: a line with mean, interval and p value.
    """

    title: str
    values: Mapping[str, float]
    summary: str


def gains(panels: Sequence[Gain], measure: str, title: str, footer: Sequence[str]) -> bytes:
    """Per-query gains as sorted bars: how many queries win, how many lose, and by how much."""
    most = max(len(panel.values) for panel in panels)
    figure = _figure(min(16.0, max(8.0, 3 + most * 0.16)), 0.9 + 3.4 * len(panels))
    every = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, panel in zip(every, panels, strict=True):
        ordered = sorted(panel.values.items(), key=lambda item: (-item[1], item[0]))
        places, values = range(len(ordered)), [value for _, value in ordered]
        colours = [_BLUE if value > 0 else _ORANGE if value < 0 else _GREY for value in values]
        _plain(axes, panel.title, "", f"gain in {measure}")
        axes.grid(visible=False, axis="x")
        axes.bar(places, values, color=colours, width=0.85)
        axes.axhline(0, color="#1c2024", linewidth=0.8)
        mean = sum(values) / len(values)
        axes.axhline(mean, color="#1c2024", linewidth=1.2, linestyle="--", label=f"mean {mean:+.4f}")
        _legend(axes)
        axes.set_xlim(-0.8, len(values) - 0.2)
        if len(ordered) <= 60 and all(query_id.isascii() for query_id, _ in ordered):
            axes.set_xticks(places, [query_id[:14] for query_id, _ in ordered], rotation=90, fontsize=7)
        else:
            axes.set_xticks([])
        axes.set_xlabel(f"{len(values)} queries, best gain first.  {panel.summary}", fontsize=9)
    return _png(figure, title, footer)


@dataclass(frozen=True)
class Bar:
    """The times of one configuration.

    Attributes:
        label: the settings, in words.
        milliseconds: duration of each request.
        chosen: whether the configuration was chosen.
    """

    label: str
    milliseconds: Sequence[float]
    chosen: bool


def configuration_bars(bars: Sequence[Bar], title: str, footer: Sequence[str]) -> bytes:
    """Median milliseconds of each configuration; a line from fastest to slowest; the chosen one in another colour."""
    figure = _figure(9, 1.6 + 0.45 * len(bars))
    axes = figure.subplots()
    _plain(axes, "", "ms of one request: median; line: fastest to slowest", "")
    axes.grid(visible=False, axis="y")
    middles = [statistics.median(bar.milliseconds) for bar in bars]
    spread = [
        [middle - min(bar.milliseconds) for bar, middle in zip(bars, middles, strict=True)],
        [max(bar.milliseconds) - middle for bar, middle in zip(bars, middles, strict=True)],
    ]
    colours = [_ORANGE if bar.chosen else _BLUE for bar in bars]
    axes.barh(range(len(bars)), middles, xerr=spread, color=colours, height=0.6, capsize=3)
    axes.set_yticks(range(len(bars)), [f"{bar.label}{' (chosen)' if bar.chosen else ''}" for bar in bars], fontsize=9)
    axes.invert_yaxis()
    return _png(figure, title, footer)


def latency_lines(series: Mapping[str, Mapping[int, Sequence[float]]], title: str, footer: Sequence[str]) -> bytes:
    """Median milliseconds over the number of documents, with one line per series and its spread as a band."""
    import numpy as np

    figure = _figure(9, 5.5)
    axes = figure.subplots()
    _plain(axes, "", "documents in a request", "ms, client wall time; band: fastest to slowest")
    colours = (_BLUE, _ORANGE, "#7b4fa3", "#3a9ea5", _GREY, "#8c6d46")
    markers, styles = ("o", "s", "^", "D", "v"), ("-", "--", "-.", ":")  # so that lines differ without colour, too
    for place, (label, points) in enumerate(series.items()):
        counts = sorted(points)
        colour = colours[place % len(colours)]
        style, marker = styles[place % len(styles)], markers[place % len(markers)]
        middles = [float(np.median(points[count])) for count in counts]
        axes.plot(counts, middles, color=colour, linestyle=style, marker=marker, label=label)
        lowest, highest = ([pick(points[count]) for count in counts] for pick in (min, max))
        axes.fill_between(counts, lowest, highest, color=colour, alpha=0.12, linewidth=0)
    counts = sorted({count for points in series.values() for count in points})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    _legend(axes)
    return _png(figure, title, footer)


@dataclass(frozen=True)
class LoadPoint:
    """One step of a load test.

    Attributes:
        label: the step in words.
        items_per_second: its position on the x axis.
        p50, p99: milliseconds of answered requests; None if no request was answered.
        failed: share of the requests that failed, from 0 to 1.
    """

    label: str
    items_per_second: float
    p50: float | None
    p99: float | None
    failed: float


def load_lines(points: Sequence[LoadPoint], x: str, limit_ms: float | None, title: str, footer: Sequence[str]) -> bytes:
    """P50 and P99 over items per second on a logarithmic axis, with the limit of P99 and the share that failed.

    Lines differ in marker and dash as well as in colour.
    """
    figure = _figure(9, 5.5)
    axes = figure.subplots()
    _plain(axes, "", x, "ms, from the scheduled arrival" if limit_ms is not None else "ms, from the sending")
    ordered = sorted(points, key=lambda point: point.items_per_second)
    for name, colour, marker, style in (("p50", _BLUE, "o", "-"), ("p99", _ORANGE, "s", "--")):
        shown = [(point.items_per_second, value) for point in ordered if (value := getattr(point, name)) is not None]
        if shown:
            axes.plot(*zip(*shown, strict=True), color=colour, marker=marker, linestyle=style, label=name.upper())
    for point in ordered:
        notes = [] if limit_ms is not None else [point.label]
        notes += [f"{point.failed:.0%} failed"] if point.failed else []
        if notes and point.p99 is not None:
            place = (point.items_per_second, point.p99)
            axes.annotate(", ".join(notes), place, textcoords="offset points", xytext=(0, 8), ha="center", fontsize=8)
    if limit_ms is not None:
        axes.axhline(limit_ms, color=_GREY, linewidth=1.2, linestyle=":", label=f"limit of P99: {limit_ms:g} ms")
    if any(point.p50 is not None for point in points):
        axes.set_yscale("log")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:,g}")
    axes.margins(x=0.08, y=0.12)
    axes.set_xlim(left=0)
    _legend(axes)
    return _png(figure, title, footer)


@dataclass(frozen=True)
class ReliabilityLine:
    """One line of a reliability diagram.

    Attributes:
        label: name of the score.
        ece: expected calibration error of the score.
        points: (mean score, share of relevant pairs) of each bin.
    """

    label: str
    ece: float
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class ThresholdPlot:
    """The values that the three panels show.

    Attributes:
        score: name of the score.
        thresholds: x values of the lines, in descending order.
        lines: name of a measure -> its value at each threshold.
        bands: name of a measure -> (lower, upper) bounds of its interval.
        reliability: lines of the reliability diagram.
        scores: name of a kind of pairs -> their scores.
    """

    score: str
    thresholds: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    reliability: Sequence[ReliabilityLine]
    scores: Mapping[str, Sequence[float]]


def threshold_panels(plot: ThresholdPlot, title: str, footer: Sequence[str]) -> bytes:
    """Measures over thresholds with their intervals, a reliability diagram, and the scores of both kinds of pairs.

    Lines differ in dash or marker as well as in colour.
    """
    figure = _figure(14, 5)
    left, middle, right = figure.subplots(1, 3)
    styles = {"precision": (_BLUE, "-"), "recall": (_ORANGE, "--"), "F1": (_GREY, ":")}
    _plain(left, "Precision, recall and F1", f"threshold of the {plot.score}", "value; band: 95% interval")
    for name, values in plot.lines.items():
        colour, dash = styles[name]
        # A threshold between two scores keeps the same pairs as the upper score.
        left.step(plot.thresholds, values, where="post", color=colour, linestyle=dash, label=name)
        if name in plot.bands:
            left.fill_between(plot.thresholds, *plot.bands[name], color=colour, alpha=0.15, linewidth=0)
    _plain(middle, "Reliability", "mean score of a bin", "share of relevant pairs")
    middle.plot((0, 1), (0, 1), color=_GREY, linewidth=1, linestyle=":")
    for line, (colour, marker) in zip(plot.reliability, ((_BLUE, "o"), (_ORANGE, "s")), strict=False):
        label = f"{line.label}: ECE {line.ece:.3f}"
        middle.plot(*zip(*line.points, strict=True), color=colour, marker=marker, label=label)
    _plain(right, "Scores of both kinds of pairs", plot.score, "pairs")
    for (name, scores), (colour, hatch) in zip(plot.scores.items(), ((_BLUE, "//"), (_ORANGE, "")), strict=True):
        right.hist(
            scores, bins=20, range=(0, 1), color=colour, hatch=hatch, alpha=0.55, label=f"{name} ({len(scores)})"
        )
    right.set_yscale("log")
    for axes in (left, middle, right):
        axes.set_xlim(-0.02, 1.02)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    for axes in (left, middle):
        axes.set_ylim(-0.02, 1.04)
    return _png(figure, title, footer)
