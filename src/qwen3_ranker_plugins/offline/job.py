"""A job: input -> windows -> passes -> checkpoint -> ordered output."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from ..config import DEFAULT_MODEL, RerankerSettings, check_choice, check_positive
from ..data.readers import SeedPair, Source, open_source
from ..engines import create_engine
from ..errors import InvalidInputError
from ..prompt import DEFAULT_MAX_LENGTH
from .checkpoint import Checkpoint, Done, job_folder, storage
from .errors import CheckpointError, TooManyErrorsError
from .fingerprint import settings_fingerprint
from .merge import Counts, merge, report_errors, sync
from .progress import Meter, metering
from .results import RerankResults, Summary, summary_from
from .runners.local import LocalRunner, ProcessRunner, Runner, cuda_devices
from .scoring import EngineFactory
from .windows import Window, Windows
from .writers import format_of, open_writer

RUNNERS = ("local", "ray")

#: Bounds of what is read, encoded and planned at a time.
WINDOW_PAIRS = 4096
WINDOW_CHARACTERS = 4 * 2**20


class RerankJob:
    """Reranks a file of pairs into another one, and can be killed and run again.

    Args:
        source: JSONL (also .gz) or Parquet of pairs, a BEIR folder or "ir_datasets:ID" (both with `run`), or
            (query_id, doc_id, query, document) tuples.
        output: its suffix says the format, unless `format` does. Written when everything is scored.
        run: the TREC run that says which documents belong to which query.
        model, engine, device, dtype, template, instruction, max_length, token_budget, engine_options: as of a
            `Reranker`.
        format: "jsonl", "parquet" or "trec".
        include_text: write the texts too.
        processing_time: write that field, the only one that differs between two runs of the same job.
        max_errors: stop when more pairs than this cannot be scored; None goes on to the end.
        runner: "local" or "ray".
        devices: for the local runner: an engine in a process of its own on each, such as ["cuda:0", "cuda:1"];
            ["all"] for every GPU.
        workers: for Ray: how many engines; None for one on each GPU.
        ray_address: for Ray: the cluster to join.
        restart: forget what an earlier run left.
        show_progress: draw a bar on standard error.
        window_pairs: pairs that are read, and grouped by query, at a time.
        engine_factory: makes the engine; for engines that this package has not got.

    Raises:
        InvalidInputError, MissingDependencyError: an argument is unusable.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[SeedPair],
        output: str | os.PathLike[str],
        *,
        run: str | os.PathLike[str] | None = None,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        engine: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        template: str = "standard",
        instruction: str | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
        token_budget: int | None = None,
        engine_options: Mapping[str, object] | None = None,
        format: str | None = None,  # noqa: A002 - named as the option
        include_text: bool = False,
        processing_time: bool = True,
        max_errors: int | None = None,
        runner: str = "local",
        devices: Sequence[str] | None = None,
        workers: int | None = None,
        ray_address: str | None = None,
        restart: bool = False,
        show_progress: bool = False,
        window_pairs: int = WINDOW_PAIRS,
        engine_factory: EngineFactory = create_engine,
    ) -> None:
        self.source = os.fspath(source) if isinstance(source, os.PathLike) else source
        self.output = Path(output)
        self.run_file = None if run is None else Path(run)
        name = os.fspath(model) if isinstance(model, os.PathLike) else model
        self.settings = RerankerSettings(
            name, engine, device, dtype, template, instruction, max_length, token_budget, engine_options or {}
        )
        if self.settings.engine == "remote":
            raise InvalidInputError("engine", engine, "a job runs the model itself: use an engine of this machine")
        self.format = format_of(self.output, format)
        self.include_text = include_text
        self.processing_time = processing_time
        if max_errors is not None and (
            not isinstance(max_errors, int) or isinstance(max_errors, bool) or max_errors < 0
        ):
            raise InvalidInputError("max_errors", max_errors, "use 0 or a positive integer, or None for no limit")
        self.max_errors = max_errors
        check_choice("runner", runner, RUNNERS)
        self.runner = runner
        if devices is not None and runner != "local":
            raise InvalidInputError("devices", devices, "goes with the local runner; a Ray cluster says what it has")
        self.devices = None if devices is None else list(devices)
        check_positive("workers", workers)
        self.workers = workers
        self.ray_address = ray_address
        self.restart = restart
        self.show_progress = show_progress
        check_positive("window_pairs", window_pairs)
        self.window_pairs = window_pairs
        self.engine_factory = engine_factory

    @property
    def errors_path(self) -> Path:
        """Where the pairs without a score go, with the reason."""
        return self.output.with_name(f"{self.output.name}.errors.jsonl")

    def run(self) -> RerankResults:
        """Score what no earlier run has scored, then write the output.

        A job that is done already returns what it did then.

        Raises:
            JobError: see `offline.errors`; what was scored is kept for the next run.
            RankerError: as `Reranker`.
        """
        source = open_source(self.source, self.run_file, job_folder(self.output))
        checkpoint = Checkpoint(self.output)
        try:
            with _fewer_collections():
                return self._run(source, checkpoint)
        finally:
            checkpoint.close()

    def _run(self, source: Source, checkpoint: Checkpoint) -> RerankResults:
        started = time.perf_counter()
        fingerprint = self._fingerprint() | source.identity()
        if self.restart:
            checkpoint.restart()
        elif self.output.exists() and checkpoint.empty:
            raise CheckpointError(
                f"{self.output} exists, and this job has not made it: give another output, or replace it with --restart"
            )
        checkpoint.match(fingerprint)
        if summary := self._finished(checkpoint):
            return self._results(summary)
        done = checkpoint.resume()
        windows = Windows(source, self.window_pairs, WINDOW_CHARACTERS)
        with self._open_runner() as runner, metering(show=self.show_progress) as meter:
            checkpoint.match(runner.facts())
            ready = time.perf_counter()
            written = self._score(checkpoint, runner, windows, done, meter)
            scored = time.perf_counter()
        merging = time.perf_counter()
        counts = self._write(checkpoint, grouped=windows.grouped)
        ended = time.perf_counter()
        summary = Summary(
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
        )
        checkpoint.finish(summary.as_dict() | {"output_bytes": self.output.stat().st_size})
        return self._results(summary)

    def _fingerprint(self) -> dict[str, str]:
        """What is known before the engine runs; the engine's own facts follow."""
        return settings_fingerprint(self.settings) | {
            "window": f"{self.window_pairs} pairs, {WINDOW_CHARACTERS} characters",
            "include_text": str(self.include_text),
            "output": f"{self.format}{'' if self.processing_time else ', without processing_time'}",
        }

    def _finished(self, checkpoint: Checkpoint) -> Summary | None:
        """The summary of an earlier run that wrote the output which is there."""
        stored = checkpoint.summary()
        if not stored:
            return None
        if not self.output.exists():  # it was removed, and its parts are gone too: begin again
            checkpoint.forget_summary()
            return None
        if self.output.stat().st_size != stored["output_bytes"]:
            raise CheckpointError(
                f"{self.output} was changed after it was written: give another output, or use --restart"
            )
        checkpoint.drop_parts()
        return summary_from(stored)

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
        """Run what is not done and commit it; returns the seconds that committing took."""
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
        with storage(self.errors_path), self.errors_path.open("w", encoding="utf-8") as file:
            report_errors(checkpoint.committed(), file)
        raise TooManyErrorsError(
            f"{errors} pairs could not be scored, and max_errors={self.max_errors}: see {self.errors_path}; what was "
            "scored is kept: raise --max-errors to go on, or mend the input and use --restart"
        )

    def _write(self, checkpoint: Checkpoint, *, grouped: bool) -> Counts:
        errors_path = self.errors_path.with_name(f"{self.errors_path.name}.tmp")
        with storage(self.output):
            writer = open_writer(
                self.format,
                self.output,
                checkpoint.folder / "queries.jsonl",
                processing_time=self.processing_time,
                include_text=self.include_text,
            )
            with writer, errors_path.open("w", encoding="utf-8") as errors:
                counts = merge(checkpoint.windows(), writer, errors, checkpoint.folder, grouped=grouped)
                sync(errors)
                errors_path.replace(self.errors_path)
                if self.max_errors is not None and counts.errors > self.max_errors:
                    raise TooManyErrorsError(
                        f"{counts.errors} pairs have no place in the output, and max_errors={self.max_errors}: see "
                        f"{self.errors_path}; raise --max-errors to write it"
                    )
                if not counts.errors:
                    self.errors_path.unlink()
                writer.publish()
        return counts

    def _results(self, summary: Summary) -> RerankResults:
        return RerankResults(self.output, self.format, self.errors_path, summary)


def _todo(windows: Windows, done: Done) -> Iterator[tuple[Window, Collection[int]]]:
    """The windows that are not finished; the others are read too, since positions and windows follow from them."""
    for window in windows:
        numbers, complete = done.done(window.number)
        if not complete:
            yield window, numbers


@contextmanager
def _fewer_collections() -> Iterator[None]:
    """Python's search for reference cycles costs a quarter of the time per pair, and rows and ids form none."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
