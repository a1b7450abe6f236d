"""The margins of vLLM, for exactly the ids that `PromptEncoder` makes: `vllm_score` and `vllm_generate`.

`vllm_packed` has more than one document in a prompt; its engine is in `vllm_packed/engine.py`, on top of this one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...config import EngineConfig, RerankerSettings, check_json
from ...errors import EngineError
from ...models import modified_ns, resolve_model
from ...prompt import EncodedRequest, ModelTokenizer, PromptEncoder, length_order, load_tokenizer
from .. import ResolvedSettings
from ..base import Engine, EngineCapabilities, EngineDescription, Margins
from ..devices import resolve_device
from .options import VllmOptions, apply_to_prompts, engine_arguments, read_model_config, resolved
from .process import WorkerDiedError, WorkerProcess
from .remedies import first_line, remedy, root_cause
from .worker import Batch, Scored, Start

#: How many scheduler steps' worth of tokens one call of `score` holds by default: enough to keep vLLM busy, few enough
#: that a long list does not hold up a short one for long.
_STEPS_PER_CALL = 4


@dataclass(frozen=True)
class Plan:
    """How a request is put to vLLM.

    Attributes:
        shared: ids in front of each prompt.
        tails: what follows in each.
        documents: for each prompt, the documents that it holds, in the order of its margins.
    """

    shared: list[int]
    tails: list[list[int]]
    documents: list[list[int]]


class VllmEngine(Engine):
    """vLLM in a process of its own.

    If that process dies, the call in flight raises and the next one starts it again, once.

    Args:
        config: as `configure` returns it.

    Raises:
        EngineError: it could not be started; the message ends in the remedy.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.name = config.engine
        self._config = config
        self._options = VllmOptions.stored(config.engine_options)
        self.capabilities = EngineCapabilities(token_budget=_token_budget(config.token_budget, self._options))
        self._worker: WorkerProcess | None = self._start()
        self._facts = self._worker.facts
        self.restarts = 0

    @property
    def worker_pid(self) -> int | None:
        """The worker process; None after it has died, until the next call."""
        return None if self._worker is None else self._worker.pid

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        """Margins by vLLM; a prompt that it refuses, or answers with an error, is a failure of the documents in it.

        Raises:
            EngineError: the process died; the next call starts it again.
        """
        plans = [self._plan(request) for request in requests]
        counts = [len(documents) for plan in plans for documents in plan.documents]
        batch = Batch([(plan.shared, plan.tails) for plan in plans], counts, self._options.infer_batch_size)
        scored = self._ask(batch)
        results: list[Margins] = []
        prompt = margin = 0
        for request, plan in zip(requests, plans, strict=True):
            prompts = range(prompt, prompt + len(plan.tails))
            order = [document for documents in plan.documents for document in documents]
            values = np.full(len(request.segments), np.nan, dtype=np.float32)
            values[order] = scored.margins[margin : margin + len(order)]
            computed = len(plan.shared) * len(plan.tails) + sum(map(len, plan.tails))
            computed -= int(scored.cached[prompts.start : prompts.stop].sum())
            failures: dict[int, str] = {}
            for number in scored.failures.keys() & set(prompts):
                place = number - prompt
                failures.update(dict.fromkeys(plan.documents[place], scored.failures[number]))
                computed -= len(plan.shared) + len(plan.tails[place]) - int(scored.cached[number])
            results.append(Margins(values, computed, failures))
            prompt, margin = prompts.stop, margin + len(order)
        return results

    def close(self) -> None:
        """End vLLM and every process it has started; its memory is free afterwards."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def describe(self) -> EngineDescription:
        """Device, dtype, attention backend, cache, memory after loading, and versions."""
        details = dict(self._facts)
        device, dtype = details.pop("device"), details.pop("dtype")
        versions = {name: details.pop(name) for name in ("vllm", "torch", "transformers")}
        return EngineDescription(
            engine=self.name,
            device=device,
            dtype=dtype,
            token_budget=self.capabilities.token_budget,
            details=details,
            versions=versions,
        )

    def _ask(self, batch: Batch) -> Scored:
        """What vLLM says to a batch.

        Raises:
            EngineError: the process died; the next call starts it again.
        """
        if self._worker is None:
            self._worker = self._start()
            self.restarts += 1
        worker = self._worker
        try:
            return worker.score(batch)
        except WorkerDiedError as error:
            self._worker = None
            worker.kill()
            raise EngineError(
                f"engine {self.name!r}: its process died in this call: {_reason(error)}; the next call starts it again"
            ) from error
        except BaseException:  # its answer may still come, and must not be taken for that to the next batch
            self._worker = None
            worker.kill()
            raise

    def _plan(self, request: EncodedRequest) -> Plan:
        """A prompt for each document."""
        segments = request.segments
        order: Sequence[int] = range(len(segments))
        if self._options.sort_by_doc_length:
            order = length_order(request)
        return Plan(request.prefix, [segments[index] for index in order], [[index] for index in order])

    def _adapt(self, arguments: dict[str, Any], environment: dict[str, str], *, positions: int) -> None:
        """Change what the engine's own way of scoring needs otherwise; `positions` is what the model has."""
        # vLLM wants room for the token that it generates, and vLLM 0.26 also where it generates none: the last token of
        # a prompt that fills the window, and was cut into chunks, would wait for ever. Nothing is computed at that
        # position, so that it may be one more than the model has.
        arguments["max_model_len"] += 1
        if arguments["max_model_len"] == positions + 1:
            environment["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"

    def _start_message(self, start: Start, _tokenizer: ModelTokenizer) -> Start:
        """What the worker has to know besides what all methods need."""
        return replace(start, label_logprobs=self._options.label_logprobs)

    def _start(self) -> WorkerProcess:
        config, options = self._config, self._options
        folder = config.model_folder
        tokenizer = load_tokenizer(folder if options.tokenizer is None else Path(options.tokenizer))
        model = read_model_config(folder)
        device = config.device.partition(":")[0]
        arguments = engine_arguments(folder, options, model, dtype=config.dtype, device=device)
        environment = _environment(config, options)
        self._adapt(arguments, environment, positions=model.get("max_position_embeddings", sys.maxsize))
        labels = (tokenizer.yes_id, tokenizer.no_id)
        start = self._start_message(Start(config.engine, arguments, device, [*labels, labels[0]], *labels), tokenizer)
        try:
            return WorkerProcess(start, environment, timeout=options.start_timeout, show_log=options.show_log)
        except WorkerDiedError as error:
            raise EngineError(f"engine {self.name!r} could not be started: {_reason(error)}") from error


def _environment(config: EngineConfig, options: VllmOptions) -> dict[str, str]:
    """Variables for the worker; those that say only how much it talks give way to the user's."""
    environment = {
        # In our worker process there is nothing to keep apart from the engine core, and its messages cost time.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if options.multiprocessing else "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": os.environ.get("VLLM_NO_USAGE_STATS", "1"),
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "INFO" if options.show_log else "WARNING"),
    }
    kind, _, number = config.device.partition(":")
    if kind == "cuda":
        visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
        first, count = int(number), options.tensor_parallel_size or 1
        chosen = [visible[index] if visible else str(index) for index in range(first, first + count)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    return environment


def _reason(error: WorkerDiedError) -> str:
    """The first line of the message, the first error of the log, and what to do about it."""
    message = str(error)
    first, cause = first_line(message), root_cause(error.log)
    return f"{first}{f' ({cause})' if cause and cause not in message else ''}: {remedy(message, error.log)}"


def _token_budget(token_budget: int | None, options: VllmOptions) -> int:
    return _STEPS_PER_CALL * (options.max_num_batched_tokens or 0) if token_budget is None else token_budget


def resolve(engine: str, settings: RerankerSettings) -> ResolvedSettings:
    """See `EngineModule`; asks torch for devices, and vLLM for nothing.

    Tokenizer, template and longest prompt may be among the engine's options.
    """
    import torch

    options, template, window = apply_to_prompts(engine, settings)
    folder = resolve_model(settings.model)
    tokenizer = folder if options.tokenizer is None else resolve_model(options.tokenizer)
    encoder = PromptEncoder(load_tokenizer(tokenizer), template, window)
    device, dtype = resolve_device(settings.device, settings.dtype)
    # A GPU that was named is the only one; otherwise all that are visible.
    gpus = 0 if device == "cpu" else 1 if ":" in settings.device else torch.cuda.device_count()
    complete = resolved(options, read_model_config(folder), gpus=gpus, window=window, template=template)
    stored = complete.as_dict | {"instruction_format": None}  # the encoder's, which engines do not share by
    if complete.tokenizer is not None:
        stored["tokenizer"] = str(tokenizer)
    config = EngineConfig(
        engine=engine,
        folder=folder,
        device=device,
        dtype=dtype,
        token_budget=_token_budget(settings.token_budget, complete),
        modified_ns=modified_ns(folder),
        options=check_json("engine_options", stored),
    )
    return ResolvedSettings(folder=folder, encoder=encoder, config=config)


def create(config: EngineConfig) -> VllmEngine:
    """See `EngineModule`."""
    if config.engine == "vllm_packed":
        from .packed.engine import VllmPackedEngine

        return VllmPackedEngine(config)
    return VllmEngine(config)
