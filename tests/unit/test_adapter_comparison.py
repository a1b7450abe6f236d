"""What is in weights with an adapter next to them: only all of the adapter's changes count as a merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qwen3_ranker_plugins.models.adapter_comparison import Comparison, compare

MODULES = [f"model.layers.{layer}.{name}" for layer in range(2) for name in ("self_attn.q_proj", "mlp.up_proj")]
Weights = dict[str, torch.Tensor]
Write = Callable[..., Comparison]
CASTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "float32": lambda tensor: tensor,
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "float16": lambda tensor: tensor.half(),
    "bfloat16 in float32": lambda tensor: tensor.bfloat16().float(),
}


def base_weights() -> Weights:
    torch.manual_seed(0)
    weights = {f"{module}.weight": torch.randn(24, 32) / 30 for module in MODULES}
    return weights | {"model.norm.weight": torch.ones(32), "model.embed_tokens.weight": torch.randn(40, 32) / 30}


def adapter_weights(size: float = 0.05) -> Weights:
    torch.manual_seed(1)
    parts = {}
    for module in MODULES:
        parts[f"base_model.model.{module}.lora_A.weight"] = torch.randn(4, 32) / 6
        parts[f"base_model.model.{module}.lora_B.weight"] = torch.randn(24, 4) * size
    return parts


def merged(adapter: Weights, scale: float = 2.0, modules: list[str] = MODULES) -> Weights:
    """As peft merges LoRA and DoRA."""
    weights = base_weights()
    for module in modules:
        parts = [adapter[f"base_model.model.{module}.lora_{each}.weight"] for each in "BA"]
        weight = weights[f"{module}.weight"] + scale * (parts[0] @ parts[1])
        magnitude = adapter.get(f"base_model.model.{module}.lora_magnitude_vector")
        if magnitude is not None:
            weight = magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
        weights[f"{module}.weight"] = weight
    return weights


def with_magnitudes(adapter: Weights) -> Weights:
    torch.manual_seed(2)
    return adapter | {f"base_model.model.{each}.lora_magnitude_vector": torch.rand(24) + 0.1 for each in MODULES}


@pytest.fixture
def compared(tmp_path: Path) -> Write:
    def write(weights: Weights, adapter: Weights | None = None, **settings: Any) -> Comparison:
        folders = [tmp_path / name for name in ("weights", "adapter", "base")]
        for folder in folders:
            folder.mkdir(exist_ok=True)
        save_file(weights, folders[0] / "model.safetensors")
        save_file(adapter_weights() if adapter is None else adapter, folders[1] / "adapter_model.safetensors")
        said = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | settings
        (folders[1] / "adapter_config.json").write_text(json.dumps(said))
        save_file(base_weights(), folders[2] / "model.safetensors")
        return compare(*folders)

    return write


def is_unclear(found: Comparison) -> bool:
    return not found.is_merged and not found.is_unmerged


@pytest.mark.parametrize("cast", list(CASTS))
def test_a_cast_of_the_base_contains_no_adapter_and_a_cast_merge_does(cast: str, compared: Write) -> None:
    for adapter in (adapter_weights(), with_magnitudes(adapter_weights())):
        plain = compared({name: CASTS[cast](each) for name, each in base_weights().items()}, adapter)
        assert plain.is_unmerged, str(plain)
        assert len(plain.unmerged) == len(MODULES)
        whole = compared({name: CASTS[cast](each) for name, each in merged(adapter).items()}, adapter)
        assert whole.is_merged, str(whole)
        assert len(whole.merged) == len(MODULES)


@pytest.mark.parametrize("modules", [MODULES[:2], MODULES[::2], MODULES[:-1]])
def test_a_merge_into_some_layers_or_some_kinds_of_modules_is_unclear(modules: list[str], compared: Write) -> None:
    found = compared(merged(adapter_weights(), modules=modules))
    assert is_unclear(found)
    assert (len(found.merged), len(found.unmerged)) == (len(modules), len(MODULES) - len(modules))
    assert f"of 4 tensors that the adapter changes, {len(modules)} contain" in str(found)


def test_the_name_of_the_adapter_may_be_in_the_names_of_its_tensors(compared: Write) -> None:
    adapter = {name.replace(".weight", ".default.weight"): each for name, each in adapter_weights().items()}
    assert compared(merged(adapter_weights()), adapter).is_merged


def test_the_scale_is_that_of_the_settings(compared: Write) -> None:
    adapter = adapter_weights()
    assert compared(merged(adapter, 4.0), adapter, use_rslora=True).is_merged
    assert compared(merged(adapter, 1.0), adapter, alpha_pattern={"(q|up)_proj": 4}).is_merged
    assert is_unclear(compared(merged(adapter, 1.0), adapter))
    assert is_unclear(compared(merged(adapter, 4.0), adapter))


def test_another_training_is_unclear(compared: Write) -> None:
    torch.manual_seed(3)
    weights = {name: each + torch.randn_like(each) / 500 for name, each in merged(adapter_weights()).items()}
    assert is_unclear(compared(weights))


def test_a_change_smaller_than_a_cast_is_seen_where_there_was_no_cast(compared: Write) -> None:
    adapter = adapter_weights(size=1e-5)
    assert compared(base_weights(), adapter).is_unmerged
    assert compared(merged(adapter), adapter).is_merged
    assert not compared({name: each.bfloat16() for name, each in base_weights().items()}, adapter).is_merged


def test_an_adapter_that_changes_nothing_is_in_its_base(compared: Write) -> None:
    assert compared(base_weights(), adapter_weights(size=0)).is_merged


def test_saved_modules_count(compared: Write) -> None:
    saved = {"base_model.model.model.norm.weight": torch.full((32,), 1.5)}
    adapter = adapter_weights() | saved
    assert compared(base_weights(), adapter).is_unmerged
    assert is_unclear(compared(merged(adapter), adapter))
    assert compared(merged(adapter) | {"model.norm.weight": torch.full((32,), 1.5)}, adapter).is_merged


@pytest.mark.parametrize(
    ("parts", "settings"),
    [
        ({"ia3_l": torch.ones(24, 1)}, {"peft_type": "IA3"}),
        ({"lora_A.weight": torch.ones(4, 32), "lora_B.weight": torch.ones(24, 4), "lora_E": torch.ones(4, 1)}, {}),
        ({"lora_A.weight": torch.ones(4, 16), "lora_B.weight": torch.ones(24, 4)}, {}),
        ({"lora_A.weight": torch.ones(4, 32), "lora_B.weight": torch.ones(24, 4)}, {"init_lora_weights": "pissa"}),
    ],
)
def test_a_kind_without_a_formula_is_only_known_not_to_be_merged(
    parts: Weights, settings: dict[str, Any], compared: Write
) -> None:
    adapter = {f"base_model.model.{each}.{name}": part.clone() for each in MODULES for name, part in parts.items()}
    assert compared(base_weights(), adapter, **settings).is_unmerged
    found = compared(merged(adapter_weights()), adapter, **settings)
    assert is_unclear(found)
    assert len(found.unknown) == len(MODULES)


def test_what_cannot_be_compared_is_unclear(compared: Write) -> None:
    quantised = {name: (each * 100).to(torch.int8) for name, each in base_weights().items()}
    assert is_unclear(compared(quantised))
