"""Our decoder (`engines/packed/decoder.py`) over the weights that vLLM has loaded, where its kernels run.

It computes on the very tensors that vLLM's layers hold, so no weight is in memory twice. vLLM's layers remain for what
our decoder cannot compute: quantised weights, several GPUs, float32, GPUs without kernels, CPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...devices import capability
from ...packed import options as packed_options
from ...packed.decoder import DecoderWeights, LayerWeights
from ...packed.options import SIZE_CLASSES, PackedOptions
from ...packed.size_classes import make_runner

if TYPE_CHECKING:
    from ...packed.size_classes import SizeClassRunner


def obstacle(vllm_config: Any) -> str | None:
    """Why our decoder cannot run a model that vLLM loads; None if it can."""
    model, config = vllm_config.model_config, vllm_config.model_config.hf_config
    if (gpus := vllm_config.parallel_config.world_size) > 1:
        return f"our decoder computes a model on one device (here: {gpus})"
    if vllm_config.quant_config is not None:
        return f"our decoder has no quantised weights (here: {model.quantization})"
    rotary = getattr(config, "rope_parameters", None) or {}
    if rotary.get("rope_type") != "default" or rotary.get("partial_rotary_factor") not in (None, 1):
        return f"our decoder has the default rotary embeddings only (here: {rotary})"
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return "our decoder has no sliding windows"
    device, dtype = torch.device(vllm_config.device_config.device), str(model.dtype).removeprefix("torch.")
    return packed_options.obstacle(str(device), dtype, capability(device), config)


def weights_of(model: Any, label_direction: torch.Tensor, config: Any) -> DecoderWeights:
    """The weights of vLLM's Qwen3Model, which fuses the same matrices as our decoder does.

    Args:
        model: vLLM's Qwen3Model on one device, unquantised and loaded.
        label_direction: float32 [width].
        config: the model's configuration.
    """
    head_dim, theta = config.head_dim, float(config.rope_parameters["rope_theta"])
    embedding = model.embed_tokens.weight.detach()
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=embedding.device) / head_dim
    return DecoderWeights(
        embedding=embedding,
        layers=tuple(_layer_weights(layer) for layer in model.layers),
        norm=model.norm.weight.detach(),
        label_direction=label_direction,
        inverse_frequencies=1.0 / theta**exponents,
        rotary_scaling=1.0,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        epsilon=config.rms_norm_eps,
    )


def _layer_weights(layer: Any) -> LayerWeights:
    attention, feed_forward = layer.self_attn, layer.mlp
    modules = (
        layer.input_layernorm,
        attention.qkv_proj,
        attention.q_norm,
        attention.k_norm,
        attention.o_proj,
        layer.post_attention_layernorm,
        feed_forward.gate_up_proj,
        feed_forward.down_proj,
    )
    return LayerWeights(*(module.weight.detach() for module in modules))


def runner_of(weights: DecoderWeights, *, token_budget: int, cuda_graphs: bool) -> SizeClassRunner:
    """A runner of our decoder, with compiled kernels and recorded graphs.

    Args:
        weights: see `weights_of`.
        token_budget: maximum number of tokens in a step of vLLM.
        cuda_graphs: whether short passes are replayed as CUDA graphs.

    Raises:
        EngineError: a kernel cannot be compiled, or a graph cannot be recorded.
    """
    device = weights.embedding.device
    options = PackedOptions(
        compile=True, float8=False, warm_up=True, size_classes=SIZE_CLASSES[-1], cuda_graphs=cuda_graphs
    )
    return make_runner(weights, device, capability(device) or (0, 0), options, token_budget, owns_weights=False)
