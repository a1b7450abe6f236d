"""Which attention kernels our decoder uses on a GPU: one of our own, and a library's for long documents.

A kernel for another GPU is a module like `triton_nvidia` and its line in `kernels_for`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

    from .varlen import VarlenKernel


class Attend(Protocol):
    """Shared-prefix attention of a packed row; `triton_nvidia.attend` computes it on NVIDIA GPUs."""

    def __call__(
        self,
        products: torch.Tensor,
        work_items: torch.Tensor,
        segment_start: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        query_norm: torch.Tensor,
        *,
        heads: int,
        kv_heads: int,
        epsilon: float,
        output: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Arguments and result as in `triton_nvidia.attend`."""


class GpuKernels(NamedTuple):
    """The attention kernels for a GPU.

    Attributes:
        attend: computes a pass.
        rows: rows of a work item's matrix of queries, as `attend` expects it.
        varlen: computes the attention of long documents; None leaves them to `attend` as well.
    """

    attend: Attend
    rows: int
    varlen: VarlenKernel | None


def kernels_for(capability: tuple[int, int]) -> GpuKernels:
    """The kernels for an NVIDIA GPU of a compute capability, such as (9, 0)."""
    from .triton_nvidia import attend, tiles_for
    from .varlen_kernels import choose_kernel

    tiles = tiles_for(capability)
    return GpuKernels(partial(attend, tiles=tiles), tiles.rows, choose_kernel(capability))
