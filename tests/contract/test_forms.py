"""Each form of checkpoint against its own reference implementation, one whole prompt at a time, in float32."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from qwen3_ranker_plugins import Reranker, UnsupportedModelError
from qwen3_ranker_plugins.engines.packed.checkpoint import load_model, read_config
from qwen3_ranker_plugins.engines.packed.decoder import take_weights
from qwen3_ranker_plugins.engines.packed.quantised import plain_tensors
from qwen3_ranker_plugins.models import read_spec, resolve_checkpoint
from qwen3_ranker_plugins.prompt import load_tokenizer
from tests.forms import (
    COMPRESSED,
    FLOAT4,
    FLOAT8,
    NO,
    YES,
    ZERANK_CHAT,
    change_weights,
    copy_of,
    edit_json,
    write_adapter,
    write_bitsandbytes,
    write_classifier,
    write_compressed,
    write_cross_encoder,
    write_float8,
    write_merged,
    write_packed,
    write_qwen2,
    write_qwen3_vl,
    write_shallow,
    write_with_added_words,
)

QUERY = "how are volcanoes formed?"
DOCUMENTS = [
    "Magma rises through cracks in the crust and erupts, building a volcano.",
    "Knitting needles come in several sizes.",
    "Lava cools into rock.",
    "",
]
TOLERANCE = 1e-4
INT8 = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}}


def margins(model: Path, documents: list[str] = DOCUMENTS, **settings: Any) -> NDArray[np.float32]:
    with Reranker(model, device="cpu", **{"dtype": "float32", **settings}) as reranker:
        result = reranker.rerank(QUERY, documents)
        found = np.empty(len(documents), dtype=np.float32)
        for hit in result:
            found[hit.index] = hit.margin
        return found


def prompts(folder: Path, query: str = QUERY) -> list[str]:
    """Whole prompts, by string formatting alone."""
    spec = read_spec(folder)
    text = spec.template if spec.instruction is not None else spec.template_without_instruction
    assert text is not None
    return [text.format(instruction=spec.instruction, query=query, document=document) for document in DOCUMENTS]


@torch.inference_mode()
def last_logits(model: Any, folder: Path, texts: list[str]) -> list[torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.eval()
    ids = [tokenizer(text, add_special_tokens=False, return_tensors="pt") for text in texts]
    return [model(**each).logits[0] for each in ids]


def difference(model: Any, folder: Path) -> NDArray[np.float32]:
    return np.array([float(each[-1, YES] - each[-1, NO]) for each in last_logits(model, folder, prompts(folder))])


def test_a_classifier(tiny: Path, tmp_path: Path) -> None:
    folder = write_classifier(tiny, tmp_path / "classifier", noise=0.01)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    model.config.pad_token_id = 0
    expected = [float(each[0]) for each in last_logits(model, folder, prompts(folder))]
    assert margins(folder) == pytest.approx(expected, abs=TOLERANCE)


def test_a_classifier_gives_the_margins_of_the_model_that_it_was_made_of(tiny: Path, tmp_path: Path) -> None:
    assert margins(write_classifier(tiny, tmp_path / "classifier")) == pytest.approx(margins(tiny), abs=TOLERANCE)


def test_a_bias_of_a_classifier_counts(tiny: Path, tmp_path: Path) -> None:
    folder = write_classifier(tiny, tmp_path / "classifier")
    change_weights(folder, score__bias=torch.tensor([0.75]))
    assert margins(folder) == pytest.approx(margins(tiny) + 0.75, abs=TOLERANCE)


def test_an_older_cross_encoder_has_no_prompt(tiny: Path, tmp_path: Path) -> None:
    """The refusal names the template that gives the model the two texts, each encoded on its own."""
    from sentence_transformers import CrossEncoder

    folder = write_classifier(tiny, tmp_path / "my-reranker")
    (folder / "chat_template.jinja").unlink()  # of the base, for chats
    torch.manual_seed(1)
    change_weights(folder, score__weight=torch.randn(1, 256))
    edit_json(folder / "config.json", sentence_transformers={"version": "5.0.0"}, pad_token_id=0)
    template = "{query}{|}{document}"
    with pytest.raises(UnsupportedModelError, match=re.escape(f"(template={template!r} does the same)")):
        margins(folder)
    reference = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    raw = [reference.predict([(QUERY, each)], activation_fn=torch.nn.Identity())[0] for each in DOCUMENTS[:3]]
    assert margins(folder, DOCUMENTS[:3], template=template) == pytest.approx(raw, abs=TOLERANCE)


def test_an_adapter_is_merged_once_however_it_is_given(tiny: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = write_adapter(tiny, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    expected = difference(PeftModel.from_pretrained(base, adapter), tiny)
    assert expected != pytest.approx(margins(tiny), abs=0.01)
    assert margins(adapter) == pytest.approx(expected, abs=TOLERANCE)  # its base is named in it
    weights = load_file(adapter / "adapter_model.safetensors")
    named = {name.replace(".weight", ".default.weight"): each for name, each in weights.items()}
    save_file(named, adapter / "adapter_model.safetensors")  # as code without peft writes it, which peft reads
    assert margins(tiny, adapter=adapter) == pytest.approx(expected, abs=TOLERANCE)

    merged = write_merged(tiny, adapter, tmp_path / "merged")
    assert margins(merged) == pytest.approx(expected, abs=TOLERANCE)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (merged / name).write_bytes((adapter / name).read_bytes())
    assert margins(merged) == pytest.approx(expected, abs=TOLERANCE)
    assert margins(merged, adapter="none") == pytest.approx(expected, abs=TOLERANCE)
    # The files of a base and of its adapter may be in one folder.
    assert margins(tiny, adapter=merged) == pytest.approx(expected, abs=TOLERANCE)
    with pytest.raises(UnsupportedModelError, match=r"already contain adapter=.*twice.*adapter='none'.*give model="):
        resolve_checkpoint(merged, adapter=adapter)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="somebody/elses-model")
    with pytest.raises(UnsupportedModelError, match=r"base of adapter=.* is not here.*remove the adapter's files from"):
        resolve_checkpoint(merged, adapter=adapter)


def test_whole_weights_with_an_adapter_that_is_not_merged_are_refused(tiny: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tiny, tmp_path / "adapter")
    folder = copy_of(tiny, tmp_path / "both")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((adapter / name).read_bytes())
    with pytest.raises(UnsupportedModelError, match=r"not merged into them.*adapter"):
        margins(folder)
    edit_json(folder / "adapter_config.json", base_model_name_or_path="somebody/elses-model")
    with pytest.raises(UnsupportedModelError, match=r"its base is not here.*adapter='none'"):
        margins(folder)
    assert margins(folder, adapter="none") == pytest.approx(margins(tiny), abs=TOLERANCE)


def test_an_adapter_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tiny, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name.replace(".layers.5.", ".layers.50."): tensor for name, tensor in weights.items()},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(UnsupportedModelError, match=r"layers\.5"):
        margins(tiny, adapter=adapter)


def test_added_words_count(tiny: Path, tmp_path: Path) -> None:
    folder = write_with_added_words(tiny, tmp_path / "words", ["volcanoes", "crust"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert margins(folder) == pytest.approx(difference(model, folder), abs=TOLERANCE)


def test_a_folder_of_sentence_transformers(tiny: Path, tmp_path: Path) -> None:
    """Its own CrossEncoder is the reference, chat template, labels and all."""
    from sentence_transformers import CrossEncoder

    capital = load_tokenizer(tiny).find("Yes")
    assert capital is not None
    folder = write_cross_encoder(tiny, tmp_path / "zerank", capital, None, ZERANK_CHAT)
    reference = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    raw = reference.predict([(QUERY, each) for each in DOCUMENTS], activation_fn=torch.nn.Identity())
    assert margins(folder) * 5 == pytest.approx(raw, abs=5 * TOLERANCE)

    chat = (
        "{%- for m in messages %}{{- m.role + ': ' + m.content + '\n' }}{%- endfor %}"
        "{{- '<|im_end|>\n<|im_start|>assistant\n' }}"
    )
    folder = write_cross_encoder(tiny, tmp_path / "own", YES, NO, chat)
    edit_json(folder / "config_sentence_transformers.json", prompts={"web": "Find answers."}, default_prompt_name="web")
    check_against_cross_encoder(folder)


def test_the_chat_template_gets_what_sentence_transformers_passes_to_it(tiny: Path, tmp_path: Path) -> None:
    """No prompt for generation unless it is asked for, the content as text or in a list, and variables."""
    ends = "{{ style | default('plain') }}{% if add_generation_prompt %}<|im_end|>\n<|im_start|>assistant\n{% endif %}"
    texts = "{%- for m in messages %}{{- m.role + ': ' + m.content + '\n' }}{%- endfor %}" + ends
    lists = texts.replace("m.content", "m.content[0].text")
    folder = write_cross_encoder(tiny, tmp_path / "model", YES, NO, texts)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": lists}))  # only processors read it
    check_against_cross_encoder(folder)
    (folder / "chat_template.jinja").write_text(lists)
    modalities = json.loads((folder / "sentence_bert_config.json").read_text())["modality_config"]
    modalities["message"]["format"] = "structured"
    processing = {"chat_template": {"add_generation_prompt": True, "style": "new"}, "text": {"max_length": 40}}
    edit_json(folder / "sentence_bert_config.json", modality_config=modalities, processing_kwargs=processing)
    check_against_cross_encoder(folder, ["word " * 5, "word " * 200])
    with pytest.raises(ValueError, match=r"max_length=100: the model has 40 positions \(model_max_length, max_seq"):
        Reranker(folder, max_length=100)


def check_against_cross_encoder(folder: Path, documents: list[str] = DOCUMENTS) -> None:
    from sentence_transformers import CrossEncoder

    reference = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    raw = reference.predict([(QUERY, each) for each in documents], activation_fn=torch.nn.Identity())
    assert margins(folder, documents=documents) == pytest.approx(raw, abs=TOLERANCE)


@pytest.fixture(scope="module")
def mxbai(qwen3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen2(qwen3_folder, tmp_path_factory.mktemp("models") / "mxbai-rerank-base-v2")


@pytest.mark.parametrize("instruction", [None, "Prefer texts about rocks."])
def test_mxbai_rerank_v2(mxbai: Path, instruction: str | None) -> None:
    """The package of its makers is the reference; it encodes the parts of a prompt one by one."""
    from mxbai_rerank import MxbaiRerankV2

    reference = MxbaiRerankV2(str(mxbai), device="cpu", torch_dtype=torch.float32)
    # transformers 5 has no such method any more; without truncation it joined two lists of ids.
    reference.tokenizer.prepare_for_model = lambda ids, pair, **_: {"input_ids": ids + pair}
    raw = reference.predict([QUERY] * len(DOCUMENTS), DOCUMENTS, instruction=instruction)
    assert margins(mxbai, instruction=instruction) == pytest.approx(raw.numpy(), abs=TOLERANCE)


def test_qwen3_vl_reranker_for_texts(qwen3_folder: Path, tmp_path: Path) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    write_qwen3_vl(qwen3_folder, tmp_path)
    model = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    spec = read_spec(tmp_path)
    texts = [
        spec.template.format(instruction=spec.instruction, query=QUERY, document=each or "NULL") for each in DOCUMENTS
    ]
    expected = [float(each[-1, YES] - each[-1, NO]) for each in last_logits(model, tmp_path, texts)]
    assert margins(tmp_path) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_bitsandbytes(tiny: Path, tmp_path: Path, method: str) -> None:
    """Within 0.05 of bitsandbytes' own products, which in 8 bits quantise the activations too."""
    folder = write_bitsandbytes(tiny, tmp_path / method, method)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert margins(folder) == pytest.approx(difference(model, folder), abs=0.05)
    check_plain_weights(folder)


@pytest.mark.parametrize("scheme", list(COMPRESSED))
def test_compressed_tensors(tiny: Path, tmp_path: Path, scheme: str) -> None:
    """Transformers' own quantised forward pass is the reference; it rounds activations as the scheme says."""
    folder = write_compressed(tiny, tmp_path / "compressed", scheme)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # An activation that rounding moves to the next of 256 steps moves the margin; a batch rounds in another order.
    tolerance = 0.02 if "activations" in scheme else 0.005
    assert margins(folder) == pytest.approx(difference(model, folder), abs=tolerance)
    check_plain_weights(folder)


@pytest.mark.parametrize("scheme", FLOAT4)
def test_float4_of_compressed_tensors(tiny: Path, tmp_path: Path, scheme: str) -> None:
    folder = write_compressed(write_shallow(tiny, tmp_path / "shallow", 2), tmp_path / "compressed", scheme)
    assert margins(folder) == pytest.approx(margins(folder, dtype="bfloat16"), abs=0.02)
    assert margins(folder) != pytest.approx(margins(tmp_path / "shallow"), abs=1e-3)
    check_plain_weights(folder)


def test_keys_and_values_are_not_quantised(tiny: Path, tmp_path: Path) -> None:
    folder = write_compressed(write_shallow(tiny, tmp_path / "shallow", 1), tmp_path / "compressed", "int8")
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    expected = margins(folder)
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    edit_json(folder / "config.json", quantization_config=settings | {"kv_cache_scheme": scheme})
    assert margins(folder) == pytest.approx(expected)
    change_weights(folder, **{f"model__layers__0__self_attn__{part}_scale": torch.tensor([1.0]) for part in "kv"})
    assert margins(folder) == pytest.approx(expected)


@pytest.mark.parametrize("style", list(FLOAT8))
def test_float8(tiny: Path, tmp_path: Path, style: str) -> None:
    folder = write_float8(tiny, tmp_path / "float8", style, tmp_path / "plain")
    if style == "rows":
        change_weights(folder, model__layers__0__mlp__down_proj__input_scale=torch.tensor(2.0))
    assert margins(folder) == pytest.approx(margins(tmp_path / "plain"), abs=TOLERANCE)
    assert margins(folder) != pytest.approx(margins(tiny), abs=TOLERANCE)
    check_plain_weights(folder)
    if style == "block":  # transformers reads the other style on a GPU only
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert margins(folder) == pytest.approx(difference(model, folder), abs=TOLERANCE)


def check_plain_weights(folder: Path) -> None:
    """What our decoder fuses on a GPU: matrices in its own dtype."""
    loaded = load_model(folder, read_spec(folder), load_tokenizer(folder), torch.bfloat16)
    weights = take_weights(loaded.decoder, loaded.direction, torch.device("cpu"))
    config = read_config(folder)
    rows = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    for layer in weights.layers:
        assert layer.query_key_value.shape == (rows, config.hidden_size)
        assert layer.gate_up.shape == (2 * config.intermediate_size, config.hidden_size)
        assert {layer.query_key_value.dtype, layer.gate_up.dtype, layer.down.dtype} == {torch.bfloat16}


@pytest.mark.parametrize("method", ["awq", "gptq", "gptq by activation"])
def test_packed_integers(tiny: Path, tmp_path: Path, method: str) -> None:
    """The formulas of the formats are the reference, because gptqmodel, which transformers asks for, needs a build."""
    folder = write_packed(tiny, tmp_path / "packed", method, tmp_path / "plain")
    change_weights(folder, model__layers__0__mlp__down_proj__bias=torch.zeros(256))  # as quantisers leave it
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit_json(folder / "config.json", quantization_config=settings | {"bits": "4"})
    expected = margins(tmp_path / "plain")
    assert margins(folder) == pytest.approx(expected, abs=TOLERANCE)
    assert expected != pytest.approx(margins(tiny), abs=0.01)
    check_plain_weights(folder)


def test_a_part_of_a_quantised_matrix_that_is_missing_or_wrong_is_named(tiny: Path, tmp_path: Path) -> None:
    """transformers takes 1 for a scale, and torch the last group for -1."""
    shallow, part = write_shallow(tiny, tmp_path / "shallow", 1), "model.layers.0.mlp.down_proj"

    def check(folder: Path, message: str, **settings: Any) -> None:
        settings = json.loads((folder / "config.json").read_text())["quantization_config"] | settings
        with pytest.raises(UnsupportedModelError, match=f"{message}.*download the checkpoint again"):
            plain_tensors(folder, settings["quant_method"], settings, torch.float32)

    folder = write_float8(shallow, tmp_path / "block", "block", tmp_path / "plain_block")
    change_weights(folder, model__layers__0__mlp__down_proj__weight_scale_inv=None)
    check(folder, rf"has a float8 matrix and no {part}\.weight_scale_inv")
    folder = write_packed(shallow, tmp_path / "gptq", "gptq", tmp_path / "plain_gptq")
    change_weights(folder, model__layers__0__mlp__down_proj__g_idx=torch.full((640,), -1, dtype=torch.int32))
    check(folder, rf"{part}\.g_idx does not give each of 640 inputs one of 10 groups")
    weights = load_file(folder / "model.safetensors")
    change_weights(folder, **{name.replace(".", "__"): None for name in weights if name.endswith("g_idx")})
    check(folder, "says desc_act=true, and no tensor's name ends in .g_idx", desc_act=True)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"quant_method": "torchao"}, "engine='vllm_score'"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*down.*": {}}}, "engine='vllm_score'"),
        ({"quant_method": "hqq"}, "unquantised checkpoint, because vLLM does not"),
        ({"quant_method": "aqlm"}, "unquantised checkpoint, because vLLM does not"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "unquantised checkpoint, because vLLM does not"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "because vLLM does not"),
        ({"quant_method": "gptq", "bits": 3}, "unquantised checkpoint, because vLLM does not"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "config_groups=.*remove quantiza"),
        ({"quant_method": "compressed-tensors", "config_groups": INT8}, "not quantised.*remove quantization_config"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "not quantised.*remove quantization_config"),
    ],
    ids=str,
)  # fmt: skip
def test_an_unknown_quantisation_is_refused_with_what_takes_it(
    settings: dict[str, Any], remedy: str, tiny: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    edit_json(folder / "config.json", quantization_config=settings)
    with pytest.raises(UnsupportedModelError, match=rf"'{settings['quant_method']}'.*{remedy}"):
        margins(folder)


def test_a_plain_tensor_of_another_shape_in_a_quantised_checkpoint_is_named(tiny: Path, tmp_path: Path) -> None:
    """transformers does not compare shapes if a checkpoint is quantised."""
    folder = write_compressed(write_shallow(tiny, tmp_path / "shallow", 2), tmp_path / "quantised", "int8")
    change_weights(folder, model__layers__1__self_attn__q_norm__weight=torch.ones(63))
    with pytest.raises(
        UnsupportedModelError, match=r"1\.self_attn\.q_norm\.weight is .* \[63\] .* \[64\] was expected"
    ):
        margins(folder)


def test_another_number_of_bits_than_the_weights_have_is_named(tiny: Path, tmp_path: Path) -> None:
    """compressed-tensors unpacks weights with any number of bits."""
    folder = write_compressed(write_shallow(tiny, tmp_path / "shallow", 1), tmp_path / "quantised", "int8")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModelError, match=r"num_bits=\[4\].*0\.self_attn\.q_proj.* has 64 columns"):
        margins(folder)


def test_a_setting_of_compressed_tensors_is_named(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    group = {"targets": ["Linear"], "weights": {"num_bits": "many", "type": "int"}}
    settings = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": group}}
    edit_json(folder / "config.json", quantization_config=settings)
    with pytest.raises(
        UnsupportedModelError, match=r"config\.json has a quant.*num_bits.*, not 'many'\): write the value"
    ):
        margins(folder)


def test_a_damaged_generation_config_decides_no_score(tiny: Path, tmp_path: Path) -> None:
    """transformers reads it for every causal model; an activation of another kind makes transformers load this one."""
    for content in ("[]", "{", '{"max_new_tokens": ["a"]}'):
        folder = copy_of(tiny, tmp_path / str(len(content)))
        edit_json(folder / "config.json", hidden_act="gelu")
        expected = margins(folder)
        (folder / "generation_config.json").write_text(content)
        assert margins(folder) == pytest.approx(expected)


def test_prompts_longer_than_the_positions_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_length=20000.*8192 positions"):
        Reranker(tiny, max_length=20_000)
    folder = copy_of(tiny, tmp_path / "short")
    edit_json(folder / "config.json", max_position_embeddings=256)
    with Reranker(folder) as reranker:
        [hit] = reranker.rerank("q", ["word " * 400])
        assert hit.truncated_tokens > 0
        assert reranker.rerank("q", ["word " * 400]).usage.prompt_tokens == 256


def test_a_dangling_link_is_named(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(UnsupportedModelError, match=r"is a link to .*gone, which is not there"):
        Reranker(folder)


def test_every_damaged_file_is_named(tiny: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        folder = copy_of(tiny, tmp_path / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
        with pytest.raises(UnsupportedModelError, match=name):
            Reranker(folder)
    assert json.loads((tiny / "config.json").read_text())["model_type"] == "qwen3"
