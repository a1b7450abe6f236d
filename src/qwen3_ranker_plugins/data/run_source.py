"""A TREC run with its queries and corpus: which documents belong to which query, and where their texts are."""

from __future__ import annotations

import sqlite3
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

from ..errors import InvalidInputError
from .beir import beir_file, read_beir
from .files import InputFile, Lines
from .irds import PREFIX, load_dataset, query_texts
from .pairs import Pair, checked, unusable, with_title
from .source import Source, file_identity, former_file_identity
from .trec import split_fields


class RunSource(Source):
    """The lines of a TREC run (`query_id Q0 doc_id rank score tag`), with texts looked up."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        if not run.is_file():
            raise InvalidInputError("run", str(run), "there is no such file")
        self._run_path = run
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
            fields = split_fields(line)
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
        """Fraction of the bytes of the run."""
        return self._run.fraction()

    def grown_bytes(self) -> int:
        """Bytes that were appended to the run since it was opened."""
        return max(0, self._run.file.size() - self._run.size)

    def paths(self) -> list[Path]:
        """The run."""
        return [self._run_path]


class BeirSource(RunSource):
    """A folder with corpus.jsonl and queries.jsonl in BEIR format, and a run.

    Texts are copied once into an index on disk, so memory does not grow with the corpus.

    Args:
        index: path of the index, which is made if it does not exist.

    Raises:
        InvalidInputError: a file is missing, or a line of the corpus or the queries cannot be read.
    """

    def __init__(self, folder: Path, run: Path | None, index: Path) -> None:
        if run is None:
            raise InvalidInputError("INPUT", str(folder), "a BEIR folder needs --run RUN, the documents of each query")
        super().__init__(run)
        self._corpus, self._queries = (beir_file(folder, name, "INPUT") for name in ("corpus", "queries"))
        self._index_path = index
        self._index: sqlite3.Connection | None = None

    @property
    def _files(self) -> dict[str, Path]:
        return {"input": self._run_path, "corpus": self._corpus, "queries": self._queries}

    def identity(self) -> dict[str, str]:
        """The three files."""
        files = {role: InputFile.local(path) for role, path in self._files.items()}
        sizes = {role: self._run.size if role == "input" else file.size() for role, file in files.items()}
        return {role: file_identity(file, sizes[role]) for role, file in files.items()}

    def former_identity(self) -> dict[str, str]:
        """The three files."""
        return {role: former_file_identity(path) for role, path in self._files.items()}

    def paths(self) -> list[Path]:
        """The three files."""
        return [*self._files.values()]

    def __iter__(self) -> Iterator[Pair]:
        """The pairs; OSError if the index cannot be written."""
        self._index = sqlite3.connect(self._index_path, check_same_thread=False)
        try:
            if self._index.execute("PRAGMA user_version").fetchone()[0] == 0:
                self._fill(self._index)
            yield from super().__iter__()
        except sqlite3.OperationalError as error:
            raise OSError(f"the index of the corpus, {self._index_path}, cannot be written: {error}") from error
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
        """Fill the index in one transaction, so that an interrupted attempt leaves it empty."""
        index.execute("PRAGMA journal_mode = MEMORY")
        index.execute("BEGIN")
        for table, path in (("corpus", self._corpus), ("queries", self._queries)):
            index.execute(f"DROP TABLE IF EXISTS {table}")
            index.execute(f"CREATE TABLE {table} (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
            rows = ((each.id, _storable(with_title(each.title, each.text))) for each in read_beir(path))
            index.executemany(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", rows)  # noqa: S608 - our names
        index.execute("PRAGMA user_version = 1")
        index.execute("COMMIT")


def _storable(text: str) -> str:
    """The text with a question mark for each lone surrogate, which SQLite cannot store."""
    return text.encode("utf-8", "replace").decode()


class IrDatasetsSource(RunSource):
    """Queries and documents of an ir_datasets id, and a run.

    Raises:
        MissingDependencyError: ir_datasets is not installed.
        InvalidInputError: no such id, or no run was given.
    """

    def __init__(self, dataset_id: str, run: Path | None) -> None:
        dataset = load_dataset(dataset_id, ("docs", "queries"), "INPUT")
        if run is None:
            raise InvalidInputError("INPUT", f"{PREFIX}{dataset_id}", "needs --run RUN, the documents of each query")
        super().__init__(run)
        self._dataset_id = dataset_id
        self._queries = query_texts(dataset)
        self._store = dataset.docs_store()

    def identity(self) -> dict[str, str]:
        """The id, which always has the same content, and the run."""
        run = file_identity(InputFile.local(self._run_path), self._run.size)
        return {"corpus": f"{PREFIX}{self._dataset_id}", "input": run}

    def former_identity(self) -> dict[str, str]:
        """The run; the id is kept as it was."""
        return {"input": former_file_identity(self._run_path)}

    def query(self, query_id: str) -> str | None:
        """From the data set."""
        return self._queries.get(query_id)

    def document(self, doc_id: str) -> str | None:
        """From the data set's store."""
        try:
            return str(self._store.get(doc_id).default_text())
        except KeyError:
            return None
