"""Qwen3's decoder in plain torch, for checkpoints in their original form.

Importing transformers' class takes more than twice as long as importing torch: it brings generation, distributed
tensors, torch's compiler and, where it is installed, scikit-learn. These layers have the same names, arithmetic and
rounding, so the margins are the same. `load` returns None for a checkpoint in any other form. The engine then loads it
with transformers, which renames or converts its tensors or refuses it.

Operations change an operand in place where nothing else needs it. Intermediate results of a pass have megabytes. The
system takes such memory back when it is freed, and on a CPU, fetching it again takes longer than an addition in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import silu

from ...models.weights import weight_files

if TYPE_CHECKING:
    from ..attention.interface import Layout


@dataclass(frozen=True)
class Qwen3Config:
    """The settings of config.json that the arithmetic depends on, under the names that they have there."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    attention_bias: bool = False
    hidden_act: str = "silu"


class Qwen3ForCausalLM(nn.Module):
    """The decoder, as `model`, and the output matrix, which is the embedding if the two are tied."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.config = config
        self.model = Qwen3Model(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def get_output_embeddings(self) -> Linear:
        """The output matrix, [vocabulary, width]."""
        return self.lm_head


class Qwen3Model(nn.Module):
    """Embedding, layers and final norm; the engine calls them one after another."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)


class DecoderLayer(nn.Module):
    """Attention and feed-forward part, each after a norm and added to the residual."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden: torch.Tensor, *, position_embeddings: tuple[torch.Tensor, torch.Tensor], packed: Layout
    ) -> torch.Tensor:
        """[1, tokens, width] -> the same shape."""
        normed = self.input_layernorm(hidden)
        hidden = self.self_attn(normed, position_embeddings=position_embeddings, packed=packed)[0].add_(hidden)
        transformed: torch.Tensor = self.mlp(self.post_attention_layernorm(hidden))
        return transformed.add_(hidden)


class Attention(nn.Module):
    """Grouped-query attention with normalised heads and rotary embeddings."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries, keys = (count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = Linear(queries, config.hidden_size, bias=config.attention_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: None = None,  # noqa: ARG002 - as transformers' class is called
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        packed: Layout,
    ) -> tuple[torch.Tensor, None]:
        """[1, tokens, width] -> the same shape, and None where transformers' class returns weights."""
        by_head = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = _rotated(self.q_norm(self.q_proj(hidden_states).view(by_head)), *position_embeddings)
        key = _rotated(self.k_norm(self.k_proj(hidden_states).view(by_head)), *position_embeddings)
        value = self.v_proj(hidden_states).view(by_head)
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        attended = packed.attend(query, key, value, self.head_dim**-0.5).transpose(1, 2)
        return self.o_proj(attended.reshape(*hidden_states.shape[:-1], -1)), None


class FeedForward(nn.Module):
    """SiLU(gate) * up, projected back."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[..., width] -> the same shape."""
        gated = silu(self.gate_proj(states), inplace=True).mul_(self.up_proj(states))
        product: torch.Tensor = self.down_proj(gated)
        return product


class Linear(nn.Linear):
    """`nn.Linear` without random weights.

    The checkpoint replaces them, and drawing them on the meta device would import torch's compiler.
    """

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


class Embedding(nn.Embedding):
    """`nn.Embedding` without random weights, for the same reason as `Linear`."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension: computed in float32, rounded, and then scaled, as Qwen3 does it."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self._epsilon = epsilon

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[..., width] -> the same shape."""
        wide = states.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._epsilon)
        return normed.to(states.dtype).mul_(self.weight)


class RotaryEmbedding(nn.Module):
    """Cosines and sines of each position."""

    attention_scaling = 1.0

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        # On the CPU even if the rest is built on the meta device, because no checkpoint holds this buffer.
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float, device="cpu") / config.head_dim
        self.inv_freq = nn.Buffer(1.0 / (config.rope_theta**exponents), persistent=False)

    def forward(self, states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each [1, tokens, head_dim], in the dtype of the states."""
        angles = position_ids[..., None].float() * self.inv_freq
        doubled = torch.cat((angles, angles), dim=-1)
        return doubled.cos().to(states.dtype), doubled.sin().to(states.dtype)


def _rotated(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotary embeddings applied to [1, tokens, heads, head_dim]."""
    first, second = states.chunk(2, dim=-1)
    swapped = torch.cat((-second, first), dim=-1)
    return (states * cosines[:, :, None]).add_(swapped.mul_(sines[:, :, None]))


def load(folder: Path, dtype: torch.dtype) -> Qwen3ForCausalLM | None:
    """The model in evaluation mode, on the CPU; None if the folder is not exactly in the plain form.

    Raises:
        OSError, safetensors.SafetensorError: a file is missing or damaged.
    """
    config, files = plain_config(folder), weight_files(folder)
    if config is None or not files:
        return None
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    # OpenMP's threads belong to the thread that needs them first. If that were the caller's thread, a child that is
    # forked later would wait for threads that only its parent has.
    with ThreadPoolExecutor(max_workers=1) as thread:
        weights = thread.submit(_read, files, wanted, dtype).result()
    if weights is None:
        return None
    if config.tie_word_embeddings and "model.embed_tokens.weight" in weights:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    if weights.keys() != wanted.keys():
        return None
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(requires_grad=False).eval()


def plain_config(folder: Path) -> Qwen3Config | None:
    """The settings of a checkpoint in the plain form; None if one is missing, or if others change the arithmetic."""
    found: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rotary = found.get("rope_parameters") or found.get("rope_scaling") or {}
    rotary = {"rope_theta": found.get("rope_theta"), "rope_type": rotary.get("type", "default"), **rotary}
    layer_types = found.get("layer_types") or ["full_attention"]
    if (
        found.get("model_type") != "qwen3"
        or found.get("hidden_act") != "silu"
        or found.get("quantization_config") is not None
        or found.get("use_sliding_window")
        or set(layer_types) != {"full_attention"}
        or rotary["rope_type"] != "default"
        or rotary["rope_theta"] is None
        or not set(rotary) <= {"rope_theta", "rope_type", "type"}
        or found.get("rope_theta") not in (None, rotary["rope_theta"])
        or (found.get("rope_parameters") and found.get("rope_scaling"))
        or (found.get("layer_types") and len(layer_types) != found.get("num_hidden_layers"))
    ):
        return None
    sizes = {name: found.get(name) for name in _SIZES}
    numbers = {"rope_theta": rotary["rope_theta"], "rms_norm_eps": found.get("rms_norm_eps")}
    switches = {
        "attention_bias": found.get("attention_bias", False),
        "tie_word_embeddings": found.get("tie_word_embeddings"),
    }
    # None, because transformers explains what is wrong with a value of another type.
    if (
        any(type(each) is not int for each in sizes.values())
        or any(type(each) not in (int, float) for each in numbers.values())
        or any(type(each) is not bool for each in switches.values())
    ):
        return None
    settings: dict[str, Any] = sizes | numbers | switches
    return Qwen3Config(**settings)


_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
)


def _read(
    files: Sequence[Path], wanted: Mapping[str, torch.Size], dtype: torch.dtype
) -> dict[str, torch.Tensor] | None:
    """The weights in `dtype`; None if one is unknown, of another shape, or quantised."""
    from safetensors import safe_open

    weights: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                tensor = opened.get_tensor(name)
                if tensor.shape != wanted.get(name) or not tensor.is_floating_point() or tensor.element_size() < 2:
                    return None
                # Always a copy, because the file is mapped, and may be written to while the model is in use.
                weights[name] = tensor.to(dtype, copy=True)
    return weights
