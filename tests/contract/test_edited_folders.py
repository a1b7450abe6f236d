"""Folders that other code wrote or somebody edited: the margins of transformers, or a refusal; never another score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from qwen3_ranker_plugins import UnsupportedModelError
from qwen3_ranker_plugins.models import read_spec, resolve_checkpoint
from tests.contract.test_forms import DOCUMENTS, NO, QUERY, TOLERANCE, YES, difference, last_logits, margins, prompts
from tests.forms import change_weights, copy_of, edit_json, write_adapter, write_cross_encoder

Edit = Callable[[Path], None]


def config(**changes: Any) -> Edit:
    return lambda folder: edit_json(folder / "config.json", **changes)


def tokenizer_config(**changes: Any) -> Edit:
    return lambda folder: edit_json(folder / "tokenizer_config.json", **changes)


def tokenizer(**changes: Any) -> Edit:
    return lambda folder: edit_json(folder / "tokenizer.json", **changes)


def sharded(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8MB")


def without_a_shard(folder: Path) -> None:
    sharded(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def another_output_matrix(folder: Path) -> None:
    torch.manual_seed(1)
    change_weights(folder, lm_head__weight=torch.randn(14464, 256) / 10)


def untied(folder: Path) -> None:
    another_output_matrix(folder)
    edit_json(folder / "config.json", tie_word_embeddings=False)


def without_a_norm(folder: Path) -> None:
    change_weights(folder, model__layers__2__self_attn__k_norm__weight=None)


def whole_numbers(folder: Path) -> None:
    """transformers takes them for the weights themselves."""
    change_weights(folder, model__norm__weight=torch.ones(256, dtype=torch.int8))


def half_the_merges(folder: Path) -> None:
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    merges = found["model"]["merges"]
    path.write_text(json.dumps(found | {"model": found["model"] | {"merges": merges[: len(merges) // 2]}}))


def dropout(folder: Path) -> None:
    """transformers builds Qwen's tokenizer anew and drops it; the tokenizers library would split at random."""
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"model": found["model"] | {"dropout": 0.3}}))


def subword_prefix(folder: Path) -> None:
    """transformers builds Qwen's tokenizer anew and drops it; the tokenizers library would panic."""
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"model": found["model"] | {"continuing_subword_prefix": "##"}}))


def suffix_of_words(folder: Path) -> None:
    """transformers builds Qwen's tokenizer anew and drops it; the tokenizers library would look for `yes</w>`."""
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"model": found["model"] | {"end_of_word_suffix": "</w>"}}))


def general(change: Edit) -> Edit:
    """With a class that does as tokenizer.json says."""

    def edit(folder: Path) -> None:
        change(folder)
        edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")

    return edit


def byte_level(**changes: Any) -> Edit:
    """Of the second step of the pre-tokenizer."""

    def edit(folder: Path) -> None:
        path = folder / "tokenizer.json"
        found = json.loads(path.read_text())
        found["pre_tokenizer"]["pretokenizers"][1] |= changes
        path.write_text(json.dumps(found))

    return edit


def model(**changes: Any) -> Edit:
    """Of the tokenizer."""

    def edit(folder: Path) -> None:
        path = folder / "tokenizer.json"
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | {"model": found["model"] | changes}))

    return edit


def words_of_config(**changes: Any) -> Edit:
    """One more word in both files, whose row in the embeddings is missing: a document with it could not be scored."""

    def edit(folder: Path) -> None:
        path = folder / "tokenizer.json"
        found = json.loads(path.read_text())
        found["added_tokens"].append(WORD | {"id": 14464, "special": False})
        path.write_text(json.dumps(found))
        listed = {
            str(each["id"]): {name: each[name] for name in each if name != "id"} for each in found["added_tokens"]
        }
        edit_json(folder / "tokenizer_config.json", added_tokens_decoder=listed | {"14464": listed["14464"] | changes})

    return edit


def without_a_word(folder: Path) -> None:
    words_of_config()(folder)
    listed = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder=dict(list(listed.items())[:-1]))


def older_file(name: str, **content: Any) -> Edit:
    """Which transformers reads if tokenizer_config.json does not list the added tokens."""

    def edit(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        found = json.loads(path.read_text())
        del found["added_tokens_decoder"]
        path.write_text(json.dumps(found))
        (folder / name).write_text(json.dumps(content))

    return edit


def class_in_config(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", tokenizer_class=None)
    edit_json(folder / "config.json", tokenizer_class="LlamaTokenizer")


def without_control_tokens(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", added_tokens=[])
    (folder / "tokenizer_config.json").unlink()


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LINEAR = {"rope_type": "linear", "factor": 2.0}
WORD = {"content": "volcanoes", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}

SCORED: dict[str, Edit] = {
    "rope_scaling linear": config(rope_scaling=LINEAR),
    "rope_scaling with the old name of its type": config(rope_scaling={"type": "linear", "factor": 2.0}),
    "yarn with a factor of its own": config(rope_scaling=YARN | {"attention_factor": 1.7}),
    "rope_parameters yarn": config(rope_parameters=YARN | {"rope_theta": 1e6}, rope_scaling=None),
    "rope_parameters against rope_theta": config(rope_parameters={"rope_type": "default", "rope_theta": 5e3}),
    "rope_parameters against rope_scaling": config(
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, rope_scaling=LINEAR
    ),
    "sliding_window that is not used": config(sliding_window=16),
    "two labels named in a causal model": config(num_labels=2, id2label={"0": "a", "1": "b"}),
    "another activation": config(hidden_act="gelu"),
    "an output matrix against tied embeddings": another_output_matrix,
    "an untied output matrix": untied,
    "shards": sharded,
    "tokens in front of every text": tokenizer_config(add_bos_token=True, bos_token="<|endoftext|>"),  # noqa: S106 - no password
    "truncation and padding of the tokenizer": tokenizer(
        truncation={"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    ),
    "dropout of the tokenizer": dropout,
    "a special token that tokenizer.json has": tokenizer_config(bos_token="<|im_start|>"),  # noqa: S106 - no password
    "another normalizer, as its class says": general(tokenizer(normalizer={"type": "NFKC"})),
    "padding side": tokenizer_config(padding_side="right"),
    "another chat template": tokenizer_config(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"),
}  # fmt: skip

REFUSED: dict[str, tuple[Edit, str]] = {
    "dynamic rope": (config(rope_scaling={"rope_type": "dynamic", "factor": 4.0}), "longest prompt of a batch"),
    "sliding layers": (
        config(use_sliding_window=True, sliding_window=16, max_window_layers=0), "sliding_attention.*full attention"
    ),
    "layer_types of fewer layers": (config(layer_types=["full_attention"] * 3), "layer_type"),
    "bidirectional": (config(is_causal=False), "is_causal=false.*bidirectional"),
    "untied without an output matrix": (config(tie_word_embeddings=False), r"missing keys: lm_head\.weight"),
    "a switch as a text": (config(tie_word_embeddings="false"), "tie_word_embeddings"),
    "biases that are not there": (config(attention_bias=True), "missing keys.*bias"),
    "another head size": (config(head_dim=32), r"config\.json says head_dim=32, so .* the shape \[32\], and in"),
    "a norm is missing": (without_a_norm, r"missing keys.*k_norm"),
    "whole numbers": (whole_numbers, r"safetensors stores .*norm\.weight as whole numbers \(I8\), and conf"),
    "a shard is missing": (without_a_shard, "model-00002-of"),
    "truncated weights": (truncated, "bytes, and by its header"),
    "half the merges": (half_the_merges, "splits 'yes' into 2 tokens"),
    "no control tokens": (without_control_tokens, "does not know"),
    "another normalizer": (tokenizer(normalizer={"type": "Lowercase"}), "another normalizer than Qwen's"),
    "a suffix of words": (suffix_of_words, "'yes' becomes.*use the tokenizer of the checkpoint's base"),
    "a space in front of every text, as tokenizer.json says": (
        general(byte_level(add_prefix_space=True)),
        "'yes' becomes 'Ġyes'",
    ),
    "no space at the ends of a text": (
        general(tokenizer(normalizer={"type": "Strip", "strip_left": True, "strip_right": True})),
        "' yes' becomes 'yes'",
    ),
    "a space in front of every text": (tokenizer_config(add_prefix_space=True), "add_prefix_space=True"),
    "control tokens split": (tokenizer_config(split_special_tokens=True), "split_special_tokens=True"),
    "a word that only transformers adds": (
        tokenizer_config(added_tokens_decoder={"14463": WORD | {"special": False}}), "adds the token 'volcanoes'"
    ),
    "white space that belongs to a token": (
        tokenizer_config(added_tokens_decoder={"14463": WORD | {"content": "</think>", "rstrip": True}}),
        "rstrip=True of the token '</think>'",
    ),
    "a token with another id": (
        tokenizer_config(added_tokens_decoder={"14462": WORD | {"content": "</think>"}}),
        "'</think>' the id 14462 in .*gives it 14463"
    ),
    "a word as pad_token": (tokenizer_config(pad_token="!"), "'!' as pad_token.*remove the setting"),  # noqa: S106
    "a word as eos_token": (tokenizer_config(eos_token={"content": "rock"}), "'rock' as eos_token"),
    "a word among the special tokens": (
        tokenizer_config(additional_special_tokens=["<|im_end|>", "crust"]), "'crust' as additional_special_tokens"
    ),
    "a named special token": (tokenizer_config(extra_special_tokens={"brand": "crust"}), "'crust' as extra_special"),
    "a token without content": (tokenizer_config(added_tokens_decoder={"14459": {}}), r"decoder\.14459=\{\}.*remove"),
    "a list of added tokens": (tokenizer_config(added_tokens_decoder=["crust"]), r"decoder=\['crust'\].*save the tok"),
    "a token with the id of another": (
        tokenizer_config(added_tokens_decoder={"5000": WORD}), r"'volcanoes' \(5000\).*id of .* so remove the entry"
    ),
    "more words than rows": (words_of_config(), "makes ids up to 14464.*knows only 14464 ids"),
    "a prefix of parts of words": (subword_prefix, "says model.continuing_subword_prefix='##'.*write null"),
    "parts that are merged at once": (model(ignore_merges=True), "model.ignore_merges=True, and transformers would"),
    "a token for the unknown": (model(unk_token="!"), "model.unk_token='!', and transformers would"),  # noqa: S106
    "a second pattern": (byte_level(use_regex=True), "another pre_tokenizer than Qwen's"),
    "a word found in another form": (words_of_config(normalized=True), "normalized=True of the token 'volcanoes'"),
    "a word that transformers does not know": (without_a_word, "without 'volcanoes'.*or add the entry"),
    "a word in added_tokens.json": (older_file("added_tokens.json", crust=14463), r"'crust' \(14463\) in added_tokens"),
    "a word in special_tokens_map.json": (older_file("special_tokens_map.json", pad_token="rock"), "'rock' as pad"),  # noqa: S106
    "a word for images": (tokenizer_config(image_token="crust"), "'crust' as image_token"),  # noqa: S106
    "another kind of tokenizer in config.json": (class_in_config, r"config\.json says tokenizer_class='LlamaTokenizer"),
    "another kind of tokenizer": (tokenizer_config(tokenizer_class="LlamaTokenizerFast"), "not a tokenizer of Qwen"),
}  # fmt: skip


@pytest.mark.parametrize("edit", list(SCORED))
def test_an_edit_counts_as_in_transformers(edit: str, tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    SCORED[edit](folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert margins(folder) == pytest.approx(difference(model, folder), abs=TOLERANCE)


@pytest.mark.parametrize("edit", list(REFUSED))
def test_what_cannot_be_followed_is_refused(edit: str, tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    change, message = REFUSED[edit]
    change(folder)
    with pytest.raises(UnsupportedModelError, match=f"(?s){message}"):
        margins(folder)


ADAPTERS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "ranks by pattern": {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"up_proj": 2}},
    "saved output matrix": {"modules_to_save": ["lm_head"]},
    "trained embeddings": {"modules_to_save": ["embed_tokens"]},
    "trained tokens": {"trainable_token_indices": [YES, NO, 100]},
    "output matrix": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.filterwarnings("ignore:.*(tied|tie_word_embeddings|embedding layer).*:UserWarning")
@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_adapters_of_peft(kind: str, tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(5)
    arguments = {"target_modules": ["q_proj", "up_proj"], "r": 4, "lora_alpha": 16, "init_lora_weights": False}
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    adapter = get_peft_model(base, LoraConfig(**(arguments | ADAPTERS[kind])))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if any(each in name for each in ("modules_to_save", "magnitude", "trainable_tokens")):
                parameter.add_(torch.randn_like(parameter) / 50)
            elif "lora_embedding" in name:
                parameter.div_(50)
    adapter.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    expected = difference(PeftModel.from_pretrained(base, tmp_path / "adapter"), tiny)
    assert margins(tmp_path / "adapter") == pytest.approx(expected, abs=5 * TOLERANCE)


def test_a_dtype_that_does_not_exist_has_no_effect(tiny: Path, tmp_path: Path) -> None:
    """Margins do not depend on it, because `dtype` is a setting of the reranker. transformers refuses the folder."""
    folder = copy_of(tiny, tmp_path / "model")
    edit_json(folder / "config.json", torch_dtype="bogus")
    assert margins(folder) == pytest.approx(margins(tiny), abs=TOLERANCE)


def test_adapters_with_a_config_are_not_whole_weights(tiny: Path, tmp_path: Path) -> None:
    """Some trainers write config.json of the base next to the adapter."""
    adapter = write_adapter(tiny, tmp_path / "adapter")
    expected = margins(adapter)
    (adapter / "config.json").write_bytes((tiny / "config.json").read_bytes())
    assert margins(adapter) == pytest.approx(expected, abs=TOLERANCE)


def test_weights_that_another_training_changed_do_not_tell_whether_an_adapter_is_merged(
    tiny: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tiny, tmp_path / "adapter")
    folder = copy_of(tiny, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(2)
    save_file(
        {name: each + torch.randn_like(each) / 500 for name, each in weights.items()}, folder / "model.safetensors"
    )
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((adapter / name).read_bytes())
    with pytest.raises(UnsupportedModelError, match=r"unclear whether.*neither.*adapter='none'"):
        resolve_checkpoint(folder)
    assert resolve_checkpoint(folder, adapter="none").adapter is None


def test_adapters_that_cannot_be_merged_are_refused(tiny: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tiny, tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", peft_type="PROMPT_TUNING")
    for arguments in ({"model": adapter}, {"model": tiny, "adapter": adapter}):
        with pytest.raises(UnsupportedModelError, match=r"'PROMPT_TUNING'.*cannot be merged into weights"):
            resolve_checkpoint(**arguments)


def test_an_adapter_of_a_classifier_on_a_causal_base_is_refused(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1, dtype=torch.float32)
    config = LoraConfig(target_modules=["q_proj"], r=2, task_type="SEQ_CLS")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        UnsupportedModelError, match=r"score head.*num_labels=1.*the tokenizer.*scoring='score-head' if.*template="
    ):
        margins(tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "merged")
    merged.config.pad_token_id = 0
    expected = [float(each[0]) for each in last_logits(merged, tiny, prompts(tiny))]
    assert margins(tmp_path / "merged", scoring="score-head") == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.filterwarnings("ignore:.*missing adapter keys.*:UserWarning")
def test_an_adapter_with_other_tensors_than_it_says_is_refused(tiny: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tiny, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    name = min(weights)
    lacking = {each: tensor for each, tensor in weights.items() if each != name}
    spoilt = weights | {name: torch.full_like(weights[name], float("nan"))}
    for changed, message in (
        (lacking, rf"adapter_config\.json asks for {name}, which .*download both"),
        (
            weights | {"more.weight": torch.zeros(2)},
            r"safetensors has more\.weight, for which .* a place; download both",
        ),
        (spoilt, rf"{name} in .*adapter_model\.safetensors holds values that are not finite: download"),
    ):
        save_file(changed, adapter / "adapter_model.safetensors")
        with pytest.raises(UnsupportedModelError, match=message):
            margins(adapter)


def test_an_adapter_with_another_rank_than_it_says_is_refused(tiny: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tiny, tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", r=8)
    message = r"q_proj\.lora_A.*\[4, 256\] in adapter_model.safetensors, and \[8, 256\] by .*\(r=8\): write the r"
    with pytest.raises(UnsupportedModelError, match=message):
        margins(adapter)


def test_an_adapter_with_words_of_its_own_is_refused(tiny: Path, tmp_path: Path) -> None:
    """Its base has no rows for them, and its tokenizer would make other ids than its training did."""
    adapter = write_adapter(tiny, tmp_path / "adapter")
    words = AutoTokenizer.from_pretrained(tiny)
    words.add_tokens(["volcanoes"])
    words.save_pretrained(adapter)
    with pytest.raises(UnsupportedModelError, match=r"volcanoes.*merge_and_unload"):
        resolve_checkpoint(adapter)


def test_a_chat_template_for_pairs_is_the_prompt_without_modules_too(tiny: Path, tmp_path: Path) -> None:
    chat = (
        "{%- for m in messages if m.role == 'query' %}Q: {{ m.content }}{%- endfor %}"
        "{%- for m in messages if m.role == 'document' %} D: {{ m.content }}{%- endfor %} A:"
    )
    folder = copy_of(tiny, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(chat)
    assert read_spec(folder).template == "Q: {query} D: {document} A:"
    expected = [text.format(QUERY, document) for text, document in zip(["Q: {} D: {} A:"] * 4, DOCUMENTS, strict=True)]
    assert prompts(folder) == expected


@pytest.fixture(scope="module")
def cross_encoder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cross_encoder(tiny, tmp_path_factory.mktemp("models") / "model", YES, NO)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"truncation": False}}}),
        ("sentence_bert_config.json", {"processing_kwargs": {"common": {"padding": True}}}),
        ("sentence_bert_config.json", {"processing_kwargs": {"chat_template": {"continue_final_message": True}}}),
        ("sentence_bert_config.json", {"transformer_task": "feature-extraction"}),
        ("sentence_bert_config.json", {"model_kwargs": {"subfolder": "other"}}),
        ("sentence_bert_config.json", {"temperature": 2.0}),
        ("config_sentence_transformers.json", {"model_type": "SentenceTransformer"}),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.modules.activation.Tanh"}),
        ("config_sentence_transformers.json", {"score_scale": 2.0}),
        ("sentence_bert_config.json", {"modality_config": {"text": {"method": "forward"}}}),
        ("1_LogitScore/config.json", {"temperature": 2.0}),
        ("1_LogitScore/config.json", {"module_input_name": "logits"}),
        ("1_LogitScore/config.json", {"true_token_id": 180}),  # a byte, which is no text
        ("1_LogitScore/config.json", {"false_token_id": 14463}),  # </think>
    ],
)
def test_what_only_sentence_transformers_does_is_refused(
    file: str, changes: dict[str, Any], cross_encoder: Path, tmp_path: Path
) -> None:
    folder = copy_of(cross_encoder, tmp_path / "model")
    edit_json(folder / file, **changes)
    with pytest.raises(UnsupportedModelError, match="CrossEncoder"):
        read_spec(folder)
