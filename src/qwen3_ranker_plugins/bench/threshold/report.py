"""The report of thresholds: tables and a picture, from a result's raw values."""

from __future__ import annotations

from ...ranking import sigmoid
from ..figures import ReliabilityLine, ThresholdPlot, threshold_panels
from ..report import Report, Table, about_lines
from .curves import Band, Interval, Sample
from .fitting import FOLDS
from .measure import ThresholdFigures, ThresholdResult, arrays, calibration_of, evaluated

#: Below this many queries an interval by queries is too narrow to be relied on.
FEW_QUERIES = 20

_ROUND_THRESHOLDS = tuple(number / 10 for number in range(1, 10))


def threshold_report(result: ThresholdResult) -> Report:
    """Everything that is shown, computed from the raw values."""
    (figures, band), data = evaluated(result), result.collection
    title = f"Thresholds on {data.name}"
    pairs = sum(map(len, data.margins.values()))
    relevant = sum(map(sum, data.relevant.values()))
    unlabelled = "are left out" if data.judged_only else "count as not relevant"
    lines = [
        f"{len(data.margins)} queries, {pairs} pairs, {relevant} of them relevant (grade {data.relevant_from} or more)",
        f"pairs: {data.first_stage}; pairs without a label {unlabelled}",
        f"model {result.settings['model']}; area under the ROC curve {figures.area_under_roc:.4f}",
        *about_lines(result.about),
    ]
    if len(data.margins) < FEW_QUERIES:
        lines.insert(
            0,
            f"WARNING: {len(data.margins)} queries: intervals that are made by resampling queries are too narrow "
            f"with fewer than about {FEW_QUERIES}"
            if len(data.margins) > 1
            else "WARNING: one query: intervals say nothing about other queries",
        )
    if (calibration := calibration_of(result)) is not None:
        lines.append(f"calibration: {calibration.summary}")
    elif result.settings.get("calibration") is not None:
        lines.append(f"calibration: {result.settings['calibration']}")
    if data.truncated_documents:
        lines.append(f"{data.truncated_documents} documents were cut at their end")
    picture = threshold_panels(_plot(result, figures, band), title, [lines[0], result.about.version_line])
    tables = [_choices(result, figures), _round(result), _reliability(figures)]
    return Report(title, lines, tables, (picture, "Precision, recall and F1 over thresholds; reliability; scores"))


def _choices(result: ThresholdResult, figures: ThresholdFigures) -> Table:
    calibrated = result.slope is not None
    header = ["wanted", "score_threshold", "95% interval", "precision", "95% interval", "recall", "95% interval",
              "F1", "kept"]  # fmt: skip
    if calibrated:
        header.insert(2, "without calibration")
    rows = []
    for each, plain_threshold in zip(figures.choices, figures.uncalibrated, strict=True):
        wish = "highest F1" if each.wanted is None else f"{each.kind} ≥ {each.wanted:g}"
        if each.threshold is None:
            rows.append([wish, "no threshold reaches it", *[""] * (len(header) - 2)])
            continue
        row = [
            wish,
            _number(each.threshold),
            _interval(each.threshold_interval),
            _share(each.precision),
            _interval(each.precision_interval),
            _share(each.recall),
            _interval(each.recall_interval),
            _share(each.f1),
            "" if each.kept is None else f"{each.kept:.1%}",
        ]
        if calibrated:
            row.insert(2, _number(plain_threshold))
        rows.append(row)
    scale = "the calibrated score" if calibrated else "P(yes)"
    note = (
        f"Thresholds of {scale}; a pair is kept if its score is at least the threshold. For a precision: the threshold "
        "with the highest recall; for a recall: the highest threshold. Interval of the threshold: what other queries "
        "of this kind would give (2,000 resamples of whole queries, percentiles; ∞: no threshold reaches it). "
        "Intervals of precision and recall: of this threshold, by the same resamples, and at least as wide as "
        "Wilson's. A threshold that is chosen on these pairs looks better on them than on others. Recall is of the "
        "relevant pairs in the data, not of what the first stage missed."
    )
    return Table("Thresholds", header, rows, note)


def _round(result: ThresholdResult) -> Table:
    margins, relevant, queries = arrays(result.collection.margins, result.collection.relevant)
    scales = [("P(yes)", margins)]
    if result.slope is not None and result.intercept is not None:
        scales.append(("calibrated", result.slope * margins + result.intercept))
    rows = []
    for name, odds in scales:
        sample = Sample.of(sigmoid(odds), relevant, queries)
        for threshold in _ROUND_THRESHOLDS:
            kept = sample.scores >= threshold
            hits, count, total = int(sample.relevant[kept].sum()), int(kept.sum()), int(sample.relevant.sum())
            rows.append(
                [
                    f"{name} ≥ {threshold:g}",
                    _share(hits / count) if count else "-",
                    _share(hits / total),
                    _share(2 * hits / (count + total)),
                    f"{count / len(kept):.1%}",
                ]
            )
    return Table("Round thresholds", ["threshold", "precision", "recall", "F1", "kept"], rows)


def _reliability(figures: ThresholdFigures) -> Table:
    found = [
        ("P(yes)", figures.raw),
        ("calibrated, same labels", figures.calibrated),
        (f"calibrated, other queries ({FOLDS} parts)", figures.cross_fitted),
    ]
    rows = [
        [name, f"{each.ece:.4f}", f"{each.brier:.4f}", f"{each.log_loss:.4f}"]
        for name, each in found
        if each is not None
    ]
    note = (
        "ECE: expected calibration error over 10 bins of equal width. Brier: mean squared error. Log loss in nats. "
        "Lower is better. A calibration holds for pairs like these: with other candidates, such as more of them for "
        "each query, another share is relevant."
    )
    return Table("Reliability", ["score", "ECE", "Brier", "log loss"], rows, note)


def _plot(result: ThresholdResult, figures: ThresholdFigures, band: Band) -> ThresholdPlot:
    margins, relevant, _ = arrays(result.collection.margins, result.collection.relevant)
    odds = margins
    label = "P(yes)"
    lines = [ReliabilityLine("P(yes)", figures.raw.ece, [(each.score, each.relevant) for each in figures.raw.bins])]
    if result.slope is not None and result.intercept is not None:
        odds, label = result.slope * margins + result.intercept, "calibrated score"
        better = figures.cross_fitted or figures.calibrated
        assert better is not None  # noqa: S101 - there is a slope
        name = "calibrated" if figures.cross_fitted is None else "calibrated, other queries"
        lines.append(ReliabilityLine(name, better.ece, [(each.score, each.relevant) for each in better.bins]))
    scores = sigmoid(odds)
    return ThresholdPlot(
        label,
        band.thresholds.tolist(),
        {"precision": band.precision.tolist(), "recall": band.recall.tolist(), "F1": band.f1.tolist()},
        {
            name: (low.tolist(), high.tolist())
            for name, (low, high) in (("precision", band.precision_band), ("recall", band.recall_band))
        },
        lines,
        {"relevant": scores[relevant].tolist(), "other": scores[~relevant].tolist()},
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.15g}"


def _interval(found: Interval | None) -> str:
    if found is None:
        return "-"
    low, high = ("∞" if each is None else f"{each:.3f}" for each in (found.low, found.high))
    return f"[{low}, {high}]"
