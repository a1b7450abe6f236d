"""Labelled data: queries, the candidates of a first stage with their texts, and judgements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..checks import check_positive
from ..errors import InvalidInputError
from .beir import beir_file, read_beir
from .bm25 import BM25, DESCRIPTION, rank_listed
from .demo import load_demo_corpus
from .irds import PREFIX, load_dataset, query_texts
from .jsonl import read_json_lines
from .pairs import with_title
from .trec import read_qrels, read_run

DEMO = "demo"

#: Short names -> (ir_datasets id, lowest grade of a document that binary measures count as relevant). Meaning of the
#: grades: https://trec.nist.gov/data/deep2019.html ("1" is related, and not relevant).
ALIASES: dict[str, tuple[str, int]] = {
    "DL19": ("msmarco-passage/trec-dl-2019/judged", 2),
    "DL20": ("msmarco-passage/trec-dl-2020/judged", 2),
}

#: A collection with more documents than this is not indexed in memory and needs a run.
_INDEXED_AT_MOST = 2_000_000


@dataclass(frozen=True)
class Collection:
    """The data on which a reranker is measured. Queries without a relevant document are left out by default.

    Attributes:
        name: name of the data, for captions.
        first_stage: where the candidates come from, for captions.
        queries: id -> text.
        qrels: query id -> document id -> grade; documents without a judgement count as 0.
        candidates: query id -> document ids in the first stage's order; may be empty.
        texts: id -> text of each candidate.
        relevant_from: lowest grade of a document that binary measures count as relevant.
        left_out: judged queries without a relevant document, for which no measure is defined.
        unjudged: queries that the judgements do not name.
    """

    name: str
    first_stage: str
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    candidates: Mapping[str, Sequence[str]]
    texts: Mapping[str, str]
    relevant_from: int = 1
    left_out: int = 0
    unjudged: int = 0

    @property
    def depth(self) -> int:
        """Length of the longest candidate list."""
        return max(map(len, self.candidates.values()), default=0)

    @property
    def pairs(self) -> list[tuple[str, str, int]]:
        """(query id, document id, grade) of every candidate, query by query."""
        return [
            (query_id, doc_id, self.qrels[query_id].get(doc_id, 0))
            for query_id, doc_ids in self.candidates.items()
            for doc_id in doc_ids
        ]

    def take(self, queries: int | None) -> Collection:
        """The same collection with at most this many queries, evenly spread; None for all."""
        check_positive("queries", queries)
        if queries is None or queries >= len(self.queries):
            return self
        kept = spread(list(self.queries), queries)
        return replace(
            self,
            name=f"{self.name}, {queries} of {len(self.queries)} queries",
            queries={each: self.queries[each] for each in kept},
            qrels={each: self.qrels[each] for each in kept},
            candidates={each: self.candidates[each] for each in kept},
        )


def open_collection(
    source: str,
    *,
    candidates: int,
    run: Path | None = None,
    qrels: Path | None = None,
    split: str = "test",
    relevant_from: int | None = None,
    queries: int | None = None,
    every_label: bool = False,
) -> Collection:
    """Read a collection.

    Args:
        source: "demo"; a folder in BEIR format; a .jsonl or .jsonl.gz of candidate lists (`qid`, `query`, `docs` of
            `docid`, `text`, `rel`, and perhaps `all_rels`) or of labelled pairs (`query`, `document`, `label`, and
            perhaps `query_id`); "ir_datasets:ID"; or a name from ALIASES.
        candidates: maximum number of candidates of each query.
        run: a TREC run with the candidates; None for BM25, or for the run that an ir_datasets id comes with.
        qrels: file of judgements, in TREC's four columns or BEIR's three; None for those of the source.
        split: name of the file in a folder's qrels/, without .tsv.
        relevant_from: lowest grade that counts as relevant; None for the value of the source, or 1.
        queries: maximum number of queries, evenly spread; None for all.
        every_label: keep judged queries without a relevant document, for which ranking measures are not defined, and
            every pair of a file of labelled pairs, regardless of `candidates`.

    Raises:
        InvalidInputError: names the file, the line and the remedy.
        MissingDependencyError: ir_datasets or bm25s is needed and not installed.
    """
    check_positive("candidates", candidates)
    check_positive("relevant_from", relevant_from)
    dataset_id, grade = ALIASES.get(source.upper(), (source.removeprefix(PREFIX), 1))
    if source.upper() in ALIASES or source.startswith(PREFIX):
        raw = _from_ir_datasets(dataset_id)
    elif source == DEMO:
        raw = _demo()
    elif Path(source).is_dir():
        raw = _from_folder(Path(source), split, None if qrels is None else read_qrels(qrels))
    elif Path(source).is_file():
        if run is not None:
            raise InvalidInputError(
                "run", str(run), "has no effect on a file of lists or pairs: use it with a folder or an ir_datasets id"
            )
        raw = _from_pairs(Path(source)) if _holds_pairs(Path(source)) else _from_lists(Path(source))
    else:
        raise InvalidInputError(
            "SOURCE",
            source,
            f"no such file or folder; give one, {DEMO}, ir_datasets:ID, or one of {', '.join(ALIASES)}",
        )
    if qrels is not None:
        raw = replace(raw, qrels=read_qrels(qrels))
    relevant_from = grade if relevant_from is None else relevant_from
    return _build(raw, run, candidates, relevant_from, every_label=every_label).take(queries)


@dataclass(frozen=True)
class _Raw:
    """A source before candidates are chosen.

    Attributes:
        texts: function that returns the texts of ids.
        every: function that iterates over (id, text) of all documents.
        small: whether `every` can be indexed in memory.
        ranked, listed: the source's own candidates: `ranked` best first, `listed` in no order.
        labelled_pairs: every candidate has a label of its own.
    """

    name: str
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    texts: Callable[[Sequence[str]], Mapping[str, str]]
    every: Callable[[], Iterator[tuple[str, str]]] | None = None
    small: bool = True
    ranked: Mapping[str, Sequence[str]] | None = None
    listed: Mapping[str, Sequence[str]] | None = None
    first_stage: str = "as listed"
    labelled_pairs: bool = False


def _build(raw: _Raw, run: Path | None, depth: int, relevant_from: int, *, every_label: bool) -> Collection:
    judged = {
        query_id: grades
        for query_id, grades in raw.qrels.items()
        if query_id in raw.queries and (every_label or any(grade >= relevant_from for grade in grades.values()))
    }
    if not judged:
        raise InvalidInputError(
            "qrels", raw.name, f"no query of the data has a document of grade {relevant_from} or more"
        )
    left_out = sum(query_id not in judged for query_id in raw.qrels)
    first_stage = raw.first_stage
    if run is not None:
        ranked: Mapping[str, Sequence[str]] = read_run(run)
        first_stage = run.name
        if not set(ranked) & set(judged):
            raise InvalidInputError("run", str(run), f"has no query of {raw.name} that is judged")
    elif raw.ranked is not None:
        ranked = raw.ranked
    elif raw.listed is not None and raw.every is not None:
        listed = {query_id: raw.listed.get(query_id, ()) for query_id in judged}
        ranked, found = rank_listed(raw.queries, listed, raw.every())
        raw = replace(raw, texts=lambda _: found)
        first_stage = f"{raw.first_stage}, ordered by BM25 ({DESCRIPTION})"
    elif raw.every is not None and raw.small:
        index = BM25(raw.every())
        ranked = {query_id: index.search(raw.queries[query_id], depth) for query_id in judged}
        first_stage = f"BM25 ({DESCRIPTION})"
    else:
        raise InvalidInputError(
            "run", None, f"{raw.name} comes without candidates and is too large to be indexed here: give --run RUN"
        )
    limit = None if raw.labelled_pairs and every_label else depth
    candidates = {query_id: list(ranked.get(query_id, ()))[:limit] for query_id in judged}
    wanted = sorted({doc_id for doc_ids in candidates.values() for doc_id in doc_ids})
    texts = raw.texts(wanted)
    if missing := [doc_id for doc_id in wanted if doc_id not in texts]:
        raise InvalidInputError("run", missing[0], f"{raw.name} has no such document ({len(missing)} are missing)")
    return Collection(
        name=raw.name,
        first_stage=f"{first_stage}, top {max(map(len, candidates.values()))}",
        queries={query_id: raw.queries[query_id] for query_id in judged},
        qrels=judged,
        candidates=candidates,
        texts=texts,
        relevant_from=relevant_from,
        left_out=left_out,
        unjudged=sum(query_id not in raw.qrels for query_id in raw.queries),
    )


def _demo() -> _Raw:
    corpus = load_demo_corpus()
    documents = {doc_id: document.content for doc_id, document in corpus.documents.items()}
    return _Raw("demo corpus", corpus.queries, corpus.qrels, lambda _: documents, lambda: iter(documents.items()))


def _from_folder(folder: Path, split: str, qrels: Mapping[str, Mapping[str, int]] | None) -> _Raw:
    corpus, queries = (beir_file(folder, name, "SOURCE") for name in ("corpus", "queries"))
    if qrels is None:
        path = folder / "qrels" / f"{split}.tsv"
        if not path.is_file():
            found = sorted(each.stem for each in path.parent.glob("*.tsv"))
            remedy = f"there are {', '.join(found)}" if found else "give judgements with --qrels FILE"
            raise InvalidInputError("split", split, f"{folder} has no qrels/{split}.tsv: {remedy}")
        qrels = read_qrels(path)
    name = f"{folder.resolve().name}/{split}"

    def texts(wanted: Sequence[str]) -> dict[str, str]:
        kept = set(wanted)
        return {doc_id: text for doc_id, text in _titled_texts(corpus) if doc_id in kept}

    return _Raw(name, dict(_titled_texts(queries)), qrels, texts, lambda: _titled_texts(corpus))


def _from_lists(path: Path) -> _Raw:
    """Candidate lists; relevant documents outside of them (`all_rels`) count in the ideal order, with generated ids."""
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    ranked: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for number, record in read_json_lines(path):
        try:
            query_id = str(record["qid"])
            # Ids are local to a list: two lists may use one id for different texts.
            docs = [(f"{query_id}/{doc['docid']}", str(doc["text"]), doc.get("rel")) for doc in record["docs"]]
            judged = {doc_id: int(grade) for doc_id, _, grade in docs if grade is not None}
            outside = sorted((int(grade) for grade in record.get("all_rels", ()) if int(grade) > 0), reverse=True)
            queries[query_id] = str(record["query"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            remedy = 'each line needs {"qid", "query", "docs": [{"docid", "text", "rel"}]}'
            raise InvalidInputError(path.name, f"line {number}", f"{error!r}; {remedy}") from error
        for grade in judged.values():
            if grade in outside:
                outside.remove(grade)
        qrels[query_id] = judged | {f"{query_id}/outside-{n}": grade for n, grade in enumerate(outside)}
        ranked[query_id] = [doc_id for doc_id, _, _ in docs]
        texts |= {doc_id: text for doc_id, text, _ in docs}
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return _Raw(name, queries, qrels, lambda _: texts, ranked=ranked, first_stage="candidates in the order listed")


def _holds_pairs(path: Path) -> bool:
    """Whether the first record of a file is a labelled pair."""
    _, record = next(read_json_lines(path), (0, None))
    return isinstance(record, dict) and "docs" not in record and bool({"document", "label"} & record.keys())


def _from_pairs(path: Path) -> _Raw:
    """Labelled pairs. Pairs with one `query_id`, or without it with one query, belong together."""
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    texts: dict[str, str] = {}
    for number, record in read_json_lines(path):
        if (fault := _fault_of_pair(record)) is not None:
            remedy = 'each line needs {"query", "document", "label"}, the label true, false or a whole grade'
            raise InvalidInputError(path.name, f"line {number}", f"{fault}; {remedy}")
        query_id = str(record.get("query_id", record["query"]))
        if queries.setdefault(query_id, record["query"]) != record["query"]:
            raise InvalidInputError(path.name, f"line {number}", f"query_id {query_id!r} is used for two queries")
        # Named by line: several people may label one pair, and each label counts.
        doc_id = f"line-{number}"
        qrels.setdefault(query_id, {})[doc_id] = int(record["label"])
        texts[doc_id] = record["document"]
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    ranked = {query_id: list(grades) for query_id, grades in qrels.items()}
    return _Raw(
        name, queries, qrels, lambda _: texts, ranked=ranked, first_stage="pairs as listed", labelled_pairs=True
    )


def _fault_of_pair(record: object) -> str | None:
    """Why a record is not a labelled pair; None if it is one."""
    if not isinstance(record, dict):
        return "is not an object"
    query, document, label = (record.get(name) for name in ("query", "document", "label"))
    if not isinstance(query, str) or not query.strip() or not isinstance(document, str):
        return "query and document must be texts, and the query must not be blank"
    if not isinstance(label, (int, float)) or (isinstance(label, float) and not label.is_integer()):  # or NaN
        return f"label is {label!r}"
    return None


def _from_ir_datasets(dataset_id: str) -> _Raw:
    dataset = load_dataset(dataset_id, ("docs", "queries", "qrels"), "SOURCE")
    queries = query_texts(dataset)
    qrels: dict[str, dict[str, int]] = {}
    for judgement in dataset.qrels_iter():
        qrels.setdefault(judgement.query_id, {})[judgement.doc_id] = judgement.relevance

    def texts(wanted: Sequence[str]) -> dict[str, str]:
        found = dataset.docs_store().get_many(wanted)
        return {doc_id: document.default_text() for doc_id, document in found.items()}

    ranked: dict[str, list[str]] | None = None
    scores: dict[str, list[tuple[float, str]]] = {}
    if dataset.has_scoreddocs():
        for scored in dataset.scoreddocs_iter():
            scores.setdefault(scored.query_id, []).append((-scored.score, scored.doc_id))
        ranked = {query_id: [doc_id for _, doc_id in sorted(found)] for query_id, found in scores.items()}
    # MS MARCO published its 1,000 BM25 candidates in random order and without scores; the library gives 0 for all.
    unordered = ranked is not None and not any(score for found in scores.values() for score, _ in found)
    return _Raw(
        f"{PREFIX}{dataset_id}",
        queries,
        qrels,
        texts,
        lambda: ((document.doc_id, document.default_text()) for document in dataset.docs_iter()),
        small=(dataset.docs_count() or 0) <= _INDEXED_AT_MOST,  # None: a data set of the user, without a count
        ranked=None if unordered else ranked,
        listed=ranked if unordered else None,
        first_stage="candidates that come with the data",
    )


def _titled_texts(path: Path) -> Iterator[tuple[str, str]]:
    """(id, text) of each entry, with its title on a line of its own, as in the demo corpus."""
    return ((each.id, with_title(each.title, each.text, "\n")) for each in read_beir(path))


def spread(names: Sequence[str], count: int) -> list[str]:
    """`count` of the names, evenly spaced from the first on, so that results do not influence the choice."""
    count = min(count, len(names))
    return [names[number * len(names) // count] for number in range(count)]
