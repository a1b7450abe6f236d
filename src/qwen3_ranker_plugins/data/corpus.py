"""A TREC run with its queries and corpus: which documents belong to which query, and where their texts are."""

from __future__ import annotations

import json
import sqlite3
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, MissingDependencyError
from ..offline.errors import StorageError
from .pairs import Pair, checked, unusable
from .readers import Lines, Source, file_identity


class RunSource(Source):
    """The lines of a TREC run (`query_id Q0 doc_id rank score tag`), with texts looked up."""

    def __init__(self, run: Path) -> None:
        if not run.is_file():
            raise InvalidInputError("run", str(run), "there is no such file")
        self._run = Lines(run)

    @abstractmethod
    def query(self, query_id: str) -> str | None:
        """The text of a query, or None."""

    @abstractmethod
    def document(self, doc_id: str) -> str | None:
        """The text of a document, or None."""

    def __iter__(self) -> Iterator[Pair]:
        last: tuple[str, str | None] = ("", None)
        for number, line in self._run:
            if isinstance(line, Pair):
                yield line
                continue
            fields = line.split()
            if len(fields) != 6:
                yield unusable(number, f"needs the 6 fields of a TREC run, and has {len(fields)}")
                continue
            query_id, _, doc_id = fields[:3]
            if last[0] != query_id:
                last = (query_id, self.query(query_id))
            query, document = last[1], self.document(doc_id)
            if query is None or document is None:
                missing = "the queries have no" if query is None else "the corpus has no"
                name = query_id if query is None else doc_id
                yield unusable(number, f"{missing} {name!r}", query_id, doc_id)
            else:
                yield checked(number, query_id, doc_id, query, document)

    def fraction(self) -> float:
        """By bytes of the run."""
        return self._run.fraction()


class BeirSource(RunSource):
    """A folder with corpus.jsonl and queries.jsonl (or .gz) in BEIR's form, and a run beside it.

    Texts are copied into an index on disk in the job's folder, once: memory stays flat whatever the corpus.

    Raises:
        InvalidInputError: a file is missing, or a line of the corpus or the queries cannot be read.
    """

    def __init__(self, folder: Path, run: Path | None, work: Path) -> None:
        if run is None:
            raise InvalidInputError("INPUT", str(folder), "a BEIR folder needs --run RUN, the documents of each query")
        super().__init__(run)
        self._corpus, self._queries = (_beir_file(folder, name) for name in ("corpus", "queries"))
        self._index_path = work / "texts.sqlite"
        self._index: sqlite3.Connection | None = None

    def identity(self) -> dict[str, str]:
        """The three files."""
        files = {"input": self._run.path, "corpus": self._corpus, "queries": self._queries}
        return {role: text for name, path in files.items() for role, text in file_identity(name, path).items()}

    def __iter__(self) -> Iterator[Pair]:
        self._index = sqlite3.connect(self._index_path, check_same_thread=False)
        try:
            if self._index.execute("PRAGMA user_version").fetchone()[0] == 0:
                self._fill(self._index)
            yield from super().__iter__()
        except sqlite3.OperationalError as error:
            raise StorageError(f"the index of the corpus, {self._index_path}, cannot be written: {error}") from error
        finally:
            self._index.close()

    def query(self, query_id: str) -> str | None:
        """From queries.jsonl."""
        return self._look_up("queries", query_id)

    def document(self, doc_id: str) -> str | None:
        """Title and text, from corpus.jsonl."""
        return self._look_up("corpus", doc_id)

    def _look_up(self, table: str, key: str) -> str | None:
        assert self._index is not None  # noqa: S101 - only called while iterating
        row = self._index.execute(f"SELECT text FROM {table} WHERE id = ?", (key,)).fetchone()  # noqa: S608 - our names
        return None if row is None else str(row[0])

    def _fill(self, index: sqlite3.Connection) -> None:
        """In one transaction: an index that was left half done is empty."""
        index.execute("PRAGMA journal_mode = MEMORY")
        index.execute("BEGIN")
        for table, path in (("corpus", self._corpus), ("queries", self._queries)):
            index.execute(f"DROP TABLE IF EXISTS {table}")
            index.execute(f"CREATE TABLE {table} (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
            index.executemany(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", _texts(path))  # noqa: S608 - our names
        index.execute("PRAGMA user_version = 1")
        index.execute("COMMIT")


def _beir_file(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"):
        if path.is_file():
            return path
    raise InvalidInputError("INPUT", str(folder), f"has no {name}.jsonl or {name}.jsonl.gz")


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in Lines(path):
        remedy = 'each line needs {"_id": ..., "text": ...}'
        if isinstance(line, Pair):
            raise InvalidInputError(path.name, f"line {number}", f"{line.fault}; {remedy}")
        try:
            record = json.loads(line)
            key, title, text = str(record["_id"]), record.get("title") or "", record["text"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(path.name, f"line {number}", f"{error!r}; {remedy}") from error
        if not isinstance(text, str):
            raise InvalidInputError(path.name, f"line {number}", f"text is {text}; {remedy}")
        yield key, f"{title} {text}".strip().encode("utf-8", "replace").decode()


class IrDatasetsSource(RunSource):
    """Queries and documents of an ir_datasets id, downloaded by that package where it has not got them.

    Raises:
        MissingDependencyError: ir_datasets is not installed.
        InvalidInputError: no such id, or no run was given.
    """

    def __init__(self, dataset_id: str, run: Path | None) -> None:
        try:
            import ir_datasets
        except ImportError as error:
            raise MissingDependencyError(f"ir_datasets:{dataset_id} needs: pip install ir_datasets") from error
        if run is None:
            raise InvalidInputError(
                "INPUT", f"ir_datasets:{dataset_id}", "needs --run RUN, the documents of each query"
            )
        super().__init__(run)
        try:
            dataset: Any = ir_datasets.load(dataset_id)
        except KeyError as error:
            raise InvalidInputError("INPUT", f"ir_datasets:{dataset_id}", "ir_datasets knows no such id") from error
        if not (dataset.has_docs() and dataset.has_queries()):
            raise InvalidInputError("INPUT", f"ir_datasets:{dataset_id}", "has no queries, or no documents")
        self._dataset_id = dataset_id
        self._queries = {query.query_id: query.default_text() for query in dataset.queries_iter()}
        self._store = dataset.docs_store()

    def identity(self) -> dict[str, str]:
        """The id, whose content is fixed, and the run."""
        return {"corpus": f"ir_datasets:{self._dataset_id}", **file_identity("input", self._run.path)}

    def query(self, query_id: str) -> str | None:
        """From the data set."""
        return self._queries.get(query_id)

    def document(self, doc_id: str) -> str | None:
        """From the data set's store."""
        try:
            return str(self._store.get(doc_id).default_text())
        except KeyError:
            return None
