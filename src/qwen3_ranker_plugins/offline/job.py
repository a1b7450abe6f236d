"""A job: its arguments and their checks. What it does is in `run`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from ..calibration import Calibration
from ..checks import canonical_size, check_choice, check_positive, plain
from ..config import BUNDLED_MODEL, DEFAULT_MODEL, MODEL_VARIABLE, RerankerSettings, model_from_environment
from ..data.formats import INPUT_FORMATS
from ..data.pairs import Fields
from ..data.source import PairTuple
from ..documents import DocumentFormat
from ..engines import create_engine
from ..errors import InvalidInputError
from ..prompt import DEFAULT_MAX_LENGTH
from ..types import DEFAULT_PIECES
from .checkpoint import Checkpoint
from .output import check_place, errors_file, resolve_output
from .results import RerankResults
from .run import JobRun
from .scoring import EngineFactory
from .writers import format_of

RUNNERS = ("local", "ray")

#: Maximum number of pairs that are read, encoded and planned at a time.
WINDOW_PAIRS = 4096


class RerankJob:
    """Reranks a file of pairs into another file; if it is killed, the next run continues it.

    Args:
        source: JSONL, CSV, TSV (each also .gz or .zst) or Parquet of pairs; a folder, a pattern or a URL of such files;
            a BEIR folder or "ir_datasets:ID" (both with `run`); "-" for standard input, which is copied first; or
            (query_id, doc_id, query, document) tuples.
        output: the file to write when everything is scored. Its suffix gives the format, unless `format` does.
        run: the TREC run that lists the documents of each query.
        model: a hub name, a folder, or "bundled:tiny"; None for the one that QWEN3_RANKER_MODEL names. There is no
            default: a job may run for hours, and should not do so with a model that was not chosen.
        engine, device, dtype, template, instruction, max_length, token_budget, engine_options: as in `Reranker`.
        adapter, scoring, calibration: as in `Reranker`. A job cannot be continued with another one.
        cache_path: file of a cache of scores, see docs/cache.md. A pass that was scored before, with the same
            documents, is not scored again; the output is the same as without a cache. Jobs and rerankers on one machine
            may share the file. None for no cache.
        cache: maximum size of that file, as in `Reranker`.
        long_documents, piece_tokens, piece_overlap, max_pieces: as in `Reranker`. They stay the same when a job is
            continued.
        format: "jsonl", "csv", "parquet" or "trec".
        rank_fields: the judged fields of each document, in this order. They are fields of the objects in `documents`,
            of the object in `document`, or of a flat record itself (its columns). None: the document is one text.
        document_template: how these fields are joined; see `documents.DocumentFormat`.
        columns: name in the input -> "query_id", "doc_id", "query", "document", "documents", "id", "title" or "text".
        input_format: a name from `data.formats.INPUT_FORMATS`, such as "csv"; None: by the suffix, and JSONL for
            standard input.
        include_text: also write the query and the judged text of the document.
        processing_time: write the field of that name, the only one that differs between two runs of the same job.
        max_errors: maximum number of pairs that cannot be scored before the job stops; None for no maximum.
        runner: "local" or "ray".
        devices: for the local runner: the devices, such as ["cuda:0", "cuda:1"], each of which gets an engine in its
            own process; ["all"] for every GPU. None: one engine in this process.
        workers: for Ray: the number of engines; None for one on each GPU.
        ray_address: for Ray: the address of the cluster to join.
        restart: discard what an earlier run left, finished or not, and replace the output.
        overwrite: replace a finished output, or a file that no job has made; continue an unfinished job.
        show_progress: draw a progress bar on standard error.
        window_pairs: maximum number of pairs that are read, and grouped by query, at a time.
        engine_factory: makes the engine; for engines that are not part of this package.

    Raises:
        InvalidInputError, MissingDependencyError: an argument is unusable.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[PairTuple],
        output: str | os.PathLike[str],
        *,
        run: str | os.PathLike[str] | None = None,
        model: str | os.PathLike[str] | None = None,
        engine: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        template: str = "standard",
        instruction: str | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
        token_budget: int | None = None,
        engine_options: Mapping[str, object] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        scoring: str | None = None,
        calibration: str | os.PathLike[str] | None = None,
        cache: int | str | None = None,
        cache_path: str | os.PathLike[str] | None = None,
        long_documents: str = "truncate",
        piece_tokens: int = DEFAULT_PIECES.tokens,
        piece_overlap: int = DEFAULT_PIECES.overlap,
        max_pieces: int = DEFAULT_PIECES.limit,
        format: str | None = None,  # noqa: A002 - named as the option
        columns: Mapping[str, str] | None = None,
        rank_fields: Sequence[str] | None = None,
        document_template: str | None = None,
        input_format: str | None = None,
        include_text: bool = False,
        processing_time: bool = True,
        max_errors: int | None = None,
        runner: str = "local",
        devices: Sequence[str] | None = None,
        workers: int | None = None,
        ray_address: str | None = None,
        restart: bool = False,
        overwrite: bool = False,
        show_progress: bool = False,
        window_pairs: int = WINDOW_PAIRS,
        engine_factory: EngineFactory = create_engine,
    ) -> None:
        self.source = os.fspath(source) if isinstance(source, os.PathLike) else source
        self.output = resolve_output(output)
        self.run_file = None if run is None else Path(run)
        name = (model_from_environment("") or None) if model is None else os.fspath(model)
        if name is None:
            raise InvalidInputError(
                "model",
                None,
                f"name a model, such as {DEFAULT_MODEL!r}, a folder, or {BUNDLED_MODEL!r} for a trial "
                f"(a small model for demonstrations), or set {MODEL_VARIABLE}",
            )
        self.settings = RerankerSettings(
            name,
            engine,
            device,
            dtype,
            template,
            instruction,
            max_length,
            token_budget,
            engine_options or {},
            adapter=plain(adapter),
            scoring=scoring,
            calibration=plain(calibration),
            cache=canonical_size("cache", cache),
            cache_path=plain(cache_path),
            long_documents=long_documents,
            piece_tokens=piece_tokens,
            piece_overlap=piece_overlap,
            max_pieces=max_pieces,
        )
        self.calibration = None if self.settings.calibration is None else Calibration.read(self.settings.calibration)
        self.settings.check_cache_outlives_the_process()
        if self.settings.engine == "remote":
            raise InvalidInputError("engine", engine, "a job runs the model itself: use another engine")
        self.format = format_of(self.output, format)
        self.columns = dict(columns or {})
        Fields(self.columns)
        given = rank_fields is not None or document_template is not None
        self.document_format = DocumentFormat(rank_fields, document_template) if given else None
        if input_format is not None:
            check_choice("input_format", input_format, INPUT_FORMATS)
        self.input_format = input_format
        self.include_text = include_text
        self.processing_time = processing_time
        if max_errors is not None and (
            not isinstance(max_errors, int) or isinstance(max_errors, bool) or max_errors < 0
        ):
            raise InvalidInputError("max_errors", max_errors, "use 0 or a positive integer, or None for no limit")
        self.max_errors = max_errors
        check_choice("runner", runner, RUNNERS)
        self.runner = runner
        for argument, value, needed, why in (
            ("devices", devices, "local", ": a Ray cluster knows its devices"),
            ("cache_path", cache_path, "local", ": other machines of a Ray cluster lack the file"),
            ("workers", workers, "ray", ""),
            ("ray_address", ray_address, "ray", ""),
        ):
            if value is not None and runner != needed:
                raise InvalidInputError(argument, value, f"has no effect unless runner is {needed!r}{why}")
        self.devices = None if devices is None else list(devices)
        check_positive("workers", workers)
        self.workers = workers
        self.ray_address = ray_address
        if restart and overwrite:
            raise InvalidInputError("overwrite", overwrite, "restart replaces the output, too: give only one of them")
        self.restart = restart
        self.overwrite = overwrite
        self.show_progress = show_progress
        check_positive("window_pairs", window_pairs)
        self.window_pairs = window_pairs
        self.engine_factory = engine_factory

    @property
    def errors_path(self) -> Path:
        """The file for the pairs without a score, with the reasons."""
        return errors_file(self.output)

    def run(self) -> RerankResults:
        """Score the pairs that no earlier run has scored, then write the output.

        If the job was finished before, return its results without scoring anything.

        Raises:
            JobError: see `offline.errors`; finished passes are kept for the next run.
            RankerError: as `Reranker`.
        """
        check_place(self.output)
        with closing(Checkpoint(self.output)) as checkpoint:
            return JobRun(self, checkpoint).results()
