"""Processor time of a server on the same host, of its processes and of their busiest threads.

A process that takes one thread's whole time is bound by the interpreter (or by the event loop) however many cores are
free; the tokenizers library spreads its work over threads of its own.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import psutil


class HostTime:
    """Reads a process and all of its descendants twice, and gives the difference.

    Args:
        process: number of the process that was started.
    """

    def __init__(self, process: int) -> None:
        self._root = psutil.Process(process)
        self._began = time.monotonic()
        self._before = self._read()

    def figures(self, seconds: float | None = None) -> dict[str, Any]:
        """Since the start, the process itself first, then the others by their time.

        Args:
            seconds: of the clock in which there was work; None for all since the start.

        Returns:
            "seconds" of the clock, and "processes": for each its number, its last words of the command line, the
            seconds of processor time, and the share of the clock's time that its busiest thread computed. A process
            that has ended is left out, and one that was started since counts from its start.
        """
        seconds = seconds or time.monotonic() - self._began
        rows = []
        for number, (name, total, threads) in self._read().items():
            _, total_before, threads_before = self._before.get(number, (name, 0.0, {}))
            busiest = max((spent - threads_before.get(thread, 0.0) for thread, spent in threads.items()), default=0.0)
            rows.append(
                {
                    "process": number,
                    "name": name,
                    "cpu_seconds": round(total - total_before, 2),
                    "busiest_thread": round(busiest / seconds, 3),
                }
            )
        rows[1:] = sorted(rows[1:], key=lambda row: -float(str(row["cpu_seconds"])))
        return {"seconds": round(seconds, 2), "processes": rows}

    def _read(self) -> dict[int, tuple[str, float, dict[int, float]]]:
        """Number of a process -> (name, seconds with its threads that have ended, number of a thread -> seconds)."""
        found = {}
        for process in (self._root, *self._root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                name = " ".join(process.cmdline()[-2:])[-60:]
                times = process.cpu_times()
                threads = {each.id: each.user_time + each.system_time for each in process.threads()}
                found[process.pid] = (name, times.user + times.system, threads)
        return found
