"""Kill a job at random moments of its life, again and again, and count what each kill cost."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .conftest import JobProcess, committed


@dataclass(frozen=True)
class Kill:
    """What a kill found.

    Attributes:
        after_seconds: since the job had its lock, or, every other time, since its first pass began.
        begun: passes that the engine had begun in this run.
        committed: passes that this run had committed.
        lost_pairs: of the passes that were begun and not committed.
        moment: "before the first pass", "scoring", "ordering" (all passes are committed), or "finished" (the output
            is there).
    """

    after_seconds: float
    begun: int
    committed: int
    lost_pairs: int
    moment: str

    @property
    def lost_passes(self) -> int:
        """Begun, and to be done again."""
        return self.begun - self.committed


def kill_again_and_again(
    source: Path, folder: Path, kills: int, seed: int, options: dict[str, object] | None = None
) -> tuple[list[Kill], int]:
    """Kill jobs over one input `kills` times, each run going on where the last one was killed.

    Whenever a run gets to its end, its output is compared with that of a job that nothing happened to, and a new job
    begins.

    Args:
        source: JSONL; its documents differ.
        options: of the job.

    Returns:
        The kills, and how many finished outputs were compared.

    Raises:
        AssertionError: an output differs, or a run ended otherwise than by the kill or well.
    """
    expected_path = folder / "expected.jsonl"
    log = folder / "passes.log"
    job = JobProcess(source, expected_path, "LoggingEngine", options=options, PASSES_LOG=str(log))
    _wait_for_the_lock(expected_path, job)
    started = time.monotonic()
    _wait_for_the_first_pass(log, job)
    first_pass = time.monotonic()
    code, messages = job.wait()
    spans = (time.monotonic() - first_pass, time.monotonic() - started)
    assert code == 0, messages
    all_passes = len(log.read_text().split())
    expected = _outputs(expected_path)

    choose = random.Random(seed)
    found: list[Kill] = []
    compared = 0
    output = folder / "out.jsonl"
    while len(found) < kills:
        log.unlink(missing_ok=True)
        before, _ = committed(output)
        job = JobProcess(source, output, "LoggingEngine", options=options, PASSES_LOG=str(log))
        _wait_for_the_lock(output, job)
        after = choose.uniform(0, spans[len(found) % 2])
        if len(found) % 2 == 0:  # starting takes longer than the rest: half of the kills wait for it
            _wait_for_the_first_pass(log, job)
        try:
            job.process.wait(after)
        except subprocess.TimeoutExpired:
            job.process.kill()
        code, messages = job.wait()
        assert code in (0, -signal.SIGKILL), messages
        if code == -signal.SIGKILL:
            found.append(_account(output, log, before, all_passes, after))
        else:
            assert _outputs(output) == expected
            compared += 1
            _remove(output)
    code, messages = JobProcess(source, output, "LoggingEngine", options=options, PASSES_LOG=str(log)).wait()
    assert code == 0, messages
    assert _outputs(output) == expected
    return found, compared + 1


def _account(output: Path, log: Path, before: int, all_passes: int, after: float) -> Kill:
    begun = [int(documents) for documents in log.read_text().split()] if log.exists() else []
    if (output.with_name(f"{output.name}.job") / "summary.json").exists():
        return Kill(after, len(begun), len(begun), 0, "finished")
    total, _ = committed(output)
    new = total - before
    moment = "ordering" if total == all_passes else "scoring" if begun else "before the first pass"
    return Kill(after, len(begun), new, sum(begun[new:]), moment)


def _outputs(output: Path) -> tuple[bytes, bytes]:
    errors = output.with_name(f"{output.name}.errors.jsonl")
    return output.read_bytes(), errors.read_bytes() if errors.exists() else b""


def _remove(output: Path) -> None:
    output.unlink()
    output.with_name(f"{output.name}.errors.jsonl").unlink(missing_ok=True)
    shutil.rmtree(output.with_name(f"{output.name}.job"))


def _wait_for_the_first_pass(log: Path, job: JobProcess) -> None:
    """Or for the end, if nothing is left to score."""
    deadline = time.monotonic() + 60
    while not log.exists() and job.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def _wait_for_the_lock(output: Path, job: JobProcess) -> None:
    holder = output.with_name(f"{output.name}.job") / "holder"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and job.process.poll() is None:
        if holder.exists() and holder.read_text() == f"{job.process.pid}\n":
            return
        time.sleep(0.002)
