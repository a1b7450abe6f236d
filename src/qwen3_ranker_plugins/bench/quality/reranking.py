"""Compares rankings query by query: before and after reranking, and with one configuration and another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from ...config import RerankerSettings
from ...data.collection import Collection
from ...errors import InvalidInputError
from ...reranker import Reranker
from .. import published
from ..figures import Gain, gains
from ..machine import environment
from ..presets import preset_named
from ..report import Report, Table, about_lines, model_name
from ..results import Result, plain
from ..statistics import Significance, paired
from .metrics import MAIN_MEASURE, PerQuery, means, per_query, reranked

#: Settings that a second configuration may change, and how their text is parsed.
OVERRIDES: dict[str, Callable[[str], Any]] = {
    "model": str,
    "adapter": str,
    "scoring": str,
    "engine": str,
    "device": str,
    "dtype": str,
    "template": str,
    "instruction": str,
    "max_length": int,
    "token_budget": int,
    "long_documents": str,
    "piece_tokens": int,
    "piece_overlap": int,
    "max_pieces": int,
}

Progress = Callable[[], None]

#: Label of the order of the candidates before reranking.
FIRST_STAGE = "first stage"


@dataclass(frozen=True)
class JudgedCandidates:
    """The data that was reranked.

    Attributes:
        name, first_stage: see `Collection`.
        relevant_from: lowest grade that counts as relevant in binary measures.
        left_out: number of judged queries without a relevant document, which are not measured.
        qrels: query id -> document id -> grade.
        candidates: query id -> document ids in the first stage's order.
        unjudged: number of queries without any judgement, which are not measured.
    """

    name: str
    first_stage: str
    relevant_from: int
    left_out: int
    qrels: dict[str, dict[str, int]]
    candidates: dict[str, list[str]]
    unjudged: int = 0


@dataclass(frozen=True)
class SystemRun:
    """The raw values of one configuration.

    Attributes:
        label: what distinguishes it from the other configuration.
        settings: settings of the reranker.
        engine: `Reranker.describe()`.
        margins: query id -> margin of each candidate, in the candidates' order.
        seconds: query id -> duration of the call.
        truncated_documents: query id -> number of documents that were cut.
    """

    label: str
    settings: dict[str, Any]
    engine: dict[str, str]
    margins: dict[str, list[float]]
    seconds: dict[str, float]
    truncated_documents: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class QualityResult(Result):
    """Raw values of one or two configurations, with the figures that `evaluate` computes from them."""

    kind: ClassVar[str] = "quality"

    collection: JudgedCandidates
    systems: list[SystemRun]
    figures: Any = None


@dataclass(frozen=True)
class Comparison:
    """The change of a measure from one ranking to another."""

    before: str
    after: str
    measure: str
    significance: Significance

    def as_json(self) -> dict[str, Any]:
        """The fields on one level, for JSON."""
        return {"from": self.before, "to": self.after, "measure": self.measure, **asdict(self.significance)}


@dataclass(frozen=True)
class QualityFigures:
    """The figures that are computed from the raw values.

    Attributes:
        per_query: system -> measure -> query id -> value.
        means: system -> measure -> mean over queries.
        comparisons: of each system with the first stage, and of the two systems.
    """

    per_query: dict[str, PerQuery]
    means: dict[str, dict[str, float]]
    comparisons: list[Comparison]


def override(settings: RerankerSettings, changes: Sequence[str]) -> RerankerSettings:
    """The settings with `NAME=VALUE` changes. Named settings take precedence over those of `preset=NAME`.

    Raises:
        InvalidInputError: there is no such setting, or its value is unusable.
    """
    changed: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        name = name.strip().replace("-", "_")
        if equals and name == "preset":
            changed = preset_named(value).settings() | changed
            continue
        if not equals or name not in OVERRIDES:
            raise InvalidInputError("against", change, f"write NAME=VALUE, with one of {', '.join(OVERRIDES)}, preset")
        try:
            changed[name] = OVERRIDES[name](value)
        except ValueError as error:
            raise InvalidInputError("against", change, "needs a whole number") from error
    return replace(settings, **changed)


def measure_quality(
    collection: Collection, systems: Sequence[RerankerSettings], *, seed: int = 0, progress: Progress | None = None
) -> QualityResult:
    """Rerank every query's candidates with each configuration.

    Args:
        collection: the data to rerank.
        systems: one configuration, or two to be compared.
        seed: seed of the randomisation test.
        progress: called after every query of every system.

    Returns:
        A result whose "figures" are computed from its raw values by `evaluate`.

    Raises: as `Reranker` and its `rerank`.
    """
    about = environment()
    runs: list[SystemRun] = []
    for label, settings in zip(_labels(systems), systems, strict=True):
        margins: dict[str, list[float]] = {}
        seconds: dict[str, float] = {}
        truncated: dict[str, int] = {}
        with Reranker(**asdict(settings)) as reranker:
            for query_id, doc_ids in collection.candidates.items():
                found = reranker.rerank(collection.queries[query_id], [collection.texts[each] for each in doc_ids])
                in_order = sorted(found, key=lambda hit: hit.index)
                margins[query_id] = [hit.margin for hit in in_order]
                seconds[query_id] = found.usage.seconds
                truncated[query_id] = sum(hit.truncated_tokens > 0 for hit in in_order)
                if progress is not None:
                    progress()
            facts = reranker.describe().as_dict()
        runs.append(SystemRun(label, asdict(settings), facts, margins, seconds, truncated))
    result = QualityResult(
        about=about.after(runs[0].engine),
        settings=asdict(systems[0]),
        seed=seed,
        collection=JudgedCandidates(
            name=collection.name,
            first_stage=collection.first_stage,
            relevant_from=collection.relevant_from,
            left_out=collection.left_out,
            qrels={query_id: dict(grades) for query_id, grades in collection.qrels.items()},
            candidates={query_id: list(doc_ids) for query_id, doc_ids in collection.candidates.items()},
            unjudged=collection.unjudged,
        ),
        systems=runs,
    )
    return replace(result, figures=plain(evaluate(result)))


def _labels(systems: Sequence[RerankerSettings]) -> list[str]:
    """What distinguishes the configurations, such as "template=standard" and "template=compact"."""
    if len(systems) == 1:
        return ["reranked"]
    every = [asdict(system) for system in systems]
    differing = [name for name in every[0] if len({repr(each[name]) for each in every}) > 1]
    if not differing:
        raise InvalidInputError("against", asdict(systems[1]), "equals the first configuration: change something")
    labels = [", ".join(f"{name}={_short(each[name])}" for name in differing) for each in every]
    return labels if len(set(labels)) == len(labels) else [f"{number}: {label}" for number, label in enumerate(labels)]


def _short(value: object) -> str:
    text = "default" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def runs_of(result: QualityResult) -> dict[str, dict[str, list[str]]]:
    """Label -> run, computed from the raw margins; the run of the first stage comes first."""
    candidates = result.collection.candidates
    runs = {FIRST_STAGE: {query_id: list(doc_ids) for query_id, doc_ids in candidates.items()}}
    for system in result.systems:
        runs[system.label] = {each: reranked(candidates[each], system.margins[each]) for each in candidates}
    return runs


def evaluate(result: QualityResult) -> QualityFigures:
    """Compute per-query values, means and comparisons from the raw values of a result."""
    collection = result.collection
    depth = max(map(len, collection.candidates.values()))
    values = {
        label: per_query(collection.qrels, run, relevant_from=collection.relevant_from, depth=depth)
        for label, run in runs_of(result).items()
    }
    pairs = [(FIRST_STAGE, system.label) for system in result.systems]
    if len(result.systems) == 2:
        pairs.append((result.systems[0].label, result.systems[1].label))
    return QualityFigures(
        per_query=values,
        means={label: means(each) for label, each in values.items()},
        comparisons=[
            Comparison(a, b, name, _compare(values[a], values[b], name, result.seed or 0))
            for a, b in pairs
            for name in values[a]
            # All systems order the same candidates, so that recall at the depth of the candidates is always the same.
            if name != f"Recall@{depth}"
        ],
    )


def _compare(a: PerQuery, b: PerQuery, measure: str, seed: int) -> Significance:
    query_ids = sorted(a[measure])
    return paired([a[measure][each] for each in query_ids], [b[measure][each] for each in query_ids], seed=seed)


def quality_report(result: QualityResult) -> Report:
    """Everything that is shown, computed from the raw values."""
    figures, collection = evaluate(result), result.collection
    pairs = sum(map(len, collection.candidates.values()))
    title = f"Quality on {collection.name}"
    lines = [
        f"{len(collection.qrels)} queries, {pairs} pairs; candidates: {collection.first_stage}",
        f"model {result.settings['model']}",
        *about_lines(result.about),
    ]
    if collection.left_out:
        lines.append(f"{collection.left_out} judged queries have no relevant document and are left out")
    if collection.unjudged:
        lines.append(f"{collection.unjudged} queries have no judgement and are left out")
    return Report(
        title,
        lines,
        [_measures(result, figures), _comparisons(figures), _extremes(result, figures), published_quality()],
        (_picture(result, figures, title), f"Gain in {MAIN_MEASURE} of each query"),
    )


def _measures(result: QualityResult, figures: QualityFigures) -> Table:
    names = list(figures.means[FIRST_STAGE])
    rows = [[FIRST_STAGE, *(f"{figures.means[FIRST_STAGE][name]:.4f}" for name in names), "", ""]]
    for system in result.systems:
        cut = sum(system.truncated_documents.values())
        seconds = sorted(system.seconds.values())
        values = (f"{figures.means[system.label][name]:.4f}" for name in names)
        rows.append([system.label, *values, f"{1000 * seconds[len(seconds) // 2]:.0f} ms", str(cut)])
    grade = result.collection.relevant_from
    note = (
        "nDCG: gain = grade. "
        f"The others count grades from {grade} on as relevant. Not judged counts as not relevant. Recall at the depth "
        "of the candidates is what reranking cannot change."
    )
    return Table("Means over queries", ["system", *names, "time per query (median)", "documents cut"], rows, note)


def _comparisons(figures: QualityFigures) -> Table:
    rows = [
        [
            f"{each.before} → {each.after}",
            each.measure,
            f"{found.difference:+.4f}",
            f"[{found.low:+.4f}, {found.high:+.4f}]",
            _p(found.t_test),
            _p(found.randomisation),
            f"{found.wins} / {found.losses} / {found.ties}",
        ]
        for each in figures.comparisons
        for found in (each.significance,)
    ]
    header = ["from → to", "measure", "difference", "95% interval", "p, t-test", "p, randomisation", "win/lose/tie"]
    note = (
        "Paired by query, two-sided, not corrected for several comparisons: decide beforehand which one counts. With "
        "few queries, intervals are wide. A small p says that there is a difference, not that it is large."
    )
    return Table("Differences", header, rows, note)


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _extremes(result: QualityResult, figures: QualityFigures) -> Table:
    """The queries that gain and lose most, which are worth reading first."""
    first, last = _shown_pairs(result)[-1]
    before, after = (figures.per_query[label][MAIN_MEASURE] for label in (first, last))
    gains_ = sorted(((after[each] - before[each], each) for each in before), key=lambda item: (-item[0], item[1]))
    moved = [each for each in gains_ if each[0]]
    chosen = moved if len(moved) <= 10 else [*moved[:5], *moved[-5:]]
    rows = [[each, f"{before[each]:.4f}", f"{after[each]:.4f}", f"{gain:+.4f}"] for gain, each in chosen]
    note = f"{MAIN_MEASURE}, {first} → {last}; all queries are in the JSON file."
    return Table("Largest gains and losses", ["query", "before", "after", "gain"], rows, note)


def _shown_pairs(result: QualityResult) -> list[tuple[str, str]]:
    labels = [system.label for system in result.systems]
    return [(FIRST_STAGE, labels[0])] if len(labels) == 1 else [(FIRST_STAGE, labels[0]), (labels[0], labels[1])]


def _picture(result: QualityResult, figures: QualityFigures, title: str) -> bytes:
    panels = []
    for first, last in _shown_pairs(result):
        before, after = (figures.per_query[label][MAIN_MEASURE] for label in (first, last))
        (found,) = (
            each.significance
            for each in figures.comparisons
            if (each.before, each.after, each.measure) == (first, last, MAIN_MEASURE)
        )
        summary = (
            f"{found.wins} win, {found.losses} lose, {found.ties} tie; "
            f"95% [{found.low:+.3f}, {found.high:+.3f}], p = {_p(found.randomisation)} (randomisation)"
        )
        panels.append(Gain(f"{first} → {last}", {each: after[each] - before[each] for each in before}, summary))
    model = f"{model_name(result.settings['model'])} on {result.about.device_line}"
    return gains(panels, MAIN_MEASURE, title, [model, result.about.version_line])


def published_quality() -> Table:
    """The table that the Qwen team published."""
    rows = [[name, *(f"{value:.2f}" for value in values)] for name, values in published.QUALITY.items()]
    return Table("Published elsewhere", ["model", *published.QUALITY_COLUMNS], rows, published.QUALITY_SOURCE)


def trec_files(result: QualityResult) -> dict[str, str]:
    """File name -> text of every run and of the judgements, for other evaluators.

    The score column counts ranks down, so that evaluators that sort by score keep the order of equal margins.
    """
    files = {
        "qrels.txt": "".join(
            f"{query_id} 0 {doc_id} {grade}\n"
            for query_id, grades in result.collection.qrels.items()
            for doc_id, grade in grades.items()
        )
    }
    for number, (label, run) in enumerate(runs_of(result).items()):
        tag = "".join(character if character.isalnum() else "-" for character in label)[:60]
        files[f"run-{number}-{tag}.trec"] = "".join(
            f"{query_id} Q0 {doc_id} {rank} {len(doc_ids) - rank + 1} {tag}\n"
            for query_id, doc_ids in run.items()
            for rank, doc_id in enumerate(doc_ids, start=1)
        )
    return files
