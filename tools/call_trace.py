"""Print the functions of this repository that a call of the Haystack adapter enters on its way to the engine.

    python tools/call_trace.py [number of documents]

Comprehensions and lambdas are not counted, because they are part of the function that contains them.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import FrameType

from haystack import Document

from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker

ROOTS = [Path(sys.modules[name].__file__ or "").parents[depth] for name, depth in
         (("qwen3_ranker_plugins", 1), ("haystack_integrations.components.rankers.qwen3", 4))]  # fmt: skip


class _Trace:
    """While `armed`, notes the functions that the thread which makes it enters, and every thread that starts later."""

    def __init__(self) -> None:
        self.armed = False
        self.calls: list[str] = []
        threading.setprofile(self._watch)
        sys.setprofile(self._watch)

    def _watch(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event != "call" or not self.armed or code.co_name.startswith("<"):
            return
        root = next((root for root in ROOTS if code.co_filename.startswith(f"{root}/")), None)
        if root is not None:
            self.calls.append(f"{code.co_filename.removeprefix(f'{root}/')}:{code.co_qualname}")
            self.armed = code.co_qualname != "PackedEngine.score"


def calls_of_a_run(num_documents: int) -> list[str]:
    """The functions of this repository that `Qwen3Ranker.run` enters before the engine scores, in order."""
    documents = [Document(content=f"document number {n}") for n in range(num_documents)]
    trace = _Trace()
    try:
        # Settings that nobody else has, so that the engine's thread starts now.
        ranker = Qwen3Ranker(model="bundled:tiny", token_budget=4095)
        ranker.run(query="warm up", documents=documents)
        time.sleep(0.5)  # until the engine's thread waits for the next pass, which belongs to no call
        trace.armed = True
        ranker.run(query="which number?", documents=documents)
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
        sys.setprofile(None)
    ranker.close()
    return trace.calls


if __name__ == "__main__":
    calls = calls_of_a_run(int(sys.argv[1]) if sys.argv[1:] else 5)
    print("\n".join(calls))
    print(f"{len(set(calls))} functions, {len(calls)} calls")
