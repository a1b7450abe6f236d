"""Names of devices: what runs on them, and what is refused with what to do."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.engines.attention.interface import make_layout
from qwen3_ranker_plugins.engines.attention.layout import pack
from qwen3_ranker_plugins.engines.attention.sdpa import SdpaLayout
from qwen3_ranker_plugins.engines.devices import capability, resolve_device
from qwen3_ranker_plugins.engines.packed.options import PackedOptions
from qwen3_ranker_plugins.prompt import EncodedRequest

PASS = pack([EncodedRequest([1, 2], [[3], [4, 5]], [0, 0])])


def test_a_device_of_a_build_that_is_not_installed_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"device='npu': torch .*use 'cpu'"):
        Reranker("bundled:tiny", device="npu")


def absent(kind: str) -> bool:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator is None or accelerator.type != kind


@pytest.mark.parametrize("device", ["mps", "xpu", "hpu", "xpu:1"])
@pytest.mark.parametrize(
    "engine",
    [
        "packed",
        pytest.param("vllm_score", marks=pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")),
    ],
)
def test_a_device_that_is_not_here_is_named(device: str, engine: str) -> None:
    if not absent(device.partition(":")[0]):
        pytest.skip(f"this machine has {device}")
    with pytest.raises(InvalidInputError, match=rf"device='{device}': torch .* finds .* here: use 'cpu'"):
        Reranker("bundled:tiny", device=device, engine=engine)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "tpu:0", "meta", "cpu:1"])
def test_what_is_no_device_is_named(device: str) -> None:
    with pytest.raises(InvalidInputError, match=r"device=.*'mps'"):
        Reranker("bundled:tiny", device=device)


@pytest.mark.parametrize("device", ["mps", "xpu:0", "hpu"])
def test_other_devices_get_the_models_layers_with_sdpa(device: str) -> None:
    """Which path they take; nothing has run there."""
    assert capability(torch.device(device)) is None
    layout = make_layout(PASS, torch.device(device))
    assert isinstance(layout, SdpaLayout)
    assert layout.copy_heads
    assert PackedOptions().resolved(device, "float32") == PackedOptions(compile=False)
    with pytest.raises(InvalidInputError, match=rf"needs an NVIDIA GPU \(here: {device}\)"):
        PackedOptions(compile=True).resolved(device, "float16")


def test_amds_gpus_are_not_taken_for_nvidias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert capability(torch.device("cuda")) is None
    assert isinstance(make_layout(PASS, torch.device("cuda")), SdpaLayout)


def test_a_gpu_before_ampere_computes_in_float16_and_refuses_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch answers on a machine with a T4."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert resolve_device("auto", "auto") == ("cuda:0", "float16")
    with pytest.raises(InvalidInputError, match=r"dtype='bfloat16'.*here: 7\.5.*'float16'"):
        resolve_device("cuda", "bfloat16")
    assert isinstance(make_layout(PASS, torch.device("cuda:0")), SdpaLayout)
