"""Engines of known arithmetic, for what does not depend on a model. Importable by workers and scripts."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qwen3_ranker_plugins.config import EngineConfig
from qwen3_ranker_plugins.engines.base import Engine, EngineCapabilities, EngineDescription, Margins
from qwen3_ranker_plugins.errors import EngineError
from qwen3_ranker_plugins.prompt import EncodedRequest, load_tokenizer


class NullEngine(Engine):
    """No forward pass. A margin follows from a document's length and its first and middle id, so texts differ."""

    name = "null"

    def __init__(self, config: EngineConfig) -> None:
        self.capabilities = EngineCapabilities(token_budget=config.token_budget or 4096)
        self.passes = 0

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        self.passes += 1
        return [
            Margins(
                np.array(
                    [(7 * len(ids) + 13 * ids[0] + 31 * ids[len(ids) // 3]) % 1009 for ids in request.segments],
                    dtype=np.float32,
                )
                / np.float32(100)
                - np.float32(5),
                computed_tokens=len(request.prefix) + sum(map(len, request.segments)),
            )
            for request in requests
        ]

    def close(self) -> None:
        pass

    def describe(self) -> EngineDescription:
        return EngineDescription(engine=self.name, device="cpu", dtype="float32")


class FaultyEngine(NullEngine):
    """Fails in the ways that a document's text asks for."""

    name = "null"

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        tokenizer = load_tokenizer(config.folder)
        words = [" poison", " nan", " refuse", " kaput"]
        self._poison, self._nan, self._refuse, self._kaput = (ids[-1] for ids in tokenizer.encode_batch(words))
        self._broken = False

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        ids = [segment for request in requests for segment in request.segments]
        self._broken |= any(self._kaput in each for each in ids)
        if self._broken:
            raise EngineError("the device is gone")
        if any(self._poison in each for each in ids):
            raise ZeroDivisionError("poisoned")
        results = []
        for request, margins in zip(requests, super().score(requests), strict=True):
            values = margins.values.copy()
            for place, segment in enumerate(request.segments):
                if self._nan in segment:
                    values[place] = np.nan
            failures = {i: "refused" for i, each in enumerate(request.segments) if self._refuse in each}
            results.append(Margins(values, margins.computed_tokens, failures))
        return results


class MortalEngine(NullEngine):
    """Takes a moment for each pass, and has its process killed in the pass that KILL_AT names."""

    seconds = 0.002

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        time.sleep(self.seconds)
        result = super().score(requests)
        if str(self.passes) == os.environ.get("KILL_AT"):
            os.kill(os.getpid(), 9)
        return result


class SlowerEngine(MortalEngine):
    """Slow enough that some of its scores are in a cache's file when its process is killed."""

    seconds = 0.03


class SlowMortalEngine(MortalEngine):
    """Slower than the disk, as real engines are."""

    seconds = 0.2


class LoggingEngine(NullEngine):
    """Notes in the file PASSES_LOG how many documents the pass holds that it begins."""

    seconds = 0.001

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        log = os.open(os.environ["PASSES_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, b"%d\n" % sum(len(request.segments) for request in requests))
        os.close(log)
        time.sleep(self.seconds)
        return super().score(requests)


class OneArmedEngine(NullEngine):
    """Sends its process a signal in its third pass, once: unless the file "marker" is there, which it then makes."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._marker = Path(str(config.engine_options["marker"]))
        self._signal = int(str(config.engine_options.get("signal", 9)))

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        result = super().score(requests)
        if self.passes == 3 and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), self._signal)
        return result


class CondemnedEngine(NullEngine):
    """Has its process killed in its first pass."""

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        os.kill(os.getpid(), 9)
        return super().score(requests)
