"""A job: input -> windows -> passes -> checkpoint -> ordered output."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from ..calibration import Calibration
from ..checks import canonical_size, check_choice, check_positive, plain
from ..config import BUNDLED_MODEL, DEFAULT_MODEL, MODEL_VARIABLE, RerankerSettings, model_from_environment
from ..data.pairs import Fields
from ..data.source import PairTuple, Source
from ..data.sources import INPUT_FORMATS, STANDARD_INPUT, open_source
from ..documents import DocumentFormat
from ..engines import create_engine
from ..errors import InvalidInputError
from ..prompt import DEFAULT_MAX_LENGTH
from ..types import DEFAULT_PIECES
from .checkpoint import Checkpoint, Done
from .errors import CheckpointError, StorageError, TooManyErrorsError
from .fingerprint import settings_fingerprint
from .merge import Counts, merge, report_errors, sync
from .output import check_against_inputs, check_place, errors_file, resolve_output
from .progress import Meter, metering
from .results import RerankResults, Summary, summary_from
from .runners.base import Runner
from .runners.local import LocalRunner
from .runners.processes import ProcessRunner, cuda_devices
from .scoring import EngineFactory
from .spool import spool_standard_input
from .storage import storage
from .windows import Window, Windows
from .writers import Contents, format_of, open_writer

logger = logging.getLogger(__name__)

RUNNERS = ("local", "ray")

#: Limits of a window: the pairs that are read, encoded and planned at a time, and the characters of their texts.
WINDOW_PAIRS = 4096
WINDOW_CHARACTERS = 4 * 2**20

#: Fields of the fingerprint that the output's metadata contain: how its scores were made.
_MADE_BY = (
    "model_name", "model", "engine", "device", "dtype", "template", "instruction", "max_length", "engine_options",
    "adapter", "scoring", "calibration", "long_documents", "version",
)  # fmt: skip


class RerankJob:
    """Reranks a file of pairs into another file; if it is killed, the next run continues it.

    Args:
        source: JSONL, CSV, TSV (each also .gz or .zst) or Parquet of pairs; a folder, a pattern or a URL of such files;
            a BEIR folder or "ir_datasets:ID" (both with `run`); "-" for standard input, which is copied first; or
            (query_id, doc_id, query, document) tuples.
        output: the file to write when everything is scored. Its suffix gives the format, unless `format` does.
        run: the TREC run that lists the documents of each query.
        model: a hub name, a folder, or "bundled:tiny"; None for the one that QWEN3_RANKER_MODEL names. There is no
            default: a job may run for hours, and should not do so with a model that nobody chose.
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
        input_format: "jsonl", "csv", "tsv" or "parquet"; None: by the suffix, and JSONL for standard input.
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
            goes_on = self._goes_on(checkpoint)
            begun = checkpoint.begun if goes_on else {}
            # The input of a job that an earlier version began is read to its end as that version read it.
            fields = Fields(self.columns, begun.get("nested_titles") != "ignored", self.document_format)
            source = self._open_source(checkpoint.folder, fields)
            settings = settings_fingerprint(self.settings, self.calibration)
            if not goes_on:
                self._check_may_replace(checkpoint)
                checkpoint.restart()
            with _fewer_collections():
                return self._run(source, checkpoint, settings | self._reading(fields))

    def _goes_on(self, checkpoint: Checkpoint) -> bool:
        """Whether this run continues an earlier one instead of discarding it."""
        if not checkpoint.begun or checkpoint.is_bare:
            return False
        return not (self.restart or (self.overwrite and checkpoint.summary()))

    def _check_may_replace(self, checkpoint: Checkpoint) -> None:
        """Refuse to replace a file that no job has made, unless `restart` or `overwrite` is set."""
        if checkpoint.begun or self.restart or self.overwrite:
            return
        for path in (self.output, self.errors_path):
            if path.exists():
                raise CheckpointError(
                    f"{path} exists and was not made by this job: give another output, or replace it with --overwrite"
                )

    def _open_source(self, folder: Path, fields: Fields) -> Source:
        given = spool_standard_input(folder) if self.source == STANDARD_INPUT else self.source
        source = open_source(
            given, run=self.run_file, index=folder / "texts.sqlite", fields=fields, input_format=self.input_format
        )
        if given is self.source:
            check_against_inputs(self.output, given if isinstance(given, str) else "", source.paths())
        return source

    def _run(self, source: Source, checkpoint: Checkpoint, settings: dict[str, str]) -> RerankResults:
        started = time.perf_counter()
        identity = source.identity()
        if not checkpoint.summary():
            with reading():
                source.check_beginning()
        checkpoint.match(settings | identity, source.former_identity())
        if summary := self._finished(checkpoint):
            return self._results(summary)
        done = checkpoint.resume()
        windows = Windows(source, self.window_pairs, WINDOW_CHARACTERS)
        with self._open_runner() as runner:
            checkpoint.match(runner.facts())
            made_by = {name: checkpoint.begun[name] for name in _MADE_BY if name in checkpoint.begun}
            name, model, engine = made_by["model_name"], made_by["model"], made_by["engine"]
            logger.info("model %s (%s), engine %s, %s, %s", name, model, engine, runner.devices(), made_by["dtype"])
            with metering(show=self.show_progress) as meter:
                ready = time.perf_counter()
                written = self._score(checkpoint, runner, windows, done, meter)
                scored = time.perf_counter()
        grown = self._check_unchanged(source, identity)
        mixed = self._report_mixed_queries(windows)
        merging = time.perf_counter()
        counts = self._write(checkpoint, made_by, grouped=windows.grouped)
        ended = time.perf_counter()
        summary = Summary(
            **_named(made_by),
            pairs=counts.pairs,
            scored=counts.scored,
            errors=counts.errors,
            truncated=counts.truncated,
            queries=counts.queries,
            resumed=done.pairs,
            tokens=meter.tokens,
            seconds=ended - started,
            scoring_seconds=scored - ready,
            reading_seconds=windows.seconds,
            tokenization_seconds=meter.tokenization_seconds,
            engine_seconds=meter.engine_seconds,
            writing_seconds=written,
            ordering_seconds=ended - merging,
            mixed_queries=mixed,
            grown_bytes=grown,
            cache_hits=meter.cached,
            cache_misses=0 if self.settings.cache is None else meter.pairs - meter.errors - meter.cached,
        )
        checkpoint.finish(summary.as_dict() | {"output_bytes": self.output.stat().st_size})
        return self._results(summary)

    def _reading(self, fields: Fields) -> dict[str, str]:
        """The fields of the fingerprint that describe how the input is read and the output written."""
        return {
            "window": f"{self.window_pairs} pairs, {WINDOW_CHARACTERS} characters",
            "include_text": str(self.include_text),
            "output": f"{self.format}{'' if self.processing_time else ', without processing_time'}",
            "columns": fields.text,
            "judged_fields": fields.form_text,
            "input_format": self.input_format or "",
            "nested_titles": "embedded" if fields.embeds_titles else "ignored",
        }

    def _check_unchanged(self, source: Source, identity: dict[str, str]) -> int:
        """Check after the last pass that the input has not changed since the first.

        Returns:
            The number of bytes that were appended to it; these are not an error.

        Raises:
            CheckpointError: the input was changed or can no longer be read.
        """
        try:
            now, grown = source.identity(), source.grown_bytes()
        except OSError as error:
            raise CheckpointError(
                f"the input can no longer be read, so no output is written: {error}; restore it and run the same "
                "command again, which scores nothing twice"
            ) from error
        if now != identity:
            changed = [name for name in now if now[name] != identity[name]]
            changes = "\n".join(f"  {name}: {identity[name]} -> {now[name]}" for name in changed)
            raise CheckpointError(
                f"the input was changed while it was scored, so no output is written:\n{changes}\n"
                "Restore its former content and run the same command again, or start over with --restart"
            )
        if grown:
            logger.warning(
                "the input has grown by %d bytes since the job opened it; the output does not cover these", grown
            )
        return grown

    def _report_mixed_queries(self, windows: Windows) -> int:
        """Log a warning about query ids that have more than one text; returns how many there are."""
        count, examples = windows.mixed_queries()
        if count:
            named = "; ".join(f"{each.query_id!r} in lines {each.line} and {each.other_line}" for each in examples)
            logger.warning(
                "%d query ids have more than one text, so that documents of different queries share a ranking: %s",
                count,
                named,
            )
        return count

    def _finished(self, checkpoint: Checkpoint) -> Summary | None:
        """The summary of an earlier run, if that run wrote the output and it still exists; else None."""
        stored = checkpoint.summary()
        if not stored:
            return None
        if not self.output.exists():  # it was removed, and the parts were dropped: begin again
            checkpoint.forget_summary()
            return None
        if self.output.stat().st_size != stored["output_bytes"]:
            raise CheckpointError(
                f"{self.output} was changed after it was written: give another output, or replace it with --overwrite "
                "or --restart"
            )
        checkpoint.drop_parts()
        return summary_from(_named(checkpoint.begun) | stored)

    def _open_runner(self) -> Runner:
        if self.runner == "ray":
            from .runners.ray import RayRunner

            return RayRunner(
                self.settings, self.engine_factory, self.workers, self.ray_address, include_text=self.include_text
            )
        if self.devices is not None:
            devices = cuda_devices("all") if self.devices == ["all"] else self.devices
            return ProcessRunner(self.settings, self.engine_factory, devices, include_text=self.include_text)
        return LocalRunner(self.settings, self.engine_factory, include_text=self.include_text)

    def _score(self, checkpoint: Checkpoint, runner: Runner, windows: Windows, done: Done, meter: Meter) -> float:
        """Run the passes that are not done and commit each; returns the seconds that committing took."""
        self._check_errors(checkpoint, done.errors)
        seconds = 0.0
        with closing(runner.run(_todo(windows, done))) as passes:
            for scored in passes:  # committed before the next one is asked for
                started = time.perf_counter()
                checkpoint.append(scored)
                seconds += time.perf_counter() - started
                meter.add(scored)
                if self.max_errors is not None and done.errors + meter.errors > self.max_errors:
                    break
        started = time.perf_counter()
        checkpoint.sync()
        self._check_errors(checkpoint, done.errors + meter.errors)
        return seconds + time.perf_counter() - started

    def _check_errors(self, checkpoint: Checkpoint, errors: int) -> None:
        if self.max_errors is None or errors <= self.max_errors:
            return
        temporary = checkpoint.folder / "errors"
        with storage(self.errors_path):
            with temporary.open("w", encoding="utf-8") as file:
                report_errors(checkpoint.committed(), file)
            temporary.replace(self.errors_path)
        raise TooManyErrorsError(
            f"{errors} pairs could not be scored, and max_errors={self.max_errors}: see {self.errors_path}; what was "
            "scored is kept: raise --max-errors to continue, or correct the input and use --restart"
        )

    def _write(self, checkpoint: Checkpoint, made_by: dict[str, str], *, grouped: bool) -> Counts:
        errors_path = checkpoint.folder / "errors"
        with storage(self.output):
            contents = Contents(
                self.processing_time, self.include_text, self.settings.pieces is not None, self.calibration
            )
            writer = open_writer(self.format, self.output, checkpoint.folder, made_by, contents)
            with writer, errors_path.open("w", encoding="utf-8") as errors:
                counts = merge(checkpoint.windows(), writer, errors, checkpoint.folder, grouped=grouped)
                sync(errors)
                errors_path.replace(self.errors_path)
                if self.max_errors is not None and counts.errors > self.max_errors:
                    raise TooManyErrorsError(
                        f"{counts.errors} pairs cannot be written to the output, and max_errors={self.max_errors}: see "
                        f"{self.errors_path}; raise --max-errors to write it"
                    )
                if not counts.errors:
                    self.errors_path.unlink()
                writer.publish()
        return counts

    def _results(self, summary: Summary) -> RerankResults:
        return RerankResults(self.output, self.format, self.errors_path, summary, self.calibration)


def _todo(windows: Windows, done: Done) -> Iterator[tuple[Window, Collection[int]]]:
    """Yield the unfinished windows. Finished windows are read, too, to count positions and to check their content."""
    with reading():
        for window in windows:
            done.check(window)
            numbers, complete = done.done(window.number)
            if not complete:
                yield window, numbers


@contextmanager
def reading() -> Iterator[None]:
    """Turn an `OSError` from reading the input into a `StorageError`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the input cannot be read: {error}; what was committed is intact: run the same command again to continue"
        ) from error


def _named(made_by: Mapping[str, str]) -> dict[str, str]:
    """The fields of a `Summary` that name model and engine; jobs of earlier versions did not store the model's name."""
    engine, device, dtype = (made_by.get(name, "") for name in ("engine", "device", "dtype"))
    name = made_by.get("model_name", "(not recorded)")
    return {"model": name, "model_hash": made_by["model"], "engine": engine, "device": device, "dtype": dtype}


@contextmanager
def _fewer_collections() -> Iterator[None]:
    """Make Python search for reference cycles less often: that takes a quarter of the time per pair, and finds none."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
