"""Shared-prefix attention: every token sees its request's prefix and the earlier tokens of its own document.

    layout.py          where the tokens of a pass lie, and which tokens each of them sees
    interface.py       chooses the implementation for a device; the attention function that transformers' layers call
    sdpa.py            CPU: torch's scaled_dot_product_attention
    flex.py            any CUDA GPU: FlexAttention with a block mask
    work_items.py      how a pass is divided among the thread blocks of a kernel of our own
    triton_nvidia.py   such a kernel for NVIDIA GPUs from Ampere on
    varlen.py          long documents as sequences for a library's kernel
    varlen_kernels.py  such a kernel, and the GPUs that use it
    gpu_kernels.py     chooses the kernels for a GPU

A kernel for another GPU is a module like `triton_nvidia` and its line in `gpu_kernels`.
"""
