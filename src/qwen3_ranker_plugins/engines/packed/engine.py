"""The packed engine: one row of tokens with shared-prefix attention, through our own decoder or the model's layers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...checks import check_json
from ...config import EngineConfig, RerankerSettings
from ...content import ModelFiles
from ...errors import EngineError
from ...models import make_encoder, read_spec, resolve_checkpoint
from ...models.weights import find_not_finite
from ...prompt import EncodedRequest, load_tokenizer
from .. import ResolvedSettings
from ..attention.interface import make_layout
from ..attention.layout import pack
from ..base import Engine, EngineCapabilities, EngineDescription, Margins
from ..devices import capability, report_idle_gpus, resolve_device
from .checkpoint import LoadedModel, load_model, read_config
from .model_layers import ModelLayers
from .options import PackedOptions
from .trial import check, expected_margins, needs_trial

if TYPE_CHECKING:
    from ...models import ModelSpec
    from ..attention.layout import PackedPass
    from .size_classes import SizeClassRunner

_logger = logging.getLogger(__name__)

# Large enough to fill the device, small enough for activations (about 24 kB a token at 0.6B in bfloat16).
_TOKEN_BUDGET = {"cpu": 4096, "cuda": 32768}


class PackedEngine(Engine):
    """All documents of all waiting requests in one forward pass, each prefix computed once, nothing padded on CPU.

    Args:
        folder: a model folder as `models.resolve_model` returns it.
        device, dtype: see `devices.resolve_device`.
        token_budget: tokens of one pass; None chooses by device. Memory for activations grows with it.
        options: the engine's own.
        spec: how the model judges a document; None reads it from the folder.
        adapter: folder of a LoRA adapter that is merged into the weights.

    Raises:
        UnsupportedModelError: the weights are not those of a Qwen3 decoder.
        InvalidInputError: the device does not exist, or cannot do what an option asks for.
        EngineError: see `SizeClassRunner.warm_up`.
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
        spec: ModelSpec | None = None,
        adapter: Path | None = None,
    ) -> None:
        device, dtype = resolve_device(device, dtype)
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        self.options = _resolved_options(options, folder, device, dtype)
        budget = _token_budget(device, token_budget)
        self.spec = read_spec(folder) if spec is None else spec

        def load() -> LoadedModel:
            return load_model(folder, self.spec, load_tokenizer(folder), self.dtype, adapter)

        loaded = load()
        self._direction, self._offset = loaded.direction.to(self.device), loaded.offset
        self._layers: ModelLayers | None = None
        self._runner: SizeClassRunner | None = None
        self._fallback = ""
        self._folder = folder
        self._weights_are_finite: bool | None = None  # not known
        self._cause = ""
        if not self.options.compile:
            self._layers = self._model_layers(loaded)
        elif needs_trial(capability(self.device)):
            expected = expected_margins(self._model_layers(loaded), self.device)
            try:
                runner = self._make_runner(loaded.decoder, budget)
                check(runner, expected)
            except torch.OutOfMemoryError:
                raise
            except (EngineError, RuntimeError) as error:  # the latter from CUDA and from Triton
                self._fall_back(f"our decoder cannot be used on this GPU: {str(error).strip().splitlines()[0]}")
                self._layers = self._model_layers(load())  # our decoder took the weights of the other copy
            else:
                self._runner = runner
        else:
            self._runner = self._make_runner(loaded.decoder, budget)
        overlaps = self._runner is not None  # only our decoder keeps the passes of several threads apart
        self.capabilities = EngineCapabilities(
            token_budget=budget, passes_in_flight=2 if overlaps else 1, encodes_meanwhile=overlaps
        )

    def _model_layers(self, loaded: LoadedModel) -> ModelLayers:
        return ModelLayers(loaded.decoder, self._direction, self.device)

    def _fall_back(self, reason: str) -> None:
        """Log once, and report in `describe`, that the slower layers run."""
        self._fallback = reason
        self.options = PackedOptions(compile=False)
        _logger.warning("%s; the model's own layers run instead, which are slower and give the same margins", reason)

    def _make_runner(self, model: Any, token_budget: int) -> SizeClassRunner:
        """A runner of our decoder, which takes the model's weights."""
        from .decoder import take_weights
        from .size_classes import make_runner

        found = capability(self.device) or (0, 0)  # `options` select our decoder on NVIDIA GPUs only
        weights = take_weights(model, self._direction, self.device)
        return make_runner(weights, self.device, found, self.options, token_budget, owns_weights=True)

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        """One forward pass over all requests.

        Raises:
            EngineError: out of memory; the message says what to lower.
        """
        packed = pack(requests)
        try:
            margins = self._margins(packed)
            if self._offset:
                margins = margins + np.float32(self._offset)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            # On a CPU, torch raises a plain RuntimeError: "DefaultCPUAllocator: can't allocate memory".
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise EngineError(
                f"out of memory on {self.device} with {packed.num_tokens} tokens in one pass: lower token_budget "
                f"(now {self.capabilities.token_budget}) or max_length, or use a smaller model"
            ) from error
        ends = np.cumsum([len(request.segments) for request in requests])[:-1]
        cause = self._cause_of_faults(margins)
        return [
            Margins(
                values=values,
                computed_tokens=request.num_tokens,
                failures={
                    index: f"its margin is {value}{cause}"
                    for index, value in enumerate(values if cause else ())
                    if not np.isfinite(value)
                },
            )
            for request, values in zip(requests, np.split(margins, ends), strict=True)
        ]

    def _cause_of_faults(self, margins: NDArray[np.float32]) -> str:
        """Why margins of a pass are not finite, and what to do; "" if all are finite, or the cause is not known."""
        finite = np.isfinite(margins)
        if finite.any():
            self._weights_are_finite = True
        if finite.all():
            return ""
        # Weights that are not finite spoil every margin, so they are looked at only if none has been finite so far.
        if self._weights_are_finite is None:
            self._weights_are_finite = (found := find_not_finite(self._folder)) is None
            if found is not None:
                self._cause = f", because {found} holds values that are not finite: download the file again"
        if self._weights_are_finite and self.dtype == torch.float16:
            return ", because numbers exceed 65504, the largest of float16: use dtype='bfloat16' or 'float32'"
        return self._cause

    def _margins(self, packed: PackedPass) -> NDArray[np.float32]:
        """Margins, float32 [num_documents], on the host."""
        if self._runner is not None:
            return self._runner.queue(packed).wait_for_margins()
        margins: NDArray[np.float32] = self.forward(packed).cpu().numpy()
        return margins

    def forward(self, packed: PackedPass) -> torch.Tensor:
        """Margins, float32 [num_documents], on the device, where the next pass may overwrite them.

        Not thread-safe; `score` is, as far as `capabilities` allow.

        Raises:
            EngineError: the engine was closed.
        """
        if self._runner is not None:
            return self._runner.run(packed)
        if self._layers is None:
            raise EngineError("the engine was closed: make a new reranker")
        return self._layers.margins(packed, make_layout(packed, self.device))

    def close(self) -> None:
        """Free the weights."""
        self._layers = self._runner = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def describe(self) -> EngineDescription:
        """Device, dtype, budget and versions."""
        details = {}
        if self._runner is not None:
            details["layers"] = self._runner.decoder.description
        elif self._layers is not None:
            details["layers"] = self._layers.source
        if self._fallback:
            details["fallback"] = self._fallback
        if self.options.compile:
            details["options"] = json.dumps(self.options.as_dict)
        return EngineDescription(
            engine=self.name,
            device=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            token_budget=self.capabilities.token_budget,
            details=details,
            versions={"torch": torch.__version__, "transformers": version("transformers")},
        )


def _token_budget(device: str, token_budget: int | None) -> int:
    return _TOKEN_BUDGET["cuda" if device.startswith("cuda") else "cpu"] if token_budget is None else token_budget


def resolve(engine: str, settings: RerankerSettings) -> ResolvedSettings:
    """See `EngineModule`."""
    options = PackedOptions.parse(engine, settings.engine_options)
    checkpoint = resolve_checkpoint(
        settings.model, adapter=settings.adapter, scoring=settings.scoring, template=settings.template
    )
    folder = checkpoint.folder
    encoder = make_encoder(checkpoint.spec, folder, settings.template, settings.max_length)
    device, dtype = resolve_device(settings.device, settings.dtype)
    if settings.device in ("auto", "cuda"):
        report_idle_gpus(device.startswith("cuda"))
    options = _resolved_options(options, folder, device, dtype)
    config = EngineConfig(
        engine=engine,
        folder=folder,
        device=device,
        dtype=dtype,
        token_budget=_token_budget(device, settings.token_budget),
        files=ModelFiles.of(*checkpoint.folders),
        options=check_json("engine_options", options.as_dict),
        spec=checkpoint.spec,
        adapter=checkpoint.adapter,
    )
    return ResolvedSettings(folder=folder, encoder=encoder, config=config)


def create(config: EngineConfig) -> PackedEngine:
    """See `EngineModule`."""
    return PackedEngine(
        config.model_folder,
        device=config.device,
        dtype=config.dtype,
        token_budget=config.token_budget,
        options=PackedOptions.from_config(config),
        spec=config.spec,
        adapter=config.adapter,
    )


def _resolved_options(options: PackedOptions, folder: Path, device: str, dtype: str) -> PackedOptions:
    found = capability(torch.device(device))
    return options.resolved(device, dtype, found, None if found is None else read_config(folder))
