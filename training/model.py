"""Qwen3 in plain PyTorch, with rows of one head and many documents for training.

Parameter names equal those of transformers' Qwen3ForCausalLM (the head is tied to the embeddings), so a state
dict moves between both unchanged. A row is `[head, padded | document 1 | document 2 | ...]`: every document
sees its row's head and itself, so a query's head is computed once for all of its documents.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ModelShape:
    vocab_size: int = 14_464
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 640
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class RMSNorm(nn.Module):
    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, states: Tensor) -> Tensor:
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        scaled: Tensor = self.weight * wide
        return scaled.to(states.dtype)


def rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = states.chunk(2, -1)
    return states * cosine + torch.cat([-right, left], -1) * sine


class Attention(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.num_attention_heads * shape.head_dim
        narrow = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, narrow, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, narrow, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)

    def forward(self, states: Tensor, cosine: Tensor, sine: Tensor, attend: Attend) -> Tensor:
        rows, length, _ = states.shape
        size = self.shape.head_dim
        dtype = states.dtype

        def heads(projection: nn.Linear) -> Tensor:
            return functional.linear(states, projection.weight.to(dtype)).view(rows, length, -1, size).transpose(1, 2)

        query = rotate(self.q_norm(heads(self.q_proj)), cosine, sine)
        key = rotate(self.k_norm(heads(self.k_proj)), cosine, sine)
        mixed = attend(query, key, heads(self.v_proj)).transpose(1, 2).reshape(rows, length, -1)
        return functional.linear(mixed, self.o_proj.weight.to(dtype))


class MLP(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        dtype = states.dtype
        gate = functional.linear(states, self.gate_proj.weight.to(dtype))
        up = functional.linear(states, self.up_proj.weight.to(dtype))
        return functional.linear(functional.silu(gate) * up, self.down_proj.weight.to(dtype))


class Layer(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, states: Tensor, cosine: Tensor, sine: Tensor, attend: Attend, dropout: float) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(states), cosine, sine, attend)
        states = states + functional.dropout(mixed, dropout)
        added: Tensor = functional.dropout(self.mlp(self.post_attention_layernorm(states)), dropout)
        return states + added


class Backbone(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class TinyQwen3(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)

    def initialise(self, embeddings: Tensor | None, seed: int) -> None:
        """Normal weights; layers 1 to 3 start with equal query and key projections within a kv group.

        Equal tokens then attend to each other from the first step, which is what term matching needs.
        """
        torch.manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.1 if "embed" in name else 0.03
                nn.init.normal_(parameter, std=scale / (2 if "o_proj" in name or "down_proj" in name else 1))
        if embeddings is not None:
            self.model.embed_tokens.weight.data.copy_(embeddings)
        group = self.shape.num_attention_heads // self.shape.num_key_value_heads
        for number in range(1, min(4, self.shape.num_hidden_layers)):
            layer = self.model.layers[number]
            if not isinstance(layer, Layer):
                raise TypeError(f"layer {number} is no Layer")
            attention = layer.self_attn
            keys = attention.k_proj.weight.data.view(self.shape.num_key_value_heads, self.shape.head_dim, -1)
            attention.q_proj.weight.data.copy_(keys.repeat_interleave(group, 0).flatten(0, 1))

    def hidden(
        self, ids: Tensor, positions: Tensor, attend: Attend, dtype: torch.dtype, dropout: float = 0.0
    ) -> Tensor:
        """States before the last norm: (rows, tokens, hidden_size). `dropout` thins what each layer adds."""
        frequencies = self.shape.rope_theta ** (
            -torch.arange(0, self.shape.head_dim, 2, device=ids.device, dtype=torch.float32) / self.shape.head_dim
        )
        angles = positions[:, None, :, None].float() * frequencies
        angles = torch.cat([angles, angles], -1)
        cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
        states = functional.embedding(ids, self.model.embed_tokens.weight).to(dtype)
        for layer in self.model.layers:
            states = layer(states, cosine, sine, attend, dropout)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Logits (.., vocab_size) of chosen states, in float32: in bfloat16 they lie a sixteenth apart and tie."""
        normed: Tensor = self.model.norm(states.float())
        return functional.linear(normed, self.model.embed_tokens.weight)


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


@dataclass(frozen=True)
class RowLayout:
    """`head` tokens, then `documents` slots of `slot` tokens each (content, suffix, padding)."""

    head: int
    documents: int
    slot: int

    @property
    def length(self) -> int:
        return self.head + self.documents * self.slot

    def allowed(self, query: Tensor, key: Tensor, head_length: Tensor) -> Tensor:
        """Whether position `query` sees position `key` in a row whose head holds `head_length` tokens."""
        same_document = (query - self.head) // self.slot == (key - self.head) // self.slot
        in_head = key < self.head
        both_head = (query < self.head) & in_head & (key <= query)
        from_document = (query >= self.head) & in_head & (key < head_length)
        within = (query >= self.head) & (key >= self.head) & same_document & (key <= query)
        return both_head | from_document | within

    def block_mask(self, head_lengths: Tensor) -> BlockMask:
        """For rows whose head lengths are read when attention runs: every block that any length shows asks the mask.

        The blocks of the longest head are computed, and none counts as wholly visible: which blocks of the head are
        whole, cut or hidden changes with the head's length.
        """

        def mask(b: Tensor, _h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            return self.allowed(q, kv, head_lengths[b])

        head_lengths.fill_(self.head)
        loose = create_block_mask(mask, None, None, self.length, self.length, device=head_lengths.device.type)
        blocks = loose.to_dense()
        return BlockMask.from_kv_blocks(
            blocks.sum(-1, dtype=torch.int32),
            blocks.argsort(dim=-1, descending=True, stable=True).to(torch.int32),
            BLOCK_SIZE=loose.BLOCK_SIZE,
            mask_mod=mask,
            seq_lengths=(self.length, self.length),
        )

    def flex(self, head_lengths: Tensor) -> Attend:
        """FlexAttention over rows; reads `head_lengths` (rows,) at run time, so one block mask serves every step."""
        block_mask = self.block_mask(head_lengths)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            mixed: Tensor = flex_attention(query, key, value, block_mask=block_mask, enable_gqa=True)
            return mixed

        return attend

    def dense(self, head_lengths: Tensor) -> Attend:
        """The same with an explicit mask, for the CPU and as the reference in tests."""
        places = torch.arange(self.length, device=head_lengths.device)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            mask = self.allowed(places[None, :, None], places[None, None, :], head_lengths[:, None, None])
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None], enable_gqa=True)

        return attend
