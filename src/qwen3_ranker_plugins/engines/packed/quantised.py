"""Turns quantised weights into plain ones: through transformers where it can on a CPU, else by the published format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...errors import MissingDependencyError, UnsupportedModelError
from ...models.json_files import read_json
from ...models.weights import read_headers

#: `quant_method` -> the module that transformers needs to turn it into plain weights (None: nothing), the pip command.
_DEQUANTISED = {
    "bitsandbytes": ("bitsandbytes", "pip install bitsandbytes"),
    "compressed-tensors": ("compressed_tensors", "pip install compressed-tensors"),
    "fp8": (None, ""),
}
#: Other `quant_method`s whose checkpoints of dense models vLLM 0.32 computes with.
_READ_BY_VLLM = {
    "auto-round",
    "fp_quant",
    "gptq",
    "modelopt",
    "modelopt_fp4",
    "modelopt_mixed",
    "modelopt_mxfp8",
    "quark",
    "torchao",
}
#: Ends of the names of what bitsandbytes stores with a weight of 4 bits and of 8 bits.
_OF_BITSANDBYTES = (".absmax", ".SCB")
#: Ends of the names of the scales with which vLLM quantises cached keys and values, and queries for them.
OF_CACHE = (".k_scale", ".v_scale", ".q_scale")
_OF_ACTIVATIONS = (".input_scale", ".output_scale", *OF_CACHE)
# AutoAWQ's order of the eight columns in a 32-bit number, lowest bits first, inverted.
_AWQ_COLUMNS = (0, 4, 1, 5, 2, 6, 3, 7)


def dequantising(folder: Path, method: str, config: Any) -> Any:
    """The quantisation's configuration, changed so that loading gives plain weights.

    Raises:
        UnsupportedModelError: transformers cannot do that; the message names the engine that reads such weights.
        MissingDependencyError: a package is missing.
    """
    if method not in _DEQUANTISED:
        raise _not_read(folder, repr(method), by_vllm=method in _READ_BY_VLLM)
    module, command = _DEQUANTISED[method]
    if module is not None and find_spec(module) is None:
        raise MissingDependencyError(f"{folder} holds weights quantised as {method!r}, which needs {module}: {command}")
    found = config.quantization_config
    settings = found if isinstance(found, dict) else found.to_dict()
    if method == "compressed-tensors" and not settings.get("config_groups"):
        raise UnsupportedModelError(
            f"{folder}/config.json has a quantization_config of 'compressed-tensors' with "
            f"config_groups={settings.get('config_groups')!r}, which does not say how the weights are stored: download "
            "the file again, or, if the weights are not quantised, remove quantization_config"
        )
    if method == "bitsandbytes" and not any(name.endswith(_OF_BITSANDBYTES) for name in read_headers(folder)):
        raise UnsupportedModelError(
            f"{folder}/config.json has a quantization_config of 'bitsandbytes', and its weights are not quantised (no "
            f"tensor's name ends in {' or '.join(_OF_BITSANDBYTES)}): remove quantization_config"
        )
    if method == "compressed-tensors":
        # No keys and values are cached in fewer bits here, so scales for them need not be stored.
        return dict(found) | {"dequantize": True, "kv_cache_scheme": None}
    return dict(found) if method == "bitsandbytes" else dict(found) | {"dequantize": True}


def check_compressed(folder: Path, hidden_size: int) -> None:
    """Make sure that config.json describes compressed-tensors weights as they are.

    Whether they are quantised at all, and with how many bits where they are packed into numbers of 32 bits: the library
    unpacks with any number of bits, without a comparison of shapes.

    Raises:
        UnsupportedModelError: they are otherwise.
    """
    headers = read_headers(folder)
    if not any(name.endswith(".weight_scale") for name in headers):
        raise UnsupportedModelError(
            f"{folder}/config.json has a quantization_config of 'compressed-tensors', and its weights are not "
            "quantised (no tensor's name ends in .weight_scale): remove quantization_config"
        )
    groups = read_json(folder / "config.json")["quantization_config"]["config_groups"].values()
    if not all(isinstance(group, dict) and group.get("weights") for group in groups):  # presets of the library
        return
    stated = {group["weights"]["num_bits"] for group in groups}
    columns = {math.ceil(hidden_size / (32 // bits)) for bits in stated}
    for name, (_, tensor) in headers.items():
        if name.endswith(".q_proj.weight_packed") and tensor["dtype"] == "I32" and tensor["shape"][1] not in columns:
            raise UnsupportedModelError(
                f"{folder}/config.json says num_bits={sorted(stated)} in its quantization_config, and {name} has "
                f"{tensor['shape'][1]} columns of 32 bits for {hidden_size} numbers: write the num_bits with which the "
                "weights were quantised, or download the checkpoint again"
            )


def _not_read(folder: Path, scheme: str, *, by_vllm: bool) -> UnsupportedModelError:
    remedy = "engine='vllm_score', which computes with them, or the unquantised checkpoint"
    if not by_vllm:
        remedy = "the unquantised checkpoint, because vLLM does not read them either"
    return UnsupportedModelError(
        f"{folder} holds weights quantised as {scheme}, which the packed engine does not read: use {remedy}"
    )


def plain_tensors(folder: Path, method: str, config: Any, dtype: torch.dtype) -> dict[str, torch.Tensor] | None:
    """All tensors of a folder, with plain matrices instead of quantised ones; None if transformers reads `method`.

    Args:
        folder: with the weights.
        method: `quant_method` of config.json.
        config: `quantization_config` of config.json.
        dtype: of unpacked matrices.

    Raises:
        UnsupportedModelError: a tensor is missing, or in a variant of the format that is not read here.
    """
    headers = read_headers(folder)
    scales = [name for name in headers if name.endswith(".weight_scale")]
    if method == "fp8" and not scales:
        _check_blocks(headers)
    unpack = _scaled_rows if method == "fp8" and scales else _UNPACKED.get(method)
    if unpack is None:
        return None
    from safetensors.torch import load_file

    settings = config if isinstance(config, dict) else config.to_dict()
    if variant := _unknown_variant(method, settings):
        raise _not_read(folder, f"{method!r} with {variant}", by_vllm=_is_read_by_vllm(method, settings))
    if method == "gptq" and settings.get("desc_act") and not any(name.endswith(".g_idx") for name in headers):
        raise UnsupportedModelError(
            f"{folder}/config.json says desc_act=true, and no tensor's name ends in .g_idx, which would say which "
            "inputs form a group: download the checkpoint again"
        )
    found: dict[str, torch.Tensor] = {}
    for path in sorted({path for path, _ in headers.values() if not path.name.startswith("adapter_")}):
        found |= load_file(path)
    try:
        unpack(folder, found, dtype)
    except (KeyError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{folder}: its weights are not in the format of {method!r} ({type(error).__name__}: {error}): download "
            "the checkpoint again"
        ) from error
    return found


def _is_read_by_vllm(method: str, settings: dict[str, Any]) -> bool:
    """Whether vLLM 0.32 reads the variant of a method that is unpacked here."""
    kind = settings.get("checkpoint_format", settings.get("format", "gptq"))
    return method == "gptq" and kind == "gptq" and settings.get("bits") in (4, 8) and settings.get("sym", True)


def _unknown_variant(method: str, settings: dict[str, Any]) -> str:
    """The setting that makes another format of the packed numbers; "" if there is none."""
    bits = settings.get("bits", settings.get("w_bit"))
    bits = int(bits) if isinstance(bits, str) and bits.isdecimal() else bits
    if method == "awq":
        version = str(settings.get("version", settings.get("format", "gemm"))).lower()
        if version != "gemm" or bits != 4 or settings.get("zero_point") is False:
            return f"version={version!r}, bits={bits!r}, zero_point={settings.get('zero_point')!r}"
    if method == "gptq":
        kind = settings.get("checkpoint_format", settings.get("format", "gptq"))
        if kind != "gptq" or bits not in (2, 4, 8) or settings.get("dynamic"):
            return f"checkpoint_format={kind!r}, bits={bits!r}, dynamic={settings.get('dynamic')!r}"
    return ""


def _check_blocks(headers: Mapping[str, tuple[Path, dict[str, Any]]]) -> None:
    """Make sure that each float8 matrix has its scales, because transformers takes 1 for those that are missing."""
    scales = {name for name in headers if name.endswith(".weight_scale_inv")}
    due = {f"{name}_scale_inv" for name, (_, entry) in headers.items() if entry["dtype"].startswith("F8")}
    if odd := sorted(scales ^ due):
        path = next(
            path for name, (path, _) in headers.items() if name == odd[0].removesuffix("_scale_inv") or name == odd[0]
        )
        why = "has a float8 matrix and no" if odd[0] in due else "has no float8 matrix for"
        raise UnsupportedModelError(f"{path} {why} {odd[0]}: download the checkpoint again")


def _scaled_rows(folder: Path, found: dict[str, torch.Tensor], _dtype: torch.dtype) -> None:
    """Each row of a float8 matrix is multiplied by its scale, or all by one.

    transformers reads fbgemm's files on a GPU only, and "fp8" only with scales of blocks. Scales of activations and of
    cached keys and values are left out, because those are not quantised here.
    """
    scales = {name: found.pop(name) for name in list(found) if name.endswith(".weight_scale")}
    for name in [each for each in found if each.endswith(_OF_ACTIVATIONS)]:
        del found[name]
    for name, tensor in found.items():
        if tensor.dtype == torch.float8_e4m3fn:
            scale = scales.pop(f"{name}_scale", None)
            if scale is None or scale.numel() not in (1, len(tensor)):
                raise UnsupportedModelError(
                    f"{folder}: {name} is in float8 without a scale for each of its {len(tensor)} rows "
                    f"({name}_scale); download the checkpoint again"
                )
            found[name] = tensor.float() * scale.float().reshape(-1, 1)
    if scales:
        raise UnsupportedModelError(f"{folder}: {min(scales)} belongs to no float8 weight: download it again")


def _unpack_awq(_folder: Path, found: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """AutoAWQ's "gemm" layout: weight[input, output] = (number - zero of its group) * scale of its group."""
    for name in [each.removesuffix(".qweight") for each in found if each.endswith(".qweight")]:
        packed, zeros, scales = (found.pop(f"{name}.{part}") for part in ("qweight", "qzeros", "scales"))
        numbers, zeros = (
            _numbers(each, 4, 1).reshape(len(each), -1, 8)[..., _AWQ_COLUMNS].flatten(1) for each in (packed, zeros)
        )
        rows = len(numbers) // len(zeros)
        zeros, scales = (each.repeat_interleave(rows, 0) for each in (zeros, scales.float()))
        found[f"{name}.weight"] = ((numbers - zeros) * scales).T.to(dtype).contiguous()


def _unpack_gptq(folder: Path, found: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """AutoGPTQ's first layout, which stores zeros minus one: weight[input, output] = (number - zero - 1) * scale."""
    for name in [each.removesuffix(".qweight") for each in found if each.endswith(".qweight")]:
        packed, zeros, scales = (found.pop(f"{name}.{part}") for part in ("qweight", "qzeros", "scales"))
        bits = 32 * zeros.shape[1] // scales.shape[1]
        numbers, zeros = _numbers(packed, bits, 0), (_numbers(zeros, bits, 1) + 1) % 2**bits
        group = found.pop(f"{name}.g_idx", None)
        if group is None:
            group = torch.arange(len(numbers)) // (len(numbers) // len(scales))
        group = group.long()
        if len(group) != len(numbers) or not 0 <= int(group.min()) <= int(group.max()) < len(scales):
            raise UnsupportedModelError(
                f"{folder}: {name}.g_idx does not give each of {len(numbers)} inputs one of {len(scales)} groups: "
                "download the checkpoint again"
            )
        found[f"{name}.weight"] = ((numbers - zeros[group]) * scales.float()[group]).T.to(dtype).contiguous()


def _numbers(packed: torch.Tensor, bits: int, dimension: int) -> torch.Tensor:
    """Numbers of `bits` bits that are packed along a dimension of an int32 matrix, lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    parts: torch.Tensor = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return parts.flatten(1) if dimension == 1 else parts.transpose(1, 2).flatten(0, 1)


#: `quant_method` -> unpacks the tensors of a folder in place.
_UNPACKED: dict[str, Callable[[Path, dict[str, torch.Tensor], torch.dtype], None]] = {
    "awq": _unpack_awq,
    "fbgemm_fp8": _scaled_rows,
    "gptq": _unpack_gptq,
}
