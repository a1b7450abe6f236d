"""An engine whose passes take a known time, for `host_path.py`, which measures everything around them on any host.

A pass is laid out and written into buffers as the packed engine does it. Then the engine sleeps for as long as the pass
would take on a device that computes one pass after another. Margins follow from the documents' lengths and first ids.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen3_ranker_plugins.checks import check_json, check_text
from qwen3_ranker_plugins.config import EngineConfig, RerankerSettings
from qwen3_ranker_plugins.engines import EngineEntry, ResolvedSettings
from qwen3_ranker_plugins.engines.attention.layout import pack
from qwen3_ranker_plugins.engines.base import Engine, EngineCapabilities, EngineDescription, Margins
from qwen3_ranker_plugins.engines.options import EngineOptions, check_seconds, checked
from qwen3_ranker_plugins.engines.packed.buffers import PassBuffers, size_class
from qwen3_ranker_plugins.prompt import EncodedRequest, PromptEncoder, load_tokenizer

PACED = EngineEntry(module="benchmarks.paced_engine", requires=(), install="")
_PER_OCTAVE = 64


class Trace:
    """Appends moments to a file that several processes share: clock, process, step."""

    def __init__(self, file: str) -> None:
        self._log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def mark(self, step: str, moment: float | None = None) -> None:
        """Record a step, now or at a moment of `time.perf_counter`, which is one clock for all processes on Linux."""
        moment = time.perf_counter() if moment is None else moment
        os.write(self._log, f"{moment:.6f} {os.getpid()} {step}\n".encode())


@dataclass(frozen=True)
class PacedOptions(EngineOptions):
    """The times of a pass, and of tokenization.

    Attributes:
        pass_seconds: for each pass, whatever it holds.
        token_seconds: for each token of a pass.
        encode_seconds: for each token that is encoded. The ids of known texts are remembered and the tokenizer does not
            run, so a host with few cores can stand for one with many. None runs the tokenizer.
        trace: file to which the beginning and the end of each pass are appended; None for none.
    """

    pass_seconds: float = field(default=0.001, metadata=checked(check_seconds))
    token_seconds: float = field(default=1.8e-6, metadata=checked(check_seconds))
    encode_seconds: float | None = field(default=None, metadata=checked(check_seconds))
    trace: str | None = field(default=None, metadata=checked(check_text))


class PacedEngine(Engine):
    """Lays passes out and sleeps. Two may be in flight, as with the packed engine on a GPU."""

    name = "paced"

    def __init__(self, config: EngineConfig) -> None:
        self._options = PacedOptions.from_config(config)
        self.capabilities = EngineCapabilities(
            token_budget=config.token_budget or 32768, passes_in_flight=2, encodes_meanwhile=True
        )
        self._buffers: dict[int, PassBuffers] = {}
        self._queueing = threading.Lock()
        self._free_at = 0.0
        self._trace = None if self._options.trace is None else Trace(self._options.trace)

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        if self._trace is not None:
            self._trace.mark("layout begins")
        packed = pack(requests)
        with self._queueing:
            length = size_class(packed.num_tokens, packed.num_documents, _PER_OCTAVE, len(packed.blocks))
            if length not in self._buffers:
                self._buffers[length] = PassBuffers(length, torch.device("cpu"), 32)
            self._buffers[length].write(packed)
            takes = self._options.pass_seconds + self._options.token_seconds * packed.num_tokens
            begin = max(time.perf_counter(), self._free_at)
            self._free_at = end = begin + takes
        if self._trace is not None:
            self._trace.mark(f"{packed.num_tokens} tokens", begin)
        time.sleep(max(0.0, end - time.perf_counter()))
        if self._trace is not None:
            self._trace.mark("device ends")
        return [
            Margins(np.asarray([len(ids) % 7 - ids[0] % 5 for ids in each.segments], np.float32), each.num_tokens)
            for each in requests
        ]

    def close(self) -> None:
        self._buffers.clear()

    def describe(self) -> EngineDescription:
        return EngineDescription(
            engine=self.name, device="cpu", dtype="float32", token_budget=self.capabilities.token_budget
        )


class _PacedEncoder:
    """Remembers the ids of documents, and sleeps instead of encoding them."""

    def __init__(self, encoder: PromptEncoder, seconds: float) -> None:
        self._encoder = encoder
        self._seconds = seconds
        self._known: dict[str, list[int]] = {}

    def encode(self, query: str, documents: Sequence[str], instruction: str | None, *_: Any) -> EncodedRequest:
        new = [document for document in documents if document not in self._known]
        encoded = self._encoder.encode(query, new, instruction)
        self._known.update(zip(new, encoded.segments, strict=True))
        segments = [self._known[document] for document in documents]
        if not new:
            time.sleep(self._seconds * sum(map(len, segments)))
        return EncodedRequest(encoded.prefix, segments, [0] * len(segments))


def resolve(engine: str, settings: RerankerSettings) -> ResolvedSettings:
    """See `EngineModule`."""
    options = PacedOptions.parse(engine, settings.engine_options)
    folder = Path(settings.model)
    encoder: Any = PromptEncoder(load_tokenizer(folder), settings.template, settings.max_length)
    if options.encode_seconds is not None:
        encoder = _PacedEncoder(encoder, options.encode_seconds)
    config = EngineConfig(
        engine=engine,
        folder=folder,
        device=settings.device,
        dtype="float32",
        token_budget=settings.token_budget,
        options=check_json("engine_options", options.as_dict),
    )
    return ResolvedSettings(folder=folder, encoder=encoder, config=config)


create = PacedEngine
