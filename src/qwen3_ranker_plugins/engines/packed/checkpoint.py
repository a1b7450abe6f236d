"""Loads a checkpoint as a decoder and a direction; refuses it if any weight would not be the checkpoint's own.

A checkpoint in the plain form is loaded into `qwen3`, all others by transformers, whose import takes seconds. Every
form gives the same two things: the decoder's layers, and the vector whose product with the last hidden state is the
margin. That vector is the difference of two label rows, one label row, or the weight of a score head.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...errors import MissingDependencyError, UnsupportedModelError
from ...models import ModelSpec
from ...models.adapter_comparison import plain_name
from ...models.json_files import read_json
from ...models.score_head import read_bias
from ...models.spec import label_ids
from ...models.weights import find_not_finite, read_headers, read_rows
from ...pip_command import pip_install
from ...prompt import ModelTokenizer
from ..attention.interface import ATTENTION_NAME, register
from . import qwen3
from .damage import damage_explained, first_sentence
from .quantised import OF_CACHE, check_compressed, dequantising, plain_tensors

# Tensors that a conversion leaves in place although its architecture does not read them.
_LEFT_OVER = {"Qwen3ForSequenceClassification": ("lm_head.weight", "score.bias")}
_PLAIN = (torch.float32, torch.float16, torch.bfloat16)
# Tensors of a LoRA adapter for the embeddings or the output matrix.
_OF_EMBEDDINGS = re.compile(r"(lm_head|embed_tokens)\.lora_")


@dataclass(frozen=True)
class LoadedModel:
    """A decoder, and how its last hidden state becomes a margin.

    Attributes:
        decoder: transformers' model of the layers, such as Qwen3Model, in evaluation mode, with our attention.
        direction: float32 [width]; margin = hidden . direction + offset.
        offset: from the bias of a score head; 0 if there is none.
    """

    decoder: Any
    direction: torch.Tensor
    offset: float


def read_config(folder: Path) -> Any:
    """The configuration of the text decoder.

    Raises:
        UnsupportedModelError: it cannot be read, or describes a decoder that the packed engine cannot run.
    """
    with damage_explained(folder):
        if (plain := qwen3.plain_config(folder)) is not None:
            return plain
        return _checked_config(folder).get_text_config()


def load_model(
    folder: Path, spec: ModelSpec, tokenizer: ModelTokenizer, dtype: torch.dtype, adapter: Path | None = None
) -> LoadedModel:
    """Load the checkpoint that `spec` describes.

    Args:
        folder: with config.json and the weights.
        spec, tokenizer: of the same folder.
        dtype: of the decoder; the direction is always float32, because a product in half precision would round logits
            to steps of up to 1/16.
        adapter: folder of a LoRA adapter that is merged into the weights.

    Raises:
        UnsupportedModelError: it cannot be loaded, or would run with weights that are not the checkpoint's.
        MissingDependencyError: a package that the adapter or the quantised weights need is not installed.
    """
    model: Any = None
    if adapter is None and spec.architecture == "Qwen3ForCausalLM":
        with damage_explained(folder):
            model = qwen3.load(folder, dtype)
    if model is None:
        model = _load_with_transformers(folder, spec, dtype)
    if adapter is not None:
        model = _merged(model, adapter)
    _check_plain(folder, model, dtype, adapter)
    model.requires_grad_(False)
    model.eval()
    known = len(model.model.embed_tokens.weight)
    if tokenizer.highest_id >= known:
        raise UnsupportedModelError(
            f"{folder}: its tokenizer makes ids up to {tokenizer.highest_id}, but its model knows only {known} ids, so "
            "they do not belong together: take both from the same checkpoint, or, if words were added to the "
            "tokenizer, the model that was trained after resize_token_embeddings"
        )
    offset = 0.0
    if spec.scoring.is_score_head:
        direction = model.score.weight[0].float()
        offset = read_bias(folder) / spec.scoring.divisor
    else:
        positive, negative = label_ids(spec.scoring, tokenizer, folder)
        rows = model.get_output_embeddings().weight
        direction = rows[positive].float()
        if negative is not None:
            direction = direction - rows[negative].float()
    return LoadedModel(model.model, direction / spec.scoring.divisor, offset)


def _load_with_transformers(folder: Path, spec: ModelSpec, dtype: torch.dtype) -> Any:
    import transformers

    register()
    arguments: dict[str, Any] = {}
    with damage_explained(folder):
        config = _checked_config(folder)
        if spec.decoder == "qwen3_vl":
            # The text decoder is a Qwen3 whose tensors have longer names. Its rotary embeddings for time, height and
            # width equal Qwen3's if all three positions are the position of the token, as they are in a text.
            config = _as_qwen3(config)
            arguments["key_mapping"] = {
                r"^(model\.)?language_model\.": "model.",
                r"^(model\.)?visual\.": "visual.",
            }
            kind: Any = transformers.Qwen3ForCausalLM
        else:
            kind = getattr(transformers, spec.architecture)
        if spec.scoring.is_score_head:
            config.num_labels = 1
        if spec.quantization is not None:
            tensors = plain_tensors(folder, spec.quantization, config.quantization_config, dtype)
            if tensors is None:
                config.quantization_config = dequantising(folder, spec.quantization, config)
            else:
                del config.quantization_config
                arguments["state_dict"] = tensors
    is_quantised = spec.quantization is not None
    with _without_adapter(folder) as plain, damage_explained(folder, is_quantised=is_quantised), _quiet():
        model: Any
        loaded: dict[str, Any]
        model, loaded = kind.from_pretrained(
            None if "state_dict" in arguments else plain,
            config=config,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            # Instead of generation_config.json, which decides no score.
            generation_config=transformers.GenerationConfig(),
            ignore_mismatched_sizes=True,  # `_check_loaded` refuses them, and says which they are
            **arguments,
        )
        if spec.quantization == "bitsandbytes":
            model = model.dequantize(dtype)
        if spec.quantization == "compressed-tensors":  # some of its formats become bfloat16 in any case
            for parameter in model.parameters():
                if parameter.dtype in _PLAIN:
                    parameter.data = parameter.data.to(dtype)
            check_compressed(folder, model.config.get_text_config().hidden_size)
    _check_loaded(folder, spec, loaded)
    return model


def _as_qwen3(config: Any) -> Any:
    from transformers import Qwen3Config

    text = config.text_config.to_dict()
    rope = {name: value for name, value in (text.get("rope_parameters") or {}).items() if "mrope" not in name}
    text |= {"rope_parameters": rope | {"rope_type": rope.get("rope_type", "default")}, "model_type": "qwen3"}
    tied = getattr(config, "tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
    return Qwen3Config(
        **{name: value for name, value in text.items() if name != "architectures"} | {"tie_word_embeddings": tied}
    )


def _check_plain(folder: Path, model: Any, dtype: torch.dtype, adapter: Path | None) -> None:
    """Make sure that no weight is still packed or quantised, because our decoder reads the matrices themselves.

    Raises:
        UnsupportedModelError: a weight is packed or quantised.
    """
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    for name, module in model.named_modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, torch.nn.Linear):
            expected: tuple[int, ...] = (module.out_features, module.in_features)
        elif isinstance(module, torch.nn.Embedding):
            expected = (module.num_embeddings, module.embedding_dim)
        elif weight is not None:
            expected = (config.head_dim if name.endswith(("q_norm", "k_norm")) else config.hidden_size,)
        else:
            continue
        for part, tensor, due in (("weight", weight, expected), ("bias", bias, expected[:1])):
            if tensor is not None and (tensor.dtype != dtype or tuple(tensor.shape) != due):
                remedy = "use engine='vllm_score' or the unquantised checkpoint, or download this one again"
                if tensor.dtype == dtype:
                    remedy = "write the settings in config.json that its base has, or download the checkpoint again"
                if adapter is not None:
                    remedy = "merge the adapter with peft, compare a score before and after, and give that folder"
                raise UnsupportedModelError(
                    f"{folder}: {name}.{part} is {tensor.dtype} {list(tensor.shape)} after loading, where {dtype} "
                    f"{list(due)} was expected: {remedy}"
                )


def _checked_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers checks each setting in a way of its own
        reason = first_sentence(str(error)).partition(". Errors:")[0]
        raise UnsupportedModelError(
            f"{folder}/config.json: transformers refuses a setting ({type(error).__name__}: {reason}): write the value "
            "that the checkpoint's base has, or download the file again"
        ) from error
    text = config.get_text_config()
    layer_types = set(getattr(text, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise UnsupportedModelError(
            f"{folder} holds a {config.model_type!r} model with {sorted(layer_types)} layers; the packed engine runs "
            "decoders with full attention: use a Qwen3-Reranker checkpoint"
        )
    rope = text.rope_parameters["rope_type"]
    if rope in ("dynamic", "longrope"):
        raise UnsupportedModelError(
            f"{folder} has {rope!r} rotary embeddings, which depend on the longest prompt of a batch, so a score would "
            "depend on the other prompts; set a fixed rope_type, such as 'default' or 'yarn', in config.json"
        )
    return config


def _check_loaded(folder: Path, spec: ModelSpec, loaded: dict[str, Any]) -> None:
    # transformers fills missing weights with random numbers, whose results would look like scores.
    expected = _LEFT_OVER.get(spec.architecture, ())
    for name, stored, due in sorted(loaded.get("mismatched_keys") or ()):
        if not (spec.decoder == "qwen3_vl" and name.startswith("visual.")):
            raise UnsupportedModelError(
                f"{folder}: {name} has the shape {list(stored)} in the weights, and by config.json {list(due)}: write "
                "the settings that the checkpoint's base has, or download the checkpoint again"
            )
    for kind in ("missing_keys", "unexpected_keys", "error_msgs"):
        problems = sorted(each for each in map(str, loaded.get(kind) or ()) if each not in expected)
        if spec.decoder == "qwen3_vl":
            problems = [each for each in problems if not each.startswith("visual.")]
        if kind == "unexpected_keys":  # quantisers store biases of zeros for projections without a bias
            problems = [each for each in problems if not (each.endswith("_proj.bias") and _is_zero(folder, each))]
            if spec.quantization is not None:
                problems = [each for each in problems if not each.endswith(OF_CACHE)]
        if problems:
            raise UnsupportedModelError(
                f"{folder}: config.json and the weights do not match, {kind.replace('_', ' ')}: "
                f"{', '.join(problems[:3])}{', ...' if len(problems) > 3 else ''}; download the checkpoint again"
            )


def _is_zero(folder: Path, name: str) -> bool:
    values = read_rows(folder, name, None)
    return values is not None and not values.any()


def _merged(model: Any, adapter: Path) -> Any:
    """The model with a LoRA adapter merged into its weights.

    Raises:
        MissingDependencyError: peft is not installed.
        UnsupportedModelError: the folder holds no usable adapter, or the adapter does not match the model.
    """
    if find_spec("peft") is None:
        raise MissingDependencyError(f"{adapter} is an adapter, and merging it needs peft: {pip_install('adapters')}")
    from peft import PeftModel, get_peft_model_state_dict

    with damage_explained(adapter):
        stored = {plain_name(name) for name in read_headers(adapter, adapter=True)}
        if any(_OF_EMBEDDINGS.search(name) for name in stored):
            # If embeddings and output share a matrix, merging would change both, but peft adds the adapter to only one.
            output = model.get_output_embeddings()
            if output is not None:
                output.weight = torch.nn.Parameter(output.weight.detach().clone())
        try:
            wrapped = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
        except Exception as error:  # peft and torch raise almost anything for settings that they do not expect
            raise _not_fitting(adapter, error) from error
        loaded = set(get_peft_model_state_dict(wrapped))
        strangers = sorted(stored ^ loaded)
        if any(name.endswith(".score.weight") for name in strangers):
            raise UnsupportedModelError(
                f"{adapter} was trained on a sequence classifier, and has its score head: merge it with peft into "
                "AutoModelForSequenceClassification with num_labels=1, save the merged model and the tokenizer in a "
                "folder, and give that as model, with scoring='score-head' if the adapter was trained on the prompt of "
                "Qwen3-Reranker, else with the text of its prompt as template="
            )
        if lacking := sorted(loaded - stored):
            raise UnsupportedModelError(
                f"{adapter} does not match the model: its adapter_config.json asks for {', '.join(lacking[:3])}, which "
                f"adapter_model.safetensors does not have (of {len(stored)} tensors, the first is {min(stored)}); "
                "download both files again, give the base that it was trained on as model, or, if other code saved the "
                "adapter, save it with peft's save_pretrained()"
            )
        if strangers:
            raise UnsupportedModelError(
                f"{adapter} does not match the model: its adapter_model.safetensors has "
                f"{', '.join(strangers[:3])}, for which neither its adapter_config.json nor the model has a "
                "place; download both files again, or give the base that it was trained on as model"
            )
        try:
            return wrapped.merge_and_unload(safe_merge=True)
        except (RuntimeError, ValueError) as error:
            if (found := find_not_finite(adapter, adapter=True)) is not None:
                raise UnsupportedModelError(
                    f"{found} holds values that are not finite: download the file again"
                ) from error
            raise UnsupportedModelError(
                f"peft cannot merge {adapter} into its base ({error}): train it without the setting that the reason "
                "names, or use peft with the model's own code"
            ) from error


def _not_fitting(adapter: Path, error: Exception) -> Exception:
    """The error of an adapter that peft cannot put into the model."""
    if isinstance(error, OSError | MemoryError | torch.OutOfMemoryError):
        return error
    found = re.search(r"size mismatch for (\S+): .*?\[([\d, ]*)\].*?\[([\d, ]*)\]", str(error), re.DOTALL)
    if found is None:
        return UnsupportedModelError(
            f"{adapter}: peft cannot load the adapter as its adapter_config.json describes it ({type(error).__name__}: "
            f"{first_sentence(str(error))}): correct what the reason names, or download the file again"
        )
    rank = read_json(adapter / "adapter_config.json").get("r")
    return UnsupportedModelError(
        f"{adapter} does not match the model: {found[1]} has the shape [{found[2]}] in adapter_model.safetensors, and "
        f"[{found[3]}] by the model and adapter_config.json (r={rank!r}): write the r of its training, or give the "
        "base that it was trained on as model"
    )


@contextmanager
def _without_adapter(folder: Path) -> Iterator[Path]:
    """The folder; if it has an adapter, which transformers would apply unasked, a folder with its other files only."""
    if not (folder / "adapter_config.json").exists():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="qwen3-ranker-") as name:
        for path in folder.iterdir():
            if path.is_file() and not path.name.startswith("adapter_"):
                (Path(name) / path.name).symlink_to(path.resolve())
        yield Path(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off transformers' progress bar, which leaves a thread running, and its own report of missing weights."""
    from transformers.utils import logging as transformers_logging

    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
