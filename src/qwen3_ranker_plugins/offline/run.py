"""One run of a job: input -> windows -> passes -> checkpoint -> ordered output."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.pairs import Fields
from ..data.source import Source
from ..data.sources import STANDARD_INPUT, open_source
from .checkpoint import Checkpoint, Done
from .errors import CheckpointError, StorageError, TooManyErrorsError
from .fingerprint import settings_fingerprint
from .merge import Counts, merge, report_errors, sync
from .output import check_against_inputs
from .progress import Meter, metering
from .results import RerankResults, Summary, summary_from
from .runners.base import Runner
from .runners.local import LocalRunner
from .runners.processes import ProcessRunner, cuda_devices
from .spool import spool_standard_input
from .storage import storage
from .windows import Window, Windows
from .writers import Contents, open_writer

if TYPE_CHECKING:
    from .job import RerankJob

logger = logging.getLogger(__name__)

#: Maximum number of characters in the texts of a window.
WINDOW_CHARACTERS = 4 * 2**20

#: Fields of the fingerprint that the output's metadata contain: how its scores were made.
_MADE_BY = (
    "model_name", "model", "engine", "device", "dtype", "template", "instruction", "max_length", "engine_options",
    "adapter", "scoring", "calibration", "long_documents", "version",
)  # fmt: skip


class JobRun:
    """One run of a job, which may continue an earlier one.

    Args:
        job: what is asked for.
        checkpoint: what earlier runs have done; open.
    """

    def __init__(self, job: RerankJob, checkpoint: Checkpoint) -> None:
        self.job = job
        self.checkpoint = checkpoint

    def results(self) -> RerankResults:
        """Score the pairs that no earlier run has scored, then write the output.

        Raises: as `RerankJob.run`.
        """
        goes_on = self._goes_on()
        begun = self.checkpoint.begun if goes_on else {}
        # The input of a job that an earlier version began is read to its end as that version read it.
        fields = Fields(self.job.columns, begun.get("nested_titles") != "ignored", self.job.document_format)
        source = self._open_source(self.checkpoint.folder, fields)
        settings = settings_fingerprint(self.job.settings, self.job.calibration)
        if not goes_on:
            self._check_may_replace()
            self.checkpoint.restart()
        with _fewer_collections():
            return self._run(source, settings | self._reading(fields))

    def _goes_on(self) -> bool:
        """Whether this run continues an earlier one instead of discarding it."""
        if not self.checkpoint.begun or self.checkpoint.is_bare:
            return False
        return not (self.job.restart or (self.job.overwrite and self.checkpoint.summary()))

    def _check_may_replace(self) -> None:
        """Refuse to replace a file that no job has made, unless `restart` or `overwrite` is set."""
        if self.checkpoint.begun or self.job.restart or self.job.overwrite:
            return
        for path in (self.job.output, self.job.errors_path):
            if path.exists():
                raise CheckpointError(
                    f"{path} exists and was not made by this job: give another output, or replace it with --overwrite"
                )

    def _open_source(self, folder: Path, fields: Fields) -> Source:
        given = spool_standard_input(folder) if self.job.source == STANDARD_INPUT else self.job.source
        source = open_source(
            given,
            run=self.job.run_file,
            index=folder / "texts.sqlite",
            fields=fields,
            input_format=self.job.input_format,
        )
        if given is self.job.source:
            check_against_inputs(self.job.output, given if isinstance(given, str) else "", source.paths())
        return source

    def _run(self, source: Source, settings: dict[str, str]) -> RerankResults:
        started = time.perf_counter()
        identity = source.identity()
        if not self.checkpoint.summary():
            with reading():
                source.check_beginning()
        self.checkpoint.match(settings | identity, source.former_identity())
        if summary := self._finished():
            return self._results(summary)
        done = self.checkpoint.resume()
        windows = Windows(source, self.job.window_pairs, WINDOW_CHARACTERS)
        with self._open_runner() as runner:
            self.checkpoint.match(runner.facts())
            made_by = {name: self.checkpoint.begun[name] for name in _MADE_BY if name in self.checkpoint.begun}
            name, model, engine = made_by["model_name"], made_by["model"], made_by["engine"]
            logger.info("model %s (%s), engine %s, %s, %s", name, model, engine, runner.devices(), made_by["dtype"])
            with metering(show=self.job.show_progress) as meter:
                ready = time.perf_counter()
                written = self._score(runner, windows, done, meter)
                scored = time.perf_counter()
        grown = _check_unchanged(source, identity)
        mixed = _report_mixed_queries(windows)
        merging = time.perf_counter()
        counts = self._write(made_by, grouped=windows.grouped)
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
            cache_misses=0 if self.job.settings.cache is None else meter.pairs - meter.errors - meter.cached,
        )
        self.checkpoint.finish(summary.as_dict() | {"output_bytes": self.job.output.stat().st_size})
        return self._results(summary)

    def _reading(self, fields: Fields) -> dict[str, str]:
        """The fields of the fingerprint that describe how the input is read and the output written."""
        return {
            "window": f"{self.job.window_pairs} pairs, {WINDOW_CHARACTERS} characters",
            "include_text": str(self.job.include_text),
            "output": f"{self.job.format}{'' if self.job.processing_time else ', without processing_time'}",
            "columns": fields.text,
            "judged_fields": fields.form_text,
            "input_format": self.job.input_format or "",
            "nested_titles": "embedded" if fields.embeds_titles else "ignored",
        }

    def _finished(self) -> Summary | None:
        """The summary of an earlier run, if that run wrote the output and it still exists; else None."""
        stored = self.checkpoint.summary()
        if not stored:
            return None
        if not self.job.output.exists():  # it was removed, and the parts were dropped: begin again
            self.checkpoint.forget_summary()
            return None
        if self.job.output.stat().st_size != stored["output_bytes"]:
            raise CheckpointError(
                f"{self.job.output} was changed after it was written: give another output, or replace it with "
                "--overwrite or --restart"
            )
        self.checkpoint.drop_parts()
        return summary_from(_named(self.checkpoint.begun) | stored)

    def _open_runner(self) -> Runner:
        if self.job.runner == "ray":
            from .runners.ray import RayRunner

            return RayRunner(
                self.job.settings,
                self.job.engine_factory,
                self.job.workers,
                self.job.ray_address,
                include_text=self.job.include_text,
            )
        if self.job.devices is not None:
            devices = cuda_devices("all") if self.job.devices == ["all"] else self.job.devices
            return ProcessRunner(
                self.job.settings, self.job.engine_factory, devices, include_text=self.job.include_text
            )
        return LocalRunner(self.job.settings, self.job.engine_factory, include_text=self.job.include_text)

    def _score(self, runner: Runner, windows: Windows, done: Done, meter: Meter) -> float:
        """Run the passes that are not done and commit each; returns the seconds that committing took."""
        self._check_errors(done.errors)
        seconds = 0.0
        with closing(runner.run(_todo(windows, done))) as passes:
            for scored in passes:  # committed before the next one is asked for
                started = time.perf_counter()
                self.checkpoint.append(scored)
                seconds += time.perf_counter() - started
                meter.add(scored)
                if self.job.max_errors is not None and done.errors + meter.errors > self.job.max_errors:
                    break
        started = time.perf_counter()
        self.checkpoint.sync()
        self._check_errors(done.errors + meter.errors)
        return seconds + time.perf_counter() - started

    def _check_errors(self, errors: int) -> None:
        if self.job.max_errors is None or errors <= self.job.max_errors:
            return
        temporary = self.checkpoint.folder / "errors"
        with storage(self.job.errors_path):
            with temporary.open("w", encoding="utf-8") as file:
                report_errors(self.checkpoint.committed(), file)
            temporary.replace(self.job.errors_path)
        raise TooManyErrorsError(
            f"{errors} pairs could not be scored, and max_errors={self.job.max_errors}: see {self.job.errors_path}; "
            "what was scored is kept: raise --max-errors to continue, or correct the input and use --restart"
        )

    def _write(self, made_by: dict[str, str], *, grouped: bool) -> Counts:
        errors_path = self.checkpoint.folder / "errors"
        with storage(self.job.output):
            contents = Contents(
                self.job.processing_time,
                self.job.include_text,
                self.job.settings.pieces is not None,
                self.job.calibration,
            )
            writer = open_writer(self.job.format, self.job.output, self.checkpoint.folder, made_by, contents)
            with writer, errors_path.open("w", encoding="utf-8") as errors:
                counts = merge(self.checkpoint.windows(), writer, errors, self.checkpoint.folder, grouped=grouped)
                sync(errors)
                errors_path.replace(self.job.errors_path)
                if self.job.max_errors is not None and counts.errors > self.job.max_errors:
                    raise TooManyErrorsError(
                        f"{counts.errors} pairs cannot be written to the output, and max_errors={self.job.max_errors}: "
                        f"see {self.job.errors_path}; raise --max-errors to write it"
                    )
                if not counts.errors:
                    self.job.errors_path.unlink()
                writer.publish()
        return counts

    def _results(self, summary: Summary) -> RerankResults:
        return RerankResults(self.job.output, self.job.format, self.job.errors_path, summary, self.job.calibration)


def _todo(windows: Windows, done: Done) -> Iterator[tuple[Window, Collection[int]]]:
    """Yield the unfinished windows. Finished windows are read, too, to count positions and to check their content."""
    with reading():
        for window in windows:
            done.check(window)
            numbers, complete = done.done(window.number)
            if not complete:
                yield window, numbers


def _check_unchanged(source: Source, identity: dict[str, str]) -> int:
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


def _report_mixed_queries(windows: Windows) -> int:
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
    """Make Python search for reference cycles less often: it takes a quarter of the time per pair and finds none."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
