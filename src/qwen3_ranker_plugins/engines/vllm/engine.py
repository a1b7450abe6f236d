"""The functions of `EngineModule` for the three engines on vLLM. Nothing here imports vLLM."""

from __future__ import annotations

from pathlib import Path

from ...checks import check_json
from ...config import EngineConfig, RerankerSettings
from ...content import ModelFiles
from ...errors import InvalidInputError
from ...model_files import find_files
from ...models import make_encoder, resolve_checkpoint, resolve_model
from .. import ResolvedSettings
from ..devices import report_idle_gpus, resolve_device
from .forms import check_form
from .options import apply_to_prompts, read_model_config, resolved
from .packed.engine import VllmPackedEngine
from .worker_engine import VllmEngine

ENGINES: dict[str, type[VllmEngine]] = {
    "vllm_score": VllmEngine,
    "vllm_generate": VllmEngine,
    "vllm_packed": VllmPackedEngine,
}


def resolve(engine: str, settings: RerankerSettings) -> ResolvedSettings:
    """See `EngineModule`. The engine's options may set the tokenizer, the template and the longest prompt."""
    import torch

    options, template, window = apply_to_prompts(engine, settings)
    checkpoint = resolve_checkpoint(
        settings.model, adapter=settings.adapter, scoring=settings.scoring, template=template
    )
    check_form(engine, checkpoint)
    folder = checkpoint.folder
    tokenizer = folder if options.tokenizer is None else resolve_model(options.tokenizer)
    encoder = make_encoder(checkpoint.spec, tokenizer, template, window)
    device, dtype = resolve_device(settings.device, settings.dtype)
    if torch.device(device).type not in ("cpu", "cuda"):
        raise InvalidInputError(
            "device", settings.device, f"engine={engine!r} runs on CUDA GPUs and on CPUs: use engine='packed'"
        )
    # With a device such as "cuda:1", vLLM uses that GPU only; otherwise it may use all visible GPUs.
    gpus = 0 if device == "cpu" else 1 if ":" in settings.device else torch.cuda.device_count()
    needed = _gpus_needed(folder, torch.cuda.get_device_properties(device).total_memory) if gpus else 1
    model = read_model_config(folder)
    complete = resolved(options, model, gpus=gpus, window=window, template=template, gpus_needed=needed)
    if gpus > 1:
        report_idle_gpus(complete.tensor_parallel_size or 1)
    # The encoder applies the instruction format, so rerankers that differ only in it share an engine.
    stored = complete.as_dict | {"instruction_format": None}
    if complete.tokenizer is not None:
        stored["tokenizer"] = str(tokenizer)
    config = EngineConfig(
        engine=engine,
        folder=folder,
        device=device,
        dtype=dtype,
        token_budget=complete.default_token_budget if settings.token_budget is None else settings.token_budget,
        files=ModelFiles.of(*checkpoint.folders, tokenizer),
        options=check_json("engine_options", stored),
        spec=checkpoint.spec,
    )
    return ResolvedSettings(folder=folder, encoder=encoder, config=config)


def create(config: EngineConfig) -> VllmEngine:
    """See `EngineModule`."""
    return ENGINES[config.engine](config)


def _gpus_needed(folder: Path, gpu_bytes: int) -> int:
    """Number of GPUs with room for the model's weights and as much again for activations, cache and other programs.

    A model that fits into one GPU is slower on several, because they exchange the activations of every layer.
    """
    weights = sum(file.stat().st_size for file in find_files(folder, "*.safetensors"))
    return -(-2 * weights // gpu_bytes) or 1
