"""The demo's tables: one query before and after, and the measures at the end."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..data.demo import DemoCorpus, DemoDocument
from .evaluation import NDCG, Gain, evaluate_each
from .searches import Found

MARKS = {2: "★★", 1: "★"}
"""Grade -> how a passage of that grade is marked."""

_GRADE_STYLES = {2: "bold green", 1: "green"}


def before_and_after(
    corpus: DemoCorpus, query_id: str, reason: str | None, before: Sequence[Found], after: Sequence[Found], rows: int
) -> RenderableType:
    """One query: BM25's first passages on the left, the reranker's on the right, with their change of rank.

    Args:
        reason: why the question is shown; None if there is no special reason.
        before: all candidates in BM25's order.
        after: the reranked ones.
        rows: number of passages of each to show.
    """
    grades = corpus.qrels.get(query_id, {})
    ranks_before = {found.document_id: rank for rank, found in enumerate(before, start=1)}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), expand=True)
    table.add_column("#", justify="right", style="dim", min_width=2)
    for title in ("before: BM25", "after: reranked"):
        table.add_column("", min_width=2)
        table.add_column(title, ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("moved", justify="right", min_width=5)
    table.add_column("P(yes)", justify="right", min_width=6)
    for rank, (left, right) in enumerate(zip(before[:rows], after[:rows], strict=False), start=1):
        table.add_row(
            str(rank),
            *_cells(corpus.documents[left.document_id], grades),
            *_cells(corpus.documents[right.document_id], grades),
            _movement(ranks_before[right.document_id], rank),
            f"{right.score:.3f}",
        )
    return Group(
        Text(f"{query_id}  {corpus.queries[query_id]}", style="bold"),
        _outcome(grades, reason, list(ranks_before), [found.document_id for found in after]),
        table,
        Text(f"   {_judged(grades, ranks_before)}", style="dim"),
    )


def _outcome(grades: Mapping[str, int], reason: str | None, before: Sequence[str], after: Sequence[str]) -> Text:
    """nDCG@10 of the question before and after, and why it is shown."""
    old, new = (evaluate_each({"": grades}, {"": run})[NDCG][""] for run in (before, after))
    style = "green" if new > old else "red" if new < old else ""
    outcome = Text(f"{NDCG} {old:.2f} → {new:.2f} ({new - old:+.2f})", style=style)
    if reason:
        outcome.append(f"  {reason}", style="dim")
    return outcome


def _judged(grades: Mapping[str, int], candidates: Container[str]) -> str:
    """How many passages are relevant, and how many of them the reranker never saw."""
    missed = sum(document_id not in candidates for document_id in grades)
    judged = f"{len(grades)} judged {'passage' if len(grades) == 1 else 'passages'}"
    return f"{judged}, {missed} of them not among BM25's candidates" if missed else judged


def _cells(document: DemoDocument, grades: Mapping[str, int]) -> tuple[Text, Text]:
    """(mark, two lines: title, beginning of the text)."""
    grade = grades.get(document.document_id, 0)
    style = _GRADE_STYLES.get(grade, "")
    lines = Text(document.title, style=style)
    lines.append("\n" + " ".join(document.text.split()), style="dim not bold")
    return Text(MARKS.get(grade, ""), style=style), lines


def _movement(before: int, after: int) -> Text:
    """Change of rank: "▲ 12" for a passage that rose by 12 ranks."""
    if before == after:
        return Text("=", style="dim")
    return Text(f"▲ {before - after}", style="green") if before > after else Text(f"▼ {after - before}", style="red")


@dataclass(frozen=True)
class Measured:
    """One row of the final table.

    Attributes:
        framework: its name.
        ranking: "BM25", or BM25 followed by the reranker.
        values: measure -> mean over all queries.
        seconds: mean per query, of the whole pipeline.
    """

    framework: str
    ranking: str
    values: Mapping[str, float]
    seconds: float


def measures(rows: Sequence[Measured]) -> Table:
    """The measures before and after."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2))
    table.add_column("framework")
    table.add_column("ranking")
    for name in rows[0].values:
        table.add_column(name, justify="right")
    table.add_column("time per query", justify="right")
    for row in rows:
        values = (f"{value:.3f}" for value in row.values.values())
        table.add_row(row.framework, row.ranking, *values, f"{row.seconds * 1000:.0f} ms")
    return table


def verdict(found: Gain, queries: int) -> Text:
    """What reranking changed, in two sentences."""
    sure = "" if found.low > 0 or found.high < 0 else " It includes 0, so chance alone may explain the difference."
    return Text(
        f"Reranking changes {NDCG} by {found.mean:+.3f}, 95% confidence interval {found.low:+.3f} to {found.high:+.3f}."
        f"{sure}\n{found.better} of {queries} questions get better, {found.worse} get worse."
    )
