"""The packed engine: one row of tokens with shared-prefix attention, through transformers' Qwen3 layers or compiled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from ...config import EngineConfig, RerankerSettings, check_json
from ...errors import EngineError, InvalidInputError, RankerError, UnsupportedModelError
from ...models import modified_ns, resolve_model
from ...prompt import EncodedRequest, PromptEncoder, load_tokenizer
from .. import ResolvedSettings
from ..attention.interface import ATTENTION_NAME, make_layout, register
from ..attention.layout import PackedPass, pack
from ..base import Engine, EngineCapabilities, EngineDescription, Margins
from ..devices import capability, resolve_device
from . import qwen3
from .options import PackedOptions

if TYPE_CHECKING:
    from ..attention.interface import Layout
    from .runner import CompiledPasses

# Large enough to fill the device, small enough for activations (about 24 kB a token at 0.6B in bfloat16).
_TOKEN_BUDGET = {"cpu": 4096, "cuda": 32768}


class PackedEngine(Engine):
    """All documents of all waiting requests in one forward pass, each prefix computed once, nothing padded on CPU.

    Args:
        folder: a model folder as `models.resolve_model` returns it.
        device: "auto", "cpu", "cuda" or "cuda:N"; auto takes a GPU if torch sees one.
        dtype: "auto", "float32", "bfloat16" or "float16"; auto is float32 on CPU and on a GPU the half precision
            that it computes natively.
        token_budget: tokens of one pass; None chooses by device. Memory for activations grows with it.
        options: the engine's own.

    Raises:
        UnsupportedModelError: the weights are not those of a Qwen3 decoder.
        InvalidInputError: the device is not there, or has not got what the options ask for.
        EngineError: see `CompiledPasses.warm_up`.
    """

    name = "packed"

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        token_budget: int | None = None,
        options: PackedOptions = PackedOptions(),  # noqa: B008 - it is frozen
    ) -> None:
        device, dtype = resolve_device(device, dtype)
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        self.options = options.resolved(device, dtype, capability(self.device))
        # Only the compiled path keeps passes of several threads apart, and on a CPU there is no second processor.
        overlaps = bool(self.options.compile) and self.device.type == "cuda"
        self.capabilities = EngineCapabilities(
            token_budget=_token_budget(device, token_budget),
            passes_in_flight=2 if overlaps else 1,
            encodes_meanwhile=overlaps,
        )
        tokenizer = load_tokenizer(folder)
        causal_lm = _load(folder, self.dtype)
        self._layers = "plain" if isinstance(causal_lm, qwen3.Qwen3ForCausalLM) else "transformers"
        highest = max(tokenizer.yes_id, tokenizer.no_id, *tokenizer.control.values())
        if highest >= causal_lm.config.vocab_size:
            raise UnsupportedModelError(
                f"{folder}: its tokenizer makes ids up to {highest}, its model knows {causal_lm.config.vocab_size}: "
                "they do not belong together"
            )
        # Only the difference of two rows of the output matrix is ever needed; in float32, since logits of a
        # half precision product would be rounded to steps of up to 1/16.
        rows = causal_lm.get_output_embeddings().weight
        self._label_direction = (rows[tokenizer.yes_id].float() - rows[tokenizer.no_id].float()).to(self.device)
        self._decoder: Any = None
        self._compiled: CompiledPasses | None = None
        if self.options.compile:
            self._compiled = self._make_compiled(causal_lm.model)
        else:
            self._decoder = causal_lm.model.to(self.device)

    def _make_compiled(self, model: Any) -> CompiledPasses:
        from .decoder import Decoder, kernels_support, take_weights
        from .runner import CompiledPasses

        weights = take_weights(model, self._label_direction, self.device)
        if self.options.float8:
            from .float8 import Float8Decoder

            if not kernels_support(weights):
                raise InvalidInputError("engine_options['float8']", True, "has no kernels for such heads: leave it out")
            decoder: Decoder = Float8Decoder(weights)
        else:
            decoder = Decoder(weights)
        passes = CompiledPasses(decoder, self.device, self.options, self.capabilities.token_budget)
        if self.options.warm_up:
            passes.warm_up()
        return passes

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        """One forward pass over all requests.

        Raises:
            EngineError: out of memory; the message says what to lower.
        """
        packed = pack(requests)
        try:
            margins = self._margins(packed)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            # For a CPU it is a RuntimeError like any other: "DefaultCPUAllocator: can't allocate memory".
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise EngineError(
                f"out of memory on {self.device} with {packed.num_tokens} tokens in one pass: lower token_budget "
                f"(now {self.capabilities.token_budget}), max_length, or use a smaller model"
            ) from error
        ends = np.cumsum([len(request.segments) for request in requests])[:-1]
        return [
            Margins(values=values, computed_tokens=len(request.prefix) + sum(map(len, request.segments)))
            for request, values in zip(requests, np.split(margins, ends), strict=True)
        ]

    def _margins(self, packed: PackedPass) -> NDArray[np.float32]:
        """Margins, float32 [num_documents], on the host."""
        if self._compiled is not None:
            return self._compiled.begin(packed).wait()
        margins: NDArray[np.float32] = self._forward(packed).cpu().numpy()
        return margins

    @torch.inference_mode()
    def _forward(self, packed: PackedPass) -> torch.Tensor:
        """Margins, float32 [num_documents]."""
        if self._compiled is not None:
            return self._compiled.margins(packed)
        layout, padding = self._layout(packed)
        token_ids = pad(torch.from_numpy(packed.token_ids), (0, padding)).to(self.device, non_blocking=True)
        position_ids = pad(torch.from_numpy(packed.position_ids), (0, padding)).to(self.device, non_blocking=True)[None]
        last_positions = torch.from_numpy(packed.last_positions).to(self.device, non_blocking=True)

        hidden = self._decoder.embed_tokens(token_ids)[None]
        position_embeddings = self._decoder.rotary_emb(hidden, position_ids)
        *layers, final_layer = self._decoder.layers
        for layer in layers:
            hidden = layer(hidden, position_embeddings=position_embeddings, packed=layout)
        hidden = _at_last_positions(final_layer, hidden, last_positions, position_embeddings, layout)
        last: torch.Tensor = self._decoder.norm(hidden[0].float())
        margins: torch.Tensor = last @ self._label_direction
        return margins

    def _layout(self, packed: PackedPass) -> tuple[Layout, int]:
        return make_layout(packed, self.device)

    def close(self) -> None:
        """Free the weights."""
        self._decoder = self._compiled = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def describe(self) -> EngineDescription:
        """Device, dtype, budget and versions."""
        details = {"layers": self._layers if self._compiled is None else self._compiled.decoder.pieces}
        if self.options.compile:
            details["options"] = json.dumps(self.options.as_dict)
        return EngineDescription(
            engine=self.name,
            device=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            dtype=str(self.dtype).removeprefix("torch."),
            token_budget=self.capabilities.token_budget,
            details=details,
            versions={"torch": torch.__version__, "transformers": version("transformers")},
        )


def _at_last_positions(
    layer: Any,
    hidden: torch.Tensor,
    last_positions: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    layout: object,
) -> torch.Tensor:
    """What a decoder layer returns at a few positions: [1, positions, width] of its [1, tokens, width].

    Behind the attention of the final layer no token looks at another one, so that its feed-forward part, most of a
    layer's arithmetic, is only needed where the margin is read.
    """
    attended, _ = layer.self_attn(
        hidden_states=layer.input_layernorm(hidden),
        attention_mask=None,
        position_embeddings=position_embeddings,
        packed=layout,
    )
    hidden = hidden[:, last_positions] + attended[:, last_positions]
    transformed: torch.Tensor = layer.mlp(layer.post_attention_layernorm(hidden))
    return hidden + transformed


def _token_budget(device: str, token_budget: int | None) -> int:
    return _TOKEN_BUDGET[device.partition(":")[0]] if token_budget is None else token_budget


def resolve(engine: str, settings: RerankerSettings) -> ResolvedSettings:
    """See `EngineModule`."""
    options = PackedOptions.parse(engine, settings.engine_options)
    folder = resolve_model(settings.model)
    encoder = PromptEncoder(load_tokenizer(folder), settings.template, settings.max_length)
    device, dtype = resolve_device(settings.device, settings.dtype)
    options = options.resolved(device, dtype, capability(torch.device(device)))
    config = EngineConfig(
        engine=engine,
        folder=folder,
        device=device,
        dtype=dtype,
        token_budget=_token_budget(device, settings.token_budget),
        modified_ns=modified_ns(folder),
        options=check_json("engine_options", options.as_dict),
    )
    return ResolvedSettings(folder=folder, encoder=encoder, config=config)


def create(config: EngineConfig) -> PackedEngine:
    """See `EngineModule`."""
    return PackedEngine(
        config.model_folder,
        device=config.device,
        dtype=config.dtype,
        token_budget=config.token_budget,
        options=PackedOptions.parse(config.engine, config.engine_options),
    )


def _load(folder: Path, dtype: torch.dtype) -> Any:
    """The causal language model, in evaluation mode, with our attention.

    Raises:
        UnsupportedModelError: it cannot be loaded, or would run with weights that are not the checkpoint's.
    """
    try:
        if (plain := qwen3.load(folder, dtype)) is not None:
            return plain
        from transformers import AutoConfig, AutoModelForCausalLM

        register()
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _check_config(folder, config)
        with _quiet():
            model: Any
            loaded: dict[str, Any]
            load: Any = AutoModelForCausalLM.from_pretrained  # its annotation does not know output_loading_info
            model, loaded = load(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=ATTENTION_NAME,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except RankerError:
        raise
    except Exception as error:  # a damaged folder makes transformers and what it calls raise almost anything
        raise UnsupportedModelError(
            f"{folder} cannot be loaded ({type(error).__name__}: {str(error).strip().splitlines()[0]}); "
            "download it again, or use a Qwen3-Reranker checkpoint in its original form"
        ) from error
    # transformers fills what it does not find with random numbers, which would pass for scores.
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        if problems := sorted(map(str, loaded.get(kind) or ())):
            raise UnsupportedModelError(
                f"{folder}: config.json and the weights do not fit, {kind.replace('_', ' ')}: {', '.join(problems[:3])}"
                f"{', ...' if len(problems) > 3 else ''}; download the checkpoint again"
            )
    model.requires_grad_(False)
    return model


def _check_config(folder: Path, config: Any) -> None:
    if config.model_type != "qwen3" or set(config.layer_types) != {"full_attention"}:
        raise UnsupportedModelError(
            f"{folder} holds a {config.model_type!r} model with {sorted(set(config.layer_types))} layers; the packed "
            "engine runs Qwen3 decoders with full attention: use a Qwen3-Reranker checkpoint"
        )
    rope = config.rope_parameters["rope_type"]
    if rope in ("dynamic", "longrope"):
        raise UnsupportedModelError(
            f"{folder} has {rope!r} rotary embeddings, which depend on the longest prompt of a batch, so that a score "
            "would depend on its neighbours; set a fixed one, such as 'default' or 'yarn', in config.json"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar, which leaves a thread behind, and no table of what `_load` checks itself."""
    from transformers.utils import logging as transformers_logging

    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
