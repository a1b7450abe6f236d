"""vLLM's own Qwen3 layers with shared-prefix attention: many documents in one request, and one margin for each.

Runs inside vLLM, which finds it through `register`. A step's rows are read back into a packed layout (`rows.py`), the
layers run on it with the positions that the layout gives, and the final norm and the two rows of the output matrix in
float32 at the last token of each document. There is no KV cache, and vLLM is told that this is an encoder, so that its
scheduler never cuts a row into chunks.

vLLM's configuration may hold `ranker_yes_id`, `ranker_no_id` and `ranker_marker_id`; left out, they are Qwen3's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import pad
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.models.interfaces_base import attn_type
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM, Qwen3Model
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix

from ...attention.interface import attend, make_layout
from ...packed.decoder import rms_norm
from ...token_rows import read_rows

if TYPE_CHECKING:
    from ...attention.interface import Layout

_QWEN3_IDS = {"ranker_yes_id": 9693, "ranker_no_id": 2152, "ranker_marker_id": 151643}


@attn_type("encoder_only")
class Qwen3PackedReranker(nn.Module):
    """See the module."""

    is_pooling_model: ClassVar[bool] = True
    hf_to_vllm_mapper = Qwen3Model.hf_to_vllm_mapper
    packed_modules_mapping = Qwen3ForCausalLM.packed_modules_mapping

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self._tied: bool = config.tie_word_embeddings
        yes_id, no_id, self._marker = (int(getattr(config, name, default)) for name, default in _QWEN3_IDS.items())
        self._labels = [yes_id, no_id]
        self._last_position = int(config.max_position_embeddings) - 1
        config.is_causal = False  # vLLM's layers then ask for no KV cache
        self.model: Any = Qwen3Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        known = vllm_config.compilation_config.static_forward_context
        for layer in self.model.layers:
            attention = layer.self_attn
            known.pop(attention.attn.layer_name)
            attention.attn = _SharedPrefixAttention(
                attention.num_heads, attention.num_kv_heads, attention.head_dim, attention.scaling
            )
        self.model.norm = _FinalNorm(config.hidden_size, config.rms_norm_eps)
        direction = torch.zeros(config.hidden_size, dtype=torch.float32)
        self.label_direction: torch.Tensor
        self.register_buffer("label_direction", direction, persistent=False)
        self.pooler = _MarkedTokensPooler()

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Part of vLLM's interface."""
        embedded: torch.Tensor = self.model.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,  # noqa: ARG002 - part of vLLM's interface
    ) -> torch.Tensor:
        """float32 [tokens, 2]: where a document ends its margin and 1, elsewhere zeros."""
        device = input_ids.device
        packed = read_rows(input_ids.cpu().numpy(), positions.cpu().numpy(), self._marker)
        layout, padding = make_layout(packed, device)
        ids = pad(torch.from_numpy(packed.token_ids), (0, padding)).to(device, non_blocking=True)
        # What is no row, such as vLLM's dummy step, may be longer than a prompt, and rotary embeddings are not checked.
        positions = torch.from_numpy(packed.position_ids).clamp(max=self._last_position)
        places = pad(positions, (0, padding)).to(device, non_blocking=True)
        last = torch.from_numpy(packed.last_positions).to(device, non_blocking=True)
        with _using(layout):
            hidden = self.model(ids, places, intermediate_tensors)
        output = torch.zeros(len(input_ids), 2, dtype=torch.float32, device=device)
        output[last, 0] = self.model.norm.normalize(hidden[last]) @ self.label_direction
        output[last, 1] = 1.0
        return output

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a causal language model's checkpoint, and of its output matrix the difference of two rows."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(self._without_output_matrix(weights))
        return loaded

    def _without_output_matrix(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        output_matrix = "model.embed_tokens.weight" if self._tied else "lm_head.weight"
        found = False
        for name, tensor in weights:
            if name == output_matrix:
                yes, no = tensor[self._labels].float()
                self.label_direction.copy_(yes - no)
                found = True
            if not name.startswith("lm_head."):
                yield name, tensor
        if not found:
            raise ValueError(f"the checkpoint has no {output_matrix}")


class _SharedPrefixAttention(nn.Module):
    """In the place of vLLM's attention layer: the same arguments, and no KV cache."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, scaling: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.scaling = num_heads, num_kv_heads, head_dim, scaling

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Shapes [tokens, heads * head_dim], as of this rank."""
        output: torch.Tensor = _attend(query, key, value, self.heads, self.kv_heads, self.scaling)
        return output


class _FinalNorm(nn.Module):
    """In the place of the final norm: adds the residual up, and normalises only the rows that are read, in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width), requires_grad=False)
        self.epsilon = epsilon

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden + residual, residual

    def normalize(self, hidden: torch.Tensor) -> torch.Tensor:
        """RMSNorm of [rows, width], in float32."""
        return rms_norm(hidden.float(), self.weight, self.epsilon)


class _MarkedTokensPooler(Pooler):
    """One number for each document of a request, in the order of its row: the margin, or P(yes) with an activation."""

    def get_supported_tasks(self) -> set[str]:
        return {"token_classify"}

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: Any) -> list[torch.Tensor]:
        cursor = pooling_metadata.get_pooling_cursor()
        if cursor.is_partial_prefill():
            raise RuntimeError(
                "vLLM cut a request into chunks, which the documents of a row would not survive: start it with "
                "--no-enable-chunked-prefill and --max-num-batched-tokens of at least --max-model-len"
            )
        margins = [
            rows[rows[:, 1] > 0, 0] for rows in torch.split(hidden_states, cursor.num_scheduled_tokens_cpu.tolist())
        ]
        return [
            each.sigmoid() if parameters.use_activation else each
            for each, parameters in zip(margins, pooling_metadata.pooling_params, strict=True)
        ]


# The layout of the step that runs: vLLM's layers hand nothing through to their attention.
_current: list[Layout] = []


@contextmanager
def _using(layout: Layout) -> Iterator[None]:
    _current.append(layout)
    try:
        yield
    finally:
        _current.pop()


@torch.library.custom_op("qwen3_ranker::shared_prefix_attention", mutates_args=())
def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, kv_heads: int, scaling: float
) -> torch.Tensor:
    """An operator that torch.compile, where vLLM uses it, does not look into."""

    def by_head(states: torch.Tensor, count: int) -> torch.Tensor:
        return states.view(len(states), count, -1).transpose(0, 1)[None]

    attended = attend(by_head(query, heads), by_head(key, kv_heads), by_head(value, kv_heads), _current[-1], scaling)
    return attended[0].transpose(0, 1).reshape(query.shape)


@_attend.register_fake
def _(query: torch.Tensor, *_arguments: object) -> torch.Tensor:
    return torch.empty_like(query)
