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
from ...prompt import EncodedRequest, ModelTokenizer, length_order, load_tokenizer
from ..base import EngineCapabilities, EngineDescription, Margins
from ..registry import check_files
from ..workers.engine import WorkerEngine, visible_gpus
from ..workers.process import WorkerEndedError, WorkerProcess
from .messages import LoadModel, PromptMargins, ScorePrompts
from .options import VllmOptions, engine_arguments, read_model_config
from .remedies import first_line, remedy, root_cause

_PROGRAM = "from qwen3_ranker_plugins.engines.vllm.worker import main; main({descriptor})"


@dataclass(frozen=True)
class RequestPrompts:
    """A request as prompts for vLLM.

    Attributes:
        prefix: token ids that all of them begin with.
        continuations: the rest of each prompt.
        documents: for each prompt, the indices of its documents, in the order of its margins.
    """

    prefix: list[int]
    continuations: list[list[int]]
    documents: list[list[int]]


class VllmEngine(WorkerEngine):
    """vLLM in a worker process.

    vLLM has a process of its own to keep its CUDA context, signal handlers, environment variables and threads out of
    the user's process, and to free everything when the engine is closed. If the process ends or hangs, the call that
    waits raises an EngineError and `running` is False. The next call starts another process.

    Args:
        config: as `resolve` returns it.

    Raises:
        EngineError: vLLM could not be started; the message ends in the remedy.
    """

    facts: dict[str, str]

    def __init__(self, config: EngineConfig) -> None:
        super().__init__()
        self.name = config.engine
        self._config = config
        self._options = VllmOptions.from_config(config)
        budget = self._options.default_token_budget if config.token_budget is None else config.token_budget
        self.capabilities = EngineCapabilities(token_budget=budget)
        self.start()

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        """Margins by vLLM. If vLLM refuses a prompt or answers it with an error, the documents in it are failures.

        Raises:
            EngineError: the process ended or hung during this call, or could not be started again.
        """
        prompts = [self._prompts(request) for request in requests]
        counts = [len(documents) for each in prompts for documents in each.documents]
        asked = [(each.prefix, each.continuations) for each in prompts]
        if not self.running:
            self.restart()
        answer = self._call(ScorePrompts(asked, counts, self._options.infer_batch_size), PromptMargins)
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

    def describe(self) -> EngineDescription:
        """Device, dtype, attention backend, cache, memory after loading, and versions."""
        details = dict(self.facts)
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

    def _prompts(self, request: EncodedRequest) -> RequestPrompts:
        segments = request.segments
        order: Sequence[int] = range(len(segments))
        if self._options.sort_by_doc_length:
            order = length_order(request)
        return RequestPrompts(request.prefix, [segments[index] for index in order], [[index] for index in order])

    def _adapt(self, arguments: dict[str, Any], environment: dict[str, str], *, positions: int) -> None:
        """Change the arguments and the environment that all engines share to what this engine needs.

        Args:
            arguments: arguments of vLLM's EngineArgs; changed in place.
            environment: variables for the worker process; changed in place.
            positions: number of positions of the model.
        """
        # vLLM reserves a position for a generated token. vLLM 0.26 does so even if it generates none: a prompt that
        # fills the window and is cut into chunks would never finish. Nothing is computed at that position, so the
        # window may be one longer than the model's.
        arguments["max_model_len"] += 1
        if arguments["max_model_len"] == positions + 1:
            environment["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"

    def _load_message(self, load: LoadModel, _tokenizer: ModelTokenizer) -> LoadModel:
        """The message, completed with what only this engine's scoring task needs."""
        return replace(load, label_logprobs=self._options.label_logprobs)

    def _launch(self) -> tuple[WorkerProcess, LoadModel]:
        config, options = self._config, self._options
        check_files(config)
        folder = config.model_folder
        tokenizer = load_tokenizer(folder if options.tokenizer is None else Path(options.tokenizer))
        model = read_model_config(folder)
        device = config.device.partition(":")[0]
        arguments = engine_arguments(folder, options, model, dtype=config.dtype, device=device)
        environment = _environment(config, options)
        self._adapt(arguments, environment, positions=model.get("max_position_embeddings", sys.maxsize))
        labels = (tokenizer.yes_id, tokenizer.no_id)
        has_head = config.spec is not None and config.spec.scoring.is_score_head
        plain = LoadModel(config.engine, arguments, device, [*labels, labels[0]], *labels, classifier=has_head)
        load = self._load_message(plain, tokenizer)
        worker = WorkerProcess(
            _PROGRAM,
            environment,
            start_timeout=options.start_timeout,
            heartbeat_timeout=options.heartbeat_timeout,
            step_timeout=float("inf") if options.step_timeout is None else options.step_timeout,
            show_log=options.show_log,
        )
        return worker, load

    def _reason(self, error: WorkerEndedError) -> str:
        """The first line of the message, the first error in the log, and what to do about it."""
        message = str(error)
        first, cause = first_line(message), root_cause(error.log)
        return f"{first}{f' ({cause})' if cause and cause not in message else ''}: {remedy(message, error.log)}"


def _environment(config: EngineConfig, options: VllmOptions) -> dict[str, str]:
    """Variables for the worker. The user's values of those that affect only logs and usage reports take precedence."""
    environment = {
        # The worker process already isolates vLLM; an engine core in yet another process would cost time for messages.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if options.multiprocessing else "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": os.environ.get("VLLM_NO_USAGE_STATS", "1"),
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "INFO" if options.show_log else "WARNING"),
    }
    return environment | visible_gpus(config.device, options.tensor_parallel_size or 1)
