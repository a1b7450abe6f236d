"""What runs in the process that vLLM runs in; `vllm_process` starts it.

It gets a `Start`, answers with `Ready` or `Failed`, and then answers every `Batch` with `Scored` or `Failed`, until it
gets None or the process that started it is gone.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .generate import GenerateMethod
from .hashes import PrefixHashes
from .packed.method import PackedMethod
from .score import ScoreMethod

Method = ScoreMethod | GenerateMethod  # PackedMethod is a ScoreMethod

_SECONDS_BETWEEN_LOOKS_AT_THE_PARENT = 1.0


@dataclass(frozen=True)
class Start:
    """What to load.

    Attributes:
        engine: "vllm_score", "vllm_generate" or "vllm_packed".
        arguments: of vLLM's EngineArgs.
        device: "cpu" or "cuda".
        example: a prompt with one document, to be computed before anybody waits for it.
        yes_id, no_id: ids of the labels.
        label_logprobs: see `GenerateMethod`.
        marker_id: see `PackedMethod`.
    """

    engine: str
    arguments: dict[str, Any]
    device: str
    example: list[int]
    yes_id: int
    no_id: int
    label_logprobs: str = "auto"
    marker_id: int = -1

    def method(self) -> Method:
        """How to ask vLLM for margins."""
        if self.engine == "vllm_score":
            return ScoreMethod(self.yes_id, self.no_id)
        if self.engine == "vllm_packed":
            return PackedMethod(self.yes_id, self.no_id, self.marker_id)
        return GenerateMethod(self.yes_id, self.no_id, self.label_logprobs)


@dataclass(frozen=True)
class Ready:
    """vLLM has started.

    Attributes:
        facts: about it, for people.
    """

    facts: dict[str, str]


@dataclass(frozen=True)
class Batch:
    """What to score.

    Attributes:
        prompts: of each request what its prompts share, and what follows in each, in the order in which vLLM is to get
            them.
        counts: how many margins each prompt has, in that order.
        size: how many prompts at once, at most.
    """

    prompts: Sequence[tuple[list[int], list[list[int]]]]
    counts: Sequence[int]
    size: int

    @property
    def slices(self) -> list[slice]:
        """For each prompt, its place among the margins."""
        return [slice(*bounds) for bounds in pairwise([0, *accumulate(self.counts)])]


@dataclass(frozen=True)
class Scored:
    """What vLLM said to a batch.

    Attributes:
        margins: float32, see `Batch.slices`; NaN where `failures` says why.
        cached: int64 [prompts], tokens of each that the prefix cache held.
        failures: number of a prompt -> reason.
    """

    margins: NDArray[np.float32]
    cached: NDArray[np.int64]
    failures: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """It did not work, and this process ends.

    Attributes:
        kind: the exception's class.
        message: its text and that of its causes.
    """

    kind: str
    message: str


class Runner:
    """vLLM's engine, asked for margins.

    It is driven through `LLMEngine.add_request` and `step`, as `LLM.classify` and `LLM.generate` do it themselves, so
    that a prompt that vLLM refuses is that document's failure and not the whole call's, and without what they do
    besides for each prompt. A batch of several steps is handed over step by step, and what comes next while a step
    runs on the GPU, which would otherwise wait for it.
    """

    def __init__(self, start: Start) -> None:
        import vllm
        from vllm import EngineArgs, LLMEngine

        check_platform(start.device, vllm.__version__)
        method = start.method()
        arguments = method.engine_arguments()
        arguments |= start.arguments
        # A user's overrides come on top of those that the scores depend on, not in their place.
        arguments["hf_overrides"] = start.arguments.get("hf_overrides", {}) | method.engine_arguments()["hf_overrides"]
        self._method = method
        self._parameters = method.parameters()
        self._refusals = (ValueError, getattr(__import__("vllm.exceptions").exceptions, "VLLMClientError", ValueError))
        self.engine: Any = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._added = 0
        self._meanwhile: Callable[[], object] | None = None
        # The engine core, if it is in this process and has what we know: neither is promised by vLLM.
        core: Any = getattr(self.engine.engine_core, "engine_core", None)
        executor: Any = getattr(core, "model_executor", None)
        self._overlaps = hasattr(executor, "execute_model")  # not if the engine core has a process of its own
        if self._overlaps:
            self._use_the_time_of(executor)
        self._shared: list[int] | None = None
        self._hashes: PrefixHashes | None = None
        if getattr(core, "request_block_hasher", None) is not None:
            self._hashes = PrefixHashes(core.request_block_hasher, self.engine.vllm_config.cache_config.block_size)
            core.request_block_hasher = self._hashes
        # The first step of all compiles kernels and allocates: no caller shall wait for that.
        self.score(Batch([(start.example, [[]])], counts=[1], size=1))

    def score(self, batch: Batch) -> Scored:
        """Margins of a batch.

        Raises:
            Exception: vLLM's engine failed and cannot be used any more.
        """
        slices = batch.slices
        prompts = [(shared, tail) for shared, tails in batch.prompts for tail in tails]
        scored = Scored(np.full(slices[-1].stop, np.nan, dtype=np.float32), np.zeros(len(prompts), dtype=np.int64))
        portions = self._portions(prompts, batch.size)
        waiting: dict[str, int] = {}

        def add() -> bool:
            portion = next(portions, None)
            if portion is None:
                return False
            for place in portion:
                self._add(*prompts[place], place, waiting, scored)
            return True

        with _no_garbage_collection():
            while add():
                while self.engine.has_unfinished_requests():
                    self._meanwhile = add
                    outputs = self.engine.step()
                    self._meanwhile = None
                    for output in outputs:
                        if output.finished:
                            place = waiting.pop(output.request_id)
                            self._record(output, place, slices[place], scored)
        scored.failures.update(dict.fromkeys(waiting.values(), "vLLM returned no output for it"))
        return scored

    def _portions(self, prompts: list[tuple[list[int], list[int]]], size: int) -> Iterator[range]:
        """Places of the prompts to be handed over together: as much for each step, at most `size`."""
        if not prompts:
            return
        portions = np.zeros(len(prompts), dtype=np.int64)
        if self._overlaps:
            config = self.engine.vllm_config
            cache = config.cache_config
            block = cache.block_size if cache.enable_prefix_caching else sys.maxsize
            ends = np.cumsum([len(shared) % block + len(tail) or 1 for shared, tail in prompts])
            tokens, count = config.scheduler_config.max_num_batched_tokens, config.scheduler_config.max_num_seqs
            steps = max(-(-int(ends[-1]) // tokens), -(-len(prompts) // count))
            portions = (ends - 1) * steps // ends[-1]
        first = 0
        for place in range(1, len(prompts) + 1):
            if place == len(prompts) or place - first == size or portions[place] != portions[first]:
                yield range(first, place)
                first = place

    def _add(self, shared: list[int], tail: list[int], place: int, waiting: dict[str, int], scored: Scored) -> None:
        if self._hashes is not None and shared is not self._shared:
            self._hashes.expect(shared)
            self._shared = shared
        self._added += 1
        name = str(self._added)
        try:
            self.engine.add_request(name, {"type": "token", "prompt_token_ids": shared + tail}, self._parameters)
        except self._refusals as error:
            scored.failures[place] = f"vLLM refused it: {error}"
            self.engine.abort_request([name])
        else:
            waiting[name] = place

    def _use_the_time_of(self, executor: Any) -> None:
        """Let what comes next be added after a step was launched, before its results are waited for."""
        execute_model = executor.execute_model

        def launch(*arguments: Any, **named: Any) -> Any:
            launched = execute_model(*arguments, **named)
            meanwhile, self._meanwhile = self._meanwhile, None
            if meanwhile is not None:
                meanwhile()
            return launched

        executor.execute_model = launch

    def _record(self, output: Any, place: int, where: slice, scored: Scored) -> None:
        scored.cached[place] = output.num_cached_tokens or 0
        try:
            margins = np.atleast_1d(self._method.read(output))
        except ValueError as error:
            scored.failures[place] = str(error)
            return
        asked = where.stop - where.start
        if len(margins) == asked:
            scored.margins[where] = margins
        else:
            scored.failures[place] = f"vLLM returned {len(margins)} numbers where {asked} were asked for"

    def close(self) -> None:
        """End vLLM's own processes, if it has any."""
        self.engine.engine_core.shutdown()

    def facts(self) -> dict[str, str]:
        """Device, dtype, versions, memory: what people want to know of a running engine."""
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
            **self._method.facts,
        }


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For a batch vLLM makes thousands of objects that are looked through again and again, and hardly a cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_platform(device: str, version: str) -> None:
    """Raise RuntimeError if this vLLM does not compute on the device."""
    from vllm.platforms import current_platform

    platform = current_platform.device_type
    if not platform:
        raise RuntimeError(f"vLLM {version}: Failed to infer device type")
    if platform != device:
        raise RuntimeError(f"vLLM {version} is a build for {platform!r}, and device={device!r} was asked for")


def attention_backend(config: Any) -> str:
    """The attention backend that vLLM chose; "unknown" if its engine core runs in another process."""
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


def _failure(error: BaseException) -> Failed:
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    return Failed(type(error).__name__, "\n".join(texts))


def _receive(connection: Connection, messages: queue.SimpleQueue[Any]) -> None:
    """Pass messages on; if the other side is gone, end this process and all that vLLM has started."""
    parent = os.getppid()
    while True:
        try:
            if connection.poll(_SECONDS_BETWEEN_LOOKS_AT_THE_PARENT):
                messages.put(connection.recv())
            elif os.getppid() != parent:  # a forked child of the parent may keep the connection open
                break
        except (EOFError, OSError):
            break
    time.sleep(0.1)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def main(descriptor: int) -> None:
    """Serve one connection.

    Args:
        descriptor: of the connection.
    """
    os.set_inheritable(descriptor, False)
    connection: Any = Connection(descriptor)
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, messages), daemon=True).start()
    start: Start = messages.get()
    try:
        runner = Runner(start)
        connection.send(Ready(runner.facts()))
        while (batch := messages.get()) is not None:
            connection.send(runner.score(batch))
        runner.close()
    except BaseException as error:  # the other side has to hear of it, whatever it is
        connection.send(_failure(error))
        raise
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what torch and vLLM take down at exit, for seconds, ends with the process anyway
