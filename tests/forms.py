"""Forms in which people have a reranker, each written by the library that its users write it with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from qwen3_ranker_plugins.prompt import DEFAULT_INSTRUCTION, TEMPLATES

YES, NO = 9693, 2152

#: As zeroentropy/zerank-2 renders a pair: the query is the system turn, the document the user's.
ZERANK_CHAT = (
    "{%- for message in messages %}{%- if message.role == 'query' %}"
    "{{- '<|im_start|>system\n' + message.content + '<|im_end|>\n' }}{%- elif message.role == 'document' %}"
    "{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{{- '<|im_start|>assistant\n' }}"
)

#: As Qwen3-Reranker renders a pair, with its own instruction unless there is a system message.
QWEN3_CHAT = (
    "{%- set said = namespace(instruction='" + DEFAULT_INSTRUCTION + "') -%}"
    "{%- for m in messages if m.role == 'system' %}{%- set said.instruction = m.content -%}{%- endfor -%}"
    + TEMPLATES["standard"].format(
        instruction="{{ said.instruction }}",
        **{
            role: f"{{{{ (messages | selectattr('role', 'equalto', '{role}') | map(attribute='content') | first) }}}}"
            for role in ("query", "document")
        },
    )
    + "{{ '' }}"  # jinja drops a line break at the end
)


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_shallow(causal: Path, target: Path, layers: int) -> Path:
    """The model without its last layers, for what takes seconds a layer."""
    copy_of(causal, target)
    weights = load_file(causal / "model.safetensors")
    kept = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < layers
    }
    save_file(kept, target / "model.safetensors", {"format": "pt"})
    edit_json(target / "config.json", num_hidden_layers=layers)
    return target


def write_classifier(causal: Path, target: Path, rows: tuple[int, int | None] = (YES, NO), noise: float = 0.0) -> Path:
    """As public converters write it: one label, whose weight is the row of yes minus the row of no."""
    head = AutoModelForCausalLM.from_pretrained(causal, dtype=torch.float32).lm_head.weight
    row = head[rows[0]] if rows[1] is None else head[rows[0]] - head[rows[1]]
    model = AutoModelForSequenceClassification.from_pretrained(causal, num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        model.score.weight.copy_((row + noise * torch.randn_like(row))[None])
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(causal).save_pretrained(target)
    return target


def write_adapter(causal: Path, target: Path, seed: int = 5) -> Path:
    """A LoRA adapter of random weights, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(causal, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(target)
    return target


def write_merged(causal: Path, adapter: Path, target: Path) -> Path:
    """The model with the adapter merged into its weights."""
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(causal, dtype=torch.float32)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(target)
    AutoTokenizer.from_pretrained(causal).save_pretrained(target)
    return target


def write_with_added_words(causal: Path, target: Path, words: list[str]) -> Path:
    """A fine-tune whose tokenizer learned words."""
    tokenizer = AutoTokenizer.from_pretrained(causal)
    tokenizer.add_tokens(words)
    model = AutoModelForCausalLM.from_pretrained(causal, dtype=torch.float32)
    torch.manual_seed(3)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def write_cross_encoder(
    causal: Path, target: Path, true_id: int, false_id: int | None, chat_template: str = QWEN3_CHAT
) -> Path:
    """As sentence-transformers saves a reranker that reads logits."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    transformer = Transformer(str(causal), transformer_task="text-generation")
    transformer.tokenizer.chat_template = chat_template
    model = CrossEncoder(modules=[transformer, LogitScore(true_id, false_id)])
    model.save_pretrained(str(target), create_model_card=False)
    return target


def write_qwen2(tokenizer: Path, target: Path) -> Path:
    """Random weights in the architecture of mxbai-rerank-v2, with biases that count."""
    torch.manual_seed(11)
    size = len(AutoTokenizer.from_pretrained(tokenizer))
    config = Qwen2Config(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = Qwen2ForCausalLM(config)
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(projection.bias, std=0.5)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(target)
    return target


def write_qwen3_vl(tokenizer: Path, target: Path) -> Path:
    """Random weights in the architecture of Qwen3-VL-Reranker, images and all."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(2)
    text = {
        "vocab_size": len(AutoTokenizer.from_pretrained(tokenizer)), "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 4096, "initializer_range": 0.2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]},
    }  # fmt: skip
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [0],
    }
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision)).float()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(target)
    return target


def write_fine_tune(causal: Path, target: Path) -> Path:
    """Several things that a fine-tune may have: added words, a merged adapter, the files of sentence-transformers."""
    words = write_with_added_words(causal, target.with_name(f"{target.name}_words"), ["volcanoes", "crust"])
    adapter = write_adapter(words, target.with_name(f"{target.name}_adapter"))
    merged = write_merged(words, adapter, target.with_name(f"{target.name}_merged"))
    return write_cross_encoder(merged, target, YES, NO)


def write_bitsandbytes(causal: Path, target: Path, method: str) -> Path:
    """As transformers and bitsandbytes write it: "nf4" or "int8"."""
    config = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        if method == "nf4"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    model = AutoModelForCausalLM.from_pretrained(causal, dtype=torch.float32, quantization_config=config)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(causal).save_pretrained(target)
    return target


#: How a checkpoint in float8 is written: suffix of its scales, rows and columns of a scale, its configuration.
FLOAT8: dict[str, tuple[str, tuple[int, int] | None, dict[str, Any]]] = {
    "block": (
        "weight_scale_inv",
        (32, 32),
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32], "fmt": "e4m3"},
    ),
    "fbgemm": ("weight_scale", None, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
    "rows": ("weight_scale", None, {"quant_method": "fp8", "activation_scheme": "static"}),
}


def write_float8(causal: Path, target: Path, style: str, plain: Path) -> Path:
    """In float8 as its style has it, and in `plain` the numbers that these stand for, in float32."""
    suffix, block, config = FLOAT8[style]
    copy_of(causal, target)
    copy_of(causal, plain)
    weights = load_file(causal / "model.safetensors")
    same = dict(weights)
    for name in [each for each in weights if each.endswith("_proj.weight")]:
        weight = weights[name].float()
        rows, columns = block or (1, weight.shape[1])
        tiles = weight.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
        scale = tiles.abs().amax((1, 3), keepdim=True) / 448
        stored = (tiles / scale).to(torch.float8_e4m3fn)
        weights[name] = stored.reshape(weight.shape)
        weights[f"{name.removesuffix('weight')}{suffix}"] = scale[:, 0, :, 0].contiguous()
        same[name] = (stored.float() * scale).reshape(weight.shape)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    save_file(same, plain / "model.safetensors", {"format": "pt"})
    edit_json(target / "config.json", quantization_config=config)
    return target


def _packed(numbers: torch.Tensor, dimension: int, order: tuple[int, ...], bits: int = 4) -> Any:
    """Several numbers in each int32 along a dimension; `order[i]` is the number in the i-th lowest bits."""
    parts = numbers.to(torch.int64).unflatten(dimension, (-1, 32 // bits))
    total = sum(parts.select(dimension + 1, place) << (bits * low) for low, place in enumerate(order))
    return torch.as_tensor(total).numpy().astype("uint32").view("int32").copy()


def write_packed(causal: Path, target: Path, method: str, plain: Path) -> Path:
    """As AutoAWQ ("awq") and GPTQModel ("gptq", "gptq by activation") pack 4 bits, and in `plain` what that means."""
    copy_of(causal, target)
    copy_of(causal, plain)
    weights = load_file(causal / "model.safetensors")
    same = dict(weights)
    torch.manual_seed(4)
    for name in [each for each in weights if each.endswith("_proj.weight")]:
        weight = weights.pop(name).float()
        groups = torch.arange(weight.shape[1]) // 64
        if method == "gptq by activation":  # inputs of one group do not stand together
            groups = groups[torch.randperm(len(groups))]
        members = torch.stack([weight[:, groups == group] for group in range(int(groups.max()) + 1)])
        low, high = members.amin(-1), members.amax(-1)
        if method == "awq":
            scales = ((high - low) / 15).half()
            zeros = (-low / scales.float()).round().clamp(0, 15)
        else:
            scales = (torch.maximum(high, -low) / 7).half()
            zeros = torch.full_like(low, 8)
        numbers = (weight.T / scales.float()[groups] + zeros[groups]).round().clamp(0, 15)
        same[name] = ((numbers - zeros[groups]) * scales.float()[groups]).T.contiguous()
        prefix = name.removesuffix("weight")
        ordered = tuple(range(8))
        columns = (0, 2, 4, 6, 1, 3, 5, 7)
        if method == "awq":
            parts = {"qweight": _packed(numbers, 1, columns), "qzeros": _packed(zeros, 1, columns)}
        else:
            parts = {"qweight": _packed(numbers, 0, ordered), "qzeros": _packed(zeros - 1, 1, ordered)}
            weights[f"{prefix}g_idx"] = groups.to(torch.int32)
        weights |= {f"{prefix}{part}": torch.from_numpy(values) for part, values in parts.items()}
        weights[f"{prefix}scales"] = scales.contiguous()
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    save_file(same, plain / "model.safetensors", {"format": "pt"})
    config: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
    if method != "awq":
        config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "checkpoint_format": "gptq"}
        config["desc_act"] = method == "gptq by activation"
    edit_json(target / "config.json", quantization_config=config)
    return target


#: Schemes of compressed-tensors: weights, activations.
COMPRESSED: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "int8": ({"num_bits": 8, "type": "int", "strategy": "channel"}, None),
    "int4 in groups": ({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}, None),
    "int8 with int8 activations": (
        {"num_bits": 8, "type": "int", "strategy": "channel"},
        {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
    ),
    "float8 with float8 activations": (
        {"num_bits": 8, "type": "float", "strategy": "channel"},
        {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    ),
}


#: Presets of compressed-tensors for weights in float4, which its library turns into bfloat16.
FLOAT4 = ("NVFP4A16", "MXFP4A16")


def write_compressed(causal: Path, target: Path, scheme: str) -> Path:
    """Quantised by the compressed-tensors library, rounded to nearest."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    if scheme in FLOAT4:
        group = preset_name_to_scheme(scheme, ["Linear"])
        arguments = group.weights
    else:
        weights, activations = COMPRESSED[scheme]
        arguments = QuantizationArgs(**weights)
        group = QuantizationScheme(
            targets=["Linear"],
            weights=arguments,
            input_activations=None if activations is None else QuantizationArgs(**activations),
        )
    dtype = torch.bfloat16 if scheme in FLOAT4 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(causal, dtype=dtype)
    config = QuantizationConfig(config_groups={"group_0": group}, quantization_status="frozen", ignore=["lm_head"])
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            weight = module.weight.data
            parts = weight if arguments.group_size is None else weight.unflatten(1, (-1, arguments.group_size))
            for_all = None
            if hasattr(module, "weight_global_scale"):
                for_all = generate_gparam(weight.amin(), weight.amax())
                module.weight_global_scale.data.copy_(for_all)
            scale, _ = calculate_qparams(parts.amin(-1), parts.amax(-1), arguments, global_scale=for_all)
            module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(target)
    compressor.update_config(str(target))
    AutoTokenizer.from_pretrained(causal).save_pretrained(target)
    return target


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of model.safetensors; None takes one out. Dots are written as double underscores."""
    weights = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        weights.pop(key, None)
        if tensor is not None:
            weights[key] = tensor
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
