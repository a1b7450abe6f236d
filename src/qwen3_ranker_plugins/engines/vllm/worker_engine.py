"""An engine whose vLLM runs in a worker process: `vllm_score` and `vllm_generate`, with one document in each prompt."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...config import EngineConfig
from ...errors import EngineError
from ...prompt import EncodedRequest, ModelTokenizer, length_order, load_tokenizer
from ..base import Engine, EngineCapabilities, EngineDescription, Margins
from .messages import LoadModel, PromptMargins, ScorePrompts
from .options import VllmOptions, engine_arguments, read_model_config
from .process import WorkerEndedError, WorkerProcess
from .remedies import first_line, remedy, root_cause


@dataclass(frozen=True)
class RequestPrompts:
    """The prompts in which vLLM gets a request.

    Attributes:
        prefix: token ids that all of them begin with.
        continuations: the rest of each prompt.
        documents: for each prompt, the indices of its documents, in the order of its margins.
    """

    prefix: list[int]
    continuations: list[list[int]]
    documents: list[list[int]]


class VllmEngine(Engine):
    """vLLM in a worker process.

    If the process ends or hangs, the call that waits raises and `running` is False. The next call starts another one.

    Args:
        config: as `resolve` returns it.

    Attributes:
        restarts: how often the process was started again.

    Raises:
        EngineError: vLLM could not be started; the message ends in the remedy.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.name = config.engine
        self._config = config
        self._options = VllmOptions.stored(config.engine_options)
        budget = self._options.default_token_budget if config.token_budget is None else config.token_budget
        self.capabilities = EngineCapabilities(token_budget=budget)
        self._worker: WorkerProcess | None = self._start()
        self._facts = self._worker.facts
        self.restarts = 0

    @property
    def worker_pid(self) -> int | None:
        """The worker process; None after it has ended, until the next call."""
        return None if self._worker is None else self._worker.pid

    @property
    def running(self) -> bool:
        """Whether the worker process is there and was not found to hang."""
        worker = self._worker
        return worker is not None and worker.running

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        """Margins by vLLM. If vLLM refuses a prompt or answers it with an error, the documents in it are failures.

        Raises:
            EngineError: the process ended or hung during this call, or could not be started again.
        """
        prompts = [self._prompts(request) for request in requests]
        counts = [len(documents) for each in prompts for documents in each.documents]
        asked = [(each.prefix, each.continuations) for each in prompts]
        answer = self._ask(ScorePrompts(asked, counts, self._options.infer_batch_size))
        results: list[Margins] = []
        first_prompt = first_margin = 0
        for request, each in zip(requests, prompts, strict=True):
            end = first_prompt + len(each.continuations)
            order = [document for documents in each.documents for document in documents]
            values = np.full(len(request.segments), np.nan, dtype=np.float32)
            values[order] = answer.margins[first_margin : first_margin + len(order)]
            computed = len(each.prefix) * len(each.continuations) + sum(map(len, each.continuations))
            computed -= int(answer.cached_tokens[first_prompt:end].sum())
            failures: dict[int, str] = {}
            for prompt in answer.failures.keys() & set(range(first_prompt, end)):
                index = prompt - first_prompt
                failures.update(dict.fromkeys(each.documents[index], answer.failures[prompt]))
                computed -= len(each.prefix) + len(each.continuations[index]) - int(answer.cached_tokens[prompt])
            results.append(Margins(values, computed, failures))
            first_prompt, first_margin = end, first_margin + len(order)
        return results

    def close(self) -> None:
        """End vLLM and every process that it has started; their memory is free afterwards."""
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

    def _ask(self, prompts: ScorePrompts) -> PromptMargins:
        if self._worker is None:
            self._worker = self._start()
            self.restarts += 1
        worker = self._worker
        try:
            return worker.score(prompts)
        except WorkerEndedError as error:
            self._worker = None
            worker.kill()
            raise EngineError(
                f"engine {self.name!r}: its worker process ended: {_reason(error)}; the next call starts another one"
            ) from error
        except BaseException:  # the answer may still come, and must not be taken for that to the next call
            self._worker = None
            worker.kill()
            raise

    def _prompts(self, request: EncodedRequest) -> RequestPrompts:
        segments = request.segments
        order: Sequence[int] = range(len(segments))
        if self._options.sort_by_doc_length:
            order = length_order(request)
        return RequestPrompts(request.prefix, [segments[index] for index in order], [[index] for index in order])

    def _adapt(self, arguments: dict[str, Any], environment: dict[str, str], *, positions: int) -> None:
        """Change what all engines have in common to what this engine needs.

        Args:
            arguments: of vLLM's EngineArgs.
            environment: variables for the worker process.
            positions: number of positions of the model.
        """
        # vLLM reserves a position for a generated token. vLLM 0.26 does so even if it generates none: a prompt that
        # fills the window and is cut into chunks would never finish. Nothing is computed at that position, so the
        # window may be one longer than the model's.
        arguments["max_model_len"] += 1
        if arguments["max_model_len"] == positions + 1:
            environment["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"

    def _load_message(self, load: LoadModel, _tokenizer: ModelTokenizer) -> LoadModel:
        """The message with what only this engine's scoring task needs."""
        return replace(load, label_logprobs=self._options.label_logprobs)

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
        load = self._load_message(LoadModel(config.engine, arguments, device, [*labels, labels[0]], *labels), tokenizer)
        try:
            return WorkerProcess(
                load,
                environment,
                start_timeout=options.start_timeout,
                heartbeat_timeout=options.heartbeat_timeout,
                step_timeout=float("inf") if options.step_timeout is None else options.step_timeout,
                show_log=options.show_log,
            )
        except WorkerEndedError as error:
            raise EngineError(f"engine {self.name!r} could not be started: {_reason(error)}") from error


def _environment(config: EngineConfig, options: VllmOptions) -> dict[str, str]:
    """Variables for the worker; the user's take precedence for those that only affect what vLLM prints or reports."""
    environment = {
        # The worker process isolates vLLM already; an engine core in yet another process costs time for messages.
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


def _reason(error: WorkerEndedError) -> str:
    """The first line of the message, the first error in the log, and what to do about it."""
    message = str(error)
    first, cause = first_line(message), root_cause(error.log)
    return f"{first}{f' ({cause})' if cause and cause not in message else ''}: {remedy(message, error.log)}"
