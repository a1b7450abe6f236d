"""The options of the vLLM engines: names, checks and defaults, and the arguments of vLLM that they become.

Nothing here imports vLLM. An option that vLLM also has keeps vLLM's name. docs/engines.md explains every option.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ...checks import check_json, check_positive, check_text
from ...config import RerankerSettings
from ...errors import InvalidInputError
from ..options import EngineOptions, argument, check_share, check_switch, checked, one_of

#: Each is the name of a template.
INSTRUCTION_FORMATS = ("standard", "compact")
LABEL_LOGPROBS = ("auto", "token_ids", "processed")

#: Tokens of the prefix of the official template with its default instruction and a query of one token.
_SHORTEST_PREFIX = 64
_SMALL_MODEL = 1024  # hidden size of Qwen3-Reranker-0.6B
#: A call of `score` holds the tokens of this many scheduler steps: enough to keep vLLM busy, and few enough that a long
#: list does not delay a short one for long.
_STEPS_PER_CALL = 4

_PACKED = "vllm_packed"  # lacks some options: it has no prefix cache, and its prompts are rows of documents


@dataclass(frozen=True)
class VllmOptions(EngineOptions):
    """Options as given. None leaves the choice to `resolved` or to vLLM.

    Attributes:
        tokenizer: folder or name of the model whose tokenizer makes the ids; None for the model itself.
        tensor_parallel_size: number of GPUs that share the model; None for as many as the model needs to fit.
        max_model_len: longest prompt in tokens, like `max_length`; the smaller one applies.
        gpu_memory_utilization: share of the GPU's memory (on a CPU: of the machine's) that vLLM may take.
        enable_prefix_caching: compute the prefix of a query's documents once.
        enforce_eager: neither compile nor capture CUDA graphs: vLLM starts faster and scores slower.
        infer_batch_size: at most this many documents are handed to vLLM at once.
        sort_by_doc_length: hand them over shortest first.
        instruction_format: "standard" or "compact", the template of that name.
        max_num_batched_tokens, max_num_seqs: at most this many tokens and documents in one step of vLLM's scheduler.
        quantization: vLLM's name of a method; None for the checkpoint's.
        block_size: tokens of a block of the prefix cache.
        label_logprobs: how `vllm_generate` requests the log-probabilities of its two labels, see `GenerateTask`.
        multiprocessing: run vLLM's engine core in a child of our worker process instead of the worker itself.
        start_timeout: seconds that loading may take.
        heartbeat_timeout: seconds without a heartbeat after which the worker process is killed. It sends one a second.
        step_timeout: seconds that one step of vLLM's scheduler may take before the worker process is killed; None for
            300 on a GPU (as vLLM waits for its own processes) and 1800 on a CPU.
        show_log: print vLLM's log to standard error.
        engine_kwargs: other arguments of vLLM's EngineArgs; take precedence over all options.

    Raises:
        InvalidInputError: names the option and its value.
    """

    unknown_hint: ClassVar[str] = ", or put an argument of vLLM into engine_kwargs"

    tokenizer: str | None = field(default=None, metadata=checked(check_text))
    tensor_parallel_size: int | None = field(default=None, metadata=checked(check_positive))
    max_model_len: int | None = field(default=None, metadata=checked(check_positive))
    gpu_memory_utilization: float | None = field(default=None, metadata=checked(check_share))
    enable_prefix_caching: bool = field(default=True, metadata=checked(check_switch, not_of=(_PACKED,)))
    enforce_eager: bool | None = field(default=None, metadata=checked(check_switch))
    infer_batch_size: int = field(default=1024, metadata=checked(check_positive, not_of=(_PACKED,)))
    sort_by_doc_length: bool = field(default=True, metadata=checked(check_switch, not_of=(_PACKED,)))
    instruction_format: str | None = field(default=None, metadata=checked(one_of(*INSTRUCTION_FORMATS)))
    max_num_batched_tokens: int | None = field(default=None, metadata=checked(check_positive))
    max_num_seqs: int | None = field(default=None, metadata=checked(check_positive))
    quantization: str | None = field(default=None, metadata=checked(check_text))
    block_size: int | None = field(default=None, metadata=checked(check_positive, not_of=(_PACKED,)))
    label_logprobs: str = field(default="auto", metadata=checked(one_of(*LABEL_LOGPROBS), not_of=(_PACKED,)))
    multiprocessing: bool = field(default=False, metadata=checked(check_switch))
    start_timeout: int = field(default=1800, metadata=checked(check_positive))
    heartbeat_timeout: int = field(default=30, metadata=checked(check_positive))
    step_timeout: int | None = field(default=None, metadata=checked(check_positive))
    show_log: bool = field(default=False, metadata=checked(check_switch))
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict, metadata=checked(check_json))

    @property
    def default_token_budget(self) -> int:
        """Maximum number of tokens of one call of `score`. Defined only for options that `resolved` returned."""
        return _STEPS_PER_CALL * (self.max_num_batched_tokens or 0)


def apply_to_prompts(engine: str, settings: RerankerSettings) -> tuple[VllmOptions, str, int]:
    """(options, template, longest prompt in tokens) that settings select.

    Raises:
        InvalidInputError: an option is unusable, or instruction_format contradicts the template.
    """
    options = VllmOptions.parse(engine, settings.engine_options)
    template = settings.template
    if options.instruction_format is not None:
        if template not in ("standard", options.instruction_format):
            raise InvalidInputError(
                argument("instruction_format"),
                options.instruction_format,
                f"contradicts template={template!r}: set only one of them",
            )
        template = options.instruction_format
    return options, template, min(settings.max_length, options.max_model_len or settings.max_length)


def resolved(
    options: VllmOptions,
    model: Mapping[str, Any],
    *,
    gpus: int,
    window: int,
    template: str,
    gpus_needed: int = sys.maxsize,
) -> VllmOptions:
    """The options with this package's defaults for those that were left out.

    Args:
        options: as given.
        model: the model's config.json.
        gpus: number of GPUs that vLLM may use; 0 for a CPU.
        window: longest prompt in tokens.
        template: name or text of the prompt's template.
        gpus_needed: by default, at least this many GPUs share the model; all of them if there are fewer.

    Raises:
        InvalidInputError: the model or the machine is too small for a value.
    """
    positions = model.get("max_position_embeddings", sys.maxsize)
    if window > positions:
        raise InvalidInputError("max_length", window, f"the model has {positions} positions: use at most that")
    heads = int(model["num_attention_heads"])
    fitting = [count for count in range(1, gpus + 1) if _divides(count, heads, int(model["num_key_value_heads"]))] or [
        1
    ]
    parallel = options.tensor_parallel_size or next((count for count in fitting if count >= gpus_needed), fitting[-1])
    if parallel > max(1, gpus) or not _divides(parallel, heads, int(model["num_key_value_heads"])):
        raise InvalidInputError(
            argument("tensor_parallel_size"),
            parallel,
            f"{gpus} GPUs are visible and the model has {heads} attention heads: use a number that fits both",
        )
    on_gpu = gpus > 0
    return replace(
        options,
        tensor_parallel_size=parallel,
        max_model_len=window,
        # A reranker only prefills, so the cache needs room for one or two steps; a fifth is left to other programs.
        gpu_memory_utilization=options.gpu_memory_utilization or (0.8 if on_gpu else None),
        # On a CPU, compiling adds 40 s to the start and makes scoring 10 % faster; see docs/engines.md.
        enforce_eager=(not on_gpu) if options.enforce_eager is None else options.enforce_eager,
        max_num_batched_tokens=options.max_num_batched_tokens or (32768 if on_gpu else 4096),
        max_num_seqs=options.max_num_seqs or (1024 if on_gpu else 256),
        block_size=options.block_size or _block_size(model, template, on_gpu=on_gpu),
        step_timeout=options.step_timeout or (300 if on_gpu else 1800),
    )


def _block_size(model: Mapping[str, Any], template: str, *, on_gpu: bool) -> int | None:
    """Tokens of a block of the prefix cache; None for vLLM's 16 on a GPU."""
    if not on_gpu:
        return 32  # vLLM's default on a CPU is 128, which is longer than the prefix of a short query
    # With blocks this long, one holds the prefix, and a document as short as a title fills none. So vLLM need not hash,
    # cache and evict blocks of documents, which is a fifth of its work for a request. In return, fewer tokens of longer
    # queries are shared, which costs more with larger models.
    return _SHORTEST_PREFIX if template == "standard" and int(model["hidden_size"]) <= _SMALL_MODEL else None


def engine_arguments(
    folder: Path, options: VllmOptions, model: Mapping[str, Any], *, dtype: str, device: str
) -> dict[str, Any]:
    """Arguments of vLLM's EngineArgs that all engines on vLLM have in common.

    Args:
        folder: of the model.
        options: as `resolved` returns them.
        model: the model's config.json.
        dtype: of weights and activations.
        device: "cpu" or a GPU.
    """
    arguments: dict[str, Any] = {
        "model": str(folder),
        "tokenizer": options.tokenizer or str(folder),
        "skip_tokenizer_init": True,  # ids go in and numbers come out
        "trust_remote_code": False,
        "dtype": dtype,
        "disable_log_stats": True,
        "tensor_parallel_size": options.tensor_parallel_size,
        "max_model_len": options.max_model_len,
        "enable_prefix_caching": options.enable_prefix_caching,
        "enforce_eager": options.enforce_eager,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "max_num_seqs": options.max_num_seqs,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "quantization": options.quantization,
        "block_size": options.block_size,
    }
    if device == "cpu" and options.gpu_memory_utilization is None:
        # By default, vLLM takes 92 % of the machine's memory. Room for two steps, or for two prompts of the maximum
        # length, is enough.
        tokens = 2 * max(options.max_model_len or 0, options.max_num_batched_tokens or 0)
        arguments["kv_cache_memory_bytes"] = tokens * _cache_bytes_per_token(model, dtype)
    return {name: value for name, value in arguments.items() if value is not None} | dict(options.engine_kwargs)


def read_model_config(folder: Path) -> dict[str, Any]:
    """The model's config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _divides(count: int, heads: int, key_value_heads: int) -> bool:
    """Whether `count` GPUs can share the heads: vLLM splits the kv heads among them, or repeats whole ones."""
    return heads % count == 0 and (key_value_heads % count == 0 or count % key_value_heads == 0)


def _cache_bytes_per_token(model: Mapping[str, Any], dtype: str) -> int:
    head_dim = int(model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"])
    elements = 2 * int(model["num_hidden_layers"]) * int(model["num_key_value_heads"]) * head_dim
    return elements * (4 if dtype == "float32" else 2)
