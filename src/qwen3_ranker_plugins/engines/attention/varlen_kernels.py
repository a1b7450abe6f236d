"""The library's kernel for which `varlen.py` prepares sequences, and the GPUs that use it."""

from __future__ import annotations

import logging

import torch

from ...errors import EngineError
from ...pip_command import installed_version, pip_install
from .varlen import Sequences, VarlenKernel

_logger = logging.getLogger(__name__)

# Tokens. On an H200, including the copies of the prefix, FlashAttention 4 takes 2 % longer than our kernel for a pass
# of documents of 512 tokens, as long for 768 tokens, and 4 % less for 1024 tokens (docs/performance.md).
_SHORTEST = 768

# Major part of the compute capabilities for which FlashAttention 4 has tuned kernels: Hopper and Blackwell's B200.
_FLASH_4 = (9, 10)


def choose_kernel(capability: tuple[int, int]) -> VarlenKernel | None:
    """The kernel for long documents on a GPU of a compute capability; None if our own is the fastest there.

    That is FlashAttention 4, if it is installed and made for the GPU. The FlashAttention 2 inside torch was slower than
    our kernel on an H200 (docs/performance.md). The same is expected on Ampere and Ada, where it was not measured,
    because both use the same instructions there.
    """
    if capability[0] in _FLASH_4 and (installed := installed_version("flash-attn-4")):
        try:
            return flash_attention_4()
        except Exception as error:  # noqa: BLE001 - its imports load compiled libraries, which fail in many ways
            _logger.warning(
                "flash-attn-4 %s cannot be imported (%s: %s), so long documents take longer: run "
                "%s --upgrade, or pip uninstall flash-attn-4",
                *(installed, type(error).__name__, error, pip_install("flash")),
            )
    return None


def flash_attention_4() -> VarlenKernel:
    """FlashAttention 4 (the package flash-attn-4, extra `flash`), which compiles its kernel at the first call.

    Raises:
        ImportError: flash-attn-4 or a module that it needs is not installed.
    """
    from flash_attn.cute import flash_attn_varlen_func

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        try:
            output: torch.Tensor = flash_attn_varlen_func(
                query,
                key,
                value,
                cu_seqlens_q=sequences.query_bounds,
                cu_seqlens_k=sequences.key_bounds,
                seqused_q=sequences.query_lengths,
                max_seqlen_q=sequences.most_queries,
                max_seqlen_k=sequences.most_keys,
                causal=True,
            )[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise EngineError(
                f"flash-attn-4 {installed_version('flash-attn-4')} failed ({type(error).__name__}: {error}): run "
                f"{pip_install('flash')} --upgrade, or pip uninstall flash-attn-4"
            ) from error
        return output

    return VarlenKernel("FlashAttention 4", _SHORTEST, attend)
