"""The libraries' kernels that `varlen.py` prepares sequences for, and which of them a GPU gets."""

from __future__ import annotations

import torch

from .varlen import Sequences, VarlenKernel


def flash_attention_4() -> VarlenKernel:
    """FlashAttention 4 (the package flash-attn-4, extra `flash`), which compiles its kernel at the first call.

    Raises:
        ImportError: it, or what it needs, is not installed.
    """
    from flash_attn.cute import flash_attn_varlen_func

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: Sequences) -> torch.Tensor:
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
        return output

    return VarlenKernel("FlashAttention 4", 512, attend)


def torch_flash_attention() -> VarlenKernel:
    """FlashAttention 2 as torch has it built in.

    Its operator, because `torch.nn.attention.varlen` is younger than the oldest torch that the extra `packed` allows
    and changed its arguments with every release.
    """

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        output: torch.Tensor = torch.ops.aten._flash_attention_forward(  # noqa: SLF001
            query,
            key,
            value,
            sequences.query_bounds,
            sequences.key_bounds,
            sequences.most_queries,
            sequences.most_keys,
            0.0,  # dropout
            True,  # causal
            False,  # no debug mask
        )[0]
        return output

    return VarlenKernel("torch's FlashAttention 2", 1024, attend)
