"""A Qwen3 of vLLM with shared-prefix attention: many documents in one prompt, one margin for each.

Runs inside vLLM, which imports it through `register`. `token_rows.read_rows` turns the rows of a step into a packed
layout. Where its kernels run, our decoder computes the margins with the weights that vLLM has loaded (`decoder.py`);
before that, it is compared with vLLM's layers on a short pass. Elsewhere vLLM's layers run on the layout with its
positions; the final norm and the difference of the labels' rows of the output matrix are applied in float32 at the last
token of each document. There is no KV cache. The model declares itself an encoder, so vLLM's scheduler does not cut
rows into chunks.

The model's configuration may hold `ranker_yes_id`, `ranker_no_id` and `ranker_marker_id`. Their defaults are the ids of
Qwen3's vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import pad, rms_norm
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.models.interfaces_base import attn_type
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM, Qwen3Model
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix

from ....errors import EngineError
from ...attention.interface import make_layout
from ...attention.sdpa import SdpaLayout
from ...packed.trial import check, trial_pass
from ...token_rows import read_rows
from . import decoder

if TYPE_CHECKING:
    from ...attention.interface import Layout
    from ...attention.layout import PackedPass
    from ...packed.decoder import DecoderWeights
    from ...packed.size_classes import SizeClassRunner

_logger = logging.getLogger(__name__)

_QWEN3_IDS = {"ranker_yes_id": 9693, "ranker_no_id": 2152, "ranker_marker_id": 151643}


@attn_type("encoder_only")
class Qwen3PackedReranker(nn.Module):
    """The model class that vLLM loads, see the module's docstring.

    Attributes:
        facts: what `describe` shows: "layers", and "fallback" if our decoder failed the comparison with vLLM's layers.
    """

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
        self._config, self._runner_arguments = (
            config,
            {
                "token_budget": vllm_config.scheduler_config.max_num_batched_tokens,
                "cuda_graphs": not vllm_config.model_config.enforce_eager,
            },
        )
        self._obstacle = decoder.obstacle(vllm_config)
        self._untried: DecoderWeights | None = None
        self._runner: SizeClassRunner | None = None
        self.facts = {"layers": f"vLLM's, because {self._obstacle}"}

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of token ids, [tokens, hidden size]; vLLM's interface requires it."""
        embedded: torch.Tensor = self.model.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,  # noqa: ARG002 - vLLM passes it
    ) -> torch.Tensor:
        """float32 [tokens, 2]: the margin and 1 at the last token of each document, zeros elsewhere."""
        device = input_ids.device
        packed = read_rows(input_ids.cpu().numpy(), positions.cpu().numpy(), self._marker)
        if self._untried is not None:
            weights, self._untried = self._untried, None
            self._try_our_decoder(weights)
        if self._runner is not None:
            margins = self._runner.run(packed)
        else:
            margins = self._margins_of_layers(self.model, packed, make_layout(packed, device), intermediate_tensors)
        last = torch.from_numpy(packed.last_positions).to(device, non_blocking=True)
        output = torch.zeros(len(input_ids), 2, dtype=torch.float32, device=device)
        output[last, 0] = margins
        output[last, 1] = 1.0
        return output

    def _margins_of_layers(
        self, run: Any, packed: PackedPass, layout: Layout, intermediate_tensors: Any = None
    ) -> torch.Tensor:
        """Margins by vLLM's layers, float32 [num_documents], on the device.

        Args:
            run: the model of the layers, or its `forward`, which vLLM does not compile.
            packed, layout: the pass.
            intermediate_tensors: of vLLM's interface.
        """
        device = self.label_direction.device
        ids = pad(torch.from_numpy(packed.token_ids), (0, layout.padding)).to(device, non_blocking=True)
        # vLLM's dummy steps may be longer than any prompt, and the rotary embedding does not check positions.
        positions = torch.from_numpy(packed.position_ids).clamp(max=self._last_position)
        places = pad(positions, (0, layout.padding)).to(device, non_blocking=True)
        last = torch.from_numpy(packed.last_positions).to(device, non_blocking=True)
        with _using(layout):
            hidden = run(ids, places, intermediate_tensors)
        margins: torch.Tensor = self.model.norm.normalize(hidden[last]) @ self.label_direction
        return margins

    def _try_our_decoder(self, weights: DecoderWeights) -> None:
        """Run our decoder from now on, if it gives the margins of vLLM's layers."""
        packed = trial_pass()
        layout = SdpaLayout(packed, copy_heads=weights.embedding.is_cuda)
        try:
            expected = self._margins_of_layers(self.model.forward, packed, layout).cpu()
            runner = decoder.runner_of(weights, **self._runner_arguments)
            check(runner, expected)
        except torch.OutOfMemoryError:
            raise
        except (EngineError, RuntimeError) as error:  # the latter from CUDA and from Triton
            reason = f"our decoder cannot be used on this GPU: {str(error).strip().splitlines()[0]}"
            self.facts = {"layers": "vLLM's", "fallback": reason}
            _logger.warning("%s; vLLM's layers run instead, which are slower and give the same margins", reason)
        else:
            self._runner = runner
            self.facts = {"layers": runner.decoder.description}

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the checkpoint of a causal language model; of its output matrix, only the difference of two rows."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(self._without_output_matrix(weights))
        if self._obstacle is None:
            self._runner = None
            self._untried = decoder.weights_of(self.model, self.label_direction, self._config)
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
    """Replaces vLLM's attention layer: the same arguments, no KV cache."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, scaling: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.scaling = num_heads, num_kv_heads, head_dim, scaling

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Shapes [tokens, heads * head_dim], with the heads of this tensor-parallel rank."""
        output: torch.Tensor = _attend(query, key, value, self.heads, self.kv_heads, self.scaling)
        return output


class _FinalNorm(nn.Module):
    """Replaces the final norm: adds the residual, and normalises in float32 only the tokens that are read."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width), requires_grad=False)
        self.epsilon = epsilon

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden + residual, residual

    def normalize(self, hidden: torch.Tensor) -> torch.Tensor:
        """RMSNorm over the last dimension of [tokens, hidden size], in float32."""
        return rms_norm(hidden.float(), self.weight.shape, self.weight.float(), self.epsilon)


class _MarkedTokensPooler(Pooler):
    """One number for each document of a prompt, in the order of the row: the margin, or P(yes) with use_activation."""

    def get_supported_tasks(self) -> set[str]:
        return {"token_classify"}

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: Any) -> list[torch.Tensor]:
        cursor = pooling_metadata.get_pooling_cursor()
        if cursor.is_partial_prefill():
            raise RuntimeError(
                "vLLM cut a row of documents into chunks, which cannot be scored: start vLLM with "
                "--no-enable-chunked-prefill and --max-num-batched-tokens of at least --max-model-len"
            )
        margins = [
            rows[rows[:, 1] > 0, 0] for rows in torch.split(hidden_states, cursor.num_scheduled_tokens_cpu.tolist())
        ]
        return [
            each.sigmoid() if parameters.use_activation else each
            for each, parameters in zip(margins, pooling_metadata.pooling_params, strict=True)
        ]


# The layout of the running step, kept here because vLLM's layers pass no further argument to their attention.
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
    """A custom operator, so that torch.compile, where vLLM uses it, does not trace into the attention."""

    def by_head(states: torch.Tensor, count: int) -> torch.Tensor:
        return states.view(len(states), count, -1).transpose(0, 1)[None]

    attended = _current[-1].attend(by_head(query, heads), by_head(key, kv_heads), by_head(value, kv_heads), scaling)
    return attended[0].transpose(0, 1).reshape(query.shape)


@_attend.register_fake
def _(query: torch.Tensor, *_arguments: object) -> torch.Tensor:
    return torch.empty_like(query)
