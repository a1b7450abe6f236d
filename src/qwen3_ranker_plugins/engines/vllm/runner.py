"""The engine of vLLM, driven step by step for margins. Runs in the worker process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

from ..garbage_collection import no_garbage_collection
from .block_hashes import PrefixBlockHasher
from .generate import GenerateTask
from .messages import LoadModel, PromptMargins, ScorePrompts
from .packed.task import PackedTask, facts_of_model
from .score import ClassifierTask, ScoreTask

ScoringTask = ScoreTask | GenerateTask  # a PackedTask is a ScoreTask


class Runner:
    """Loads vLLM and scores prompts.

    It calls `LLMEngine.add_request` and `step`, as `LLM.classify` and `LLM.generate` do. Unlike those two, it lets a
    prompt that vLLM refuses fail alone, and does little work for each prompt. If prompts need several steps, those of
    the next step are added while the current step runs on the GPU, so that the GPU does not wait for them.

    Args:
        load: the model and vLLM's arguments.

    Attributes:
        steps: number of scheduler steps that vLLM has finished.
        calls_at_once: one, since vLLM's engine belongs to one thread.
        engine: vLLM's LLMEngine.

    Raises:
        RuntimeError: this build of vLLM does not run on the device, or is too old.
        Exception: whatever vLLM raises while it loads the model.
    """

    calls_at_once = 1

    def __init__(self, load: LoadModel) -> None:
        import vllm
        from vllm import EngineArgs, LLMEngine

        check_platform(load.device, vllm.__version__)
        self._task = scoring_task(load)
        arguments = self._task.engine_arguments()
        # The user's overrides are added to those that the margins depend on instead of replacing them.
        overrides = load.arguments.get("hf_overrides", {}) | arguments["hf_overrides"]
        arguments |= load.arguments | {"hf_overrides": overrides}
        self._parameters = self._task.parameters()
        self._refusals = (ValueError, getattr(import_module("vllm.exceptions"), "VLLMClientError", ValueError))
        self.steps = 0
        self.engine: Any = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._added = 0
        self._meanwhile: Callable[[], object] | None = None
        # vLLM promises neither that the engine core is in this process nor that it has these attributes.
        core: Any = getattr(self.engine.engine_core, "engine_core", None)
        executor: Any = getattr(core, "model_executor", None)
        self._overlaps = hasattr(executor, "execute_model")
        if self._overlaps:
            self._call_while_a_step_runs(executor)
        self._prefix: list[int] | None = None
        self._block_hasher: PrefixBlockHasher | None = None
        if getattr(core, "request_block_hasher", None) is not None:
            block_size = self.engine.vllm_config.cache_config.block_size
            self._block_hasher = PrefixBlockHasher(core.request_block_hasher, block_size)
            core.request_block_hasher = self._block_hasher
        # The first step compiles kernels and allocates memory: no caller should wait for that.
        self.score(ScorePrompts([(load.example, [[]])], counts=[1], at_once=1))

    def score(self, asked: ScorePrompts) -> PromptMargins:
        """The margins of some prompts.

        Raises:
            Exception: vLLM's engine failed and cannot be used any more.
        """
        slices = asked.slices
        prompts = [(prefix, rest) for prefix, continuations in asked.prompts for rest in continuations]
        answer = PromptMargins(
            np.full(slices[-1].stop, np.nan, dtype=np.float32), np.zeros(len(prompts), dtype=np.int64)
        )
        portions = self._portions(prompts, asked.at_once)
        waiting: dict[str, int] = {}

        def add_portion() -> bool:
            portion = next(portions, None)
            if portion is None:
                return False
            for index in portion:
                self._add(*prompts[index], index, waiting, answer)
            return True

        # Each call makes thousands of objects, hardly any of them in cycles.
        with no_garbage_collection():
            while add_portion():
                while self.engine.has_unfinished_requests():
                    self._meanwhile = add_portion
                    outputs = self.engine.step()
                    self._meanwhile = None
                    self.steps += 1
                    for output in outputs:
                        if output.finished:
                            index = waiting.pop(output.request_id)
                            self._record(output, index, slices[index], answer)
        answer.failures.update(dict.fromkeys(waiting.values(), "vLLM returned no output for it"))
        return answer

    def _portions(self, prompts: list[tuple[list[int], list[int]]], at_once: int) -> Iterator[range]:
        """Indices of the prompts to add together: about as many tokens for each step, and at most `at_once` prompts."""
        if not prompts:
            return
        portions = np.zeros(len(prompts), dtype=np.int64)
        if self._overlaps:
            config = self.engine.vllm_config
            cache = config.cache_config
            block = cache.block_size if cache.enable_prefix_caching else sys.maxsize
            ends = np.cumsum([len(prefix) % block + len(rest) or 1 for prefix, rest in prompts])
            tokens, count = config.scheduler_config.max_num_batched_tokens, config.scheduler_config.max_num_seqs
            steps = max(-(-int(ends[-1]) // tokens), -(-len(prompts) // count))
            portions = (ends - 1) * steps // ends[-1]
        changes = np.flatnonzero(portions[1:] != portions[:-1]) + 1
        for start, end in pairwise([0, *changes.tolist(), len(prompts)]):
            for first in range(start, end, at_once):
                yield range(first, min(first + at_once, end))

    def _add(
        self, prefix: list[int], rest: list[int], index: int, waiting: dict[str, int], answer: PromptMargins
    ) -> None:
        if self._block_hasher is not None and prefix is not self._prefix:
            self._block_hasher.expect(prefix)
            self._prefix = prefix
        self._added += 1
        name = str(self._added)
        try:
            self.engine.add_request(name, {"type": "token", "prompt_token_ids": prefix + rest}, self._parameters)
        except self._refusals as error:
            answer.failures[index] = f"vLLM refused it: {error}"
            self.engine.abort_request([name])
        else:
            waiting[name] = index

    def _call_while_a_step_runs(self, executor: Any) -> None:
        """Make the executor call `self._meanwhile` after it has launched a step, before it waits for the results."""
        execute_model = executor.execute_model

        def launch(*arguments: Any, **named: Any) -> Any:
            launched = execute_model(*arguments, **named)
            meanwhile, self._meanwhile = self._meanwhile, None
            if meanwhile is not None:
                meanwhile()
            return launched

        executor.execute_model = launch

    def _record(self, output: Any, index: int, where: slice, answer: PromptMargins) -> None:
        answer.cached_tokens[index] = output.num_cached_tokens or 0
        try:
            margins = np.atleast_1d(self._task.read(output))
        except ValueError as error:
            answer.failures[index] = str(error)
            return
        expected = where.stop - where.start
        if len(margins) == expected:
            answer.margins[where] = margins
        else:
            answer.failures[index] = f"vLLM returned {len(margins)} margins instead of {expected}"

    def close(self) -> None:
        """End the processes that vLLM has started."""
        self.engine.engine_core.shutdown()

    def facts(self) -> dict[str, str]:
        """Device, dtype, attention backend, cache, memory after loading, and versions."""
        import torch
        import transformers
        import vllm

        config = self.engine.vllm_config
        on_gpu = torch.cuda.is_available()
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        blocks, block_size = config.cache_config.num_gpu_blocks, config.cache_config.block_size
        return {
            "device": torch.cuda.get_device_name(0) if on_gpu else "cpu",
            "dtype": dtype,
            "quantization": str(config.model_config.quantization or "none"),
            "attention": attention_backend(config),
            "prefix_caching": str(bool(config.cache_config.enable_prefix_caching)),
            "block_size": str(block_size),
            "kv_cache_tokens": str(blocks * block_size if blocks else "unknown"),
            "max_num_batched_tokens": str(config.scheduler_config.max_num_batched_tokens),
            "max_num_seqs": str(config.scheduler_config.max_num_seqs),
            "tensor_parallel_size": str(config.parallel_config.tensor_parallel_size),
            "memory": _memory(on_gpu=on_gpu),
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **self._task.facts,
            **self._facts_of_model(),
        }

    def _facts_of_model(self) -> dict[str, str]:
        if not isinstance(self._task, PackedTask):
            return {}
        if getattr(self.engine.engine_core, "engine_core", None) is None:
            return {"layers": "unknown, because vLLM's engine core runs in another process"}
        facts: dict[str, str] = self.engine.apply_model(facts_of_model)[0]
        return facts


def scoring_task(load: LoadModel) -> ScoringTask:
    """How the engine asks vLLM for margins."""
    if load.engine == "vllm_score":
        return (ClassifierTask if load.classifier else ScoreTask)(load.yes_id, load.no_id)
    if load.engine == "vllm_packed":
        return PackedTask(load.yes_id, load.no_id, load.marker_id)
    return GenerateTask(load.yes_id, load.no_id, load.label_logprobs)


def check_platform(device: str, version: str) -> None:
    """Raise RuntimeError if this build of vLLM does not run on the device."""
    from vllm.platforms import current_platform

    platform = current_platform.device_type
    if not platform:
        raise RuntimeError(f"vLLM {version}: Failed to infer device type")
    if platform != device:
        raise RuntimeError(f"vLLM {version} is a build for {platform!r}, and device={device!r} was asked for")


def attention_backend(config: Any) -> str:
    """Name of the attention backend that vLLM chose; "unknown" if its engine core runs in another process."""
    for layer in config.compilation_config.static_forward_context.values():
        backend = getattr(layer, "attn_backend", None)
        if backend is not None:
            return str(backend.get_name())
    return "unknown"


def _memory(*, on_gpu: bool) -> str:
    import psutil
    import torch

    if on_gpu:
        free, total = torch.cuda.mem_get_info(0)
        return f"{(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB of the GPU in use"
    process = psutil.Process()
    resident = sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])
    return f"{resident / 2**30:.1f} GiB resident"
