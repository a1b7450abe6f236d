"""Model names: what is found, what is refused, and that the message says what to do."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qwen3_ranker_plugins import ModelNotFoundError, Reranker, ScoringError, UnsupportedModelError
from qwen3_ranker_plugins.config import DEFAULT_MODEL
from qwen3_ranker_plugins.engines.packed.damage import damage_explained
from qwen3_ranker_plugins.errors import ModelError
from qwen3_ranker_plugins.models import resolve_model
from qwen3_ranker_plugins.prompt.tokenizer import load_tokenizer


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def test_a_folder_scores_as_the_bundled_model_does(copy: Path, reranker: Reranker) -> None:
    documents = ["one document", "another"]
    with Reranker(copy) as other:
        assert other.model_path == copy
        assert other.score("query", documents).tolist() == reranker.score("query", documents).tolist()


def test_sharded_weights_load(copy: Path, reranker: Reranker) -> None:
    model = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.bfloat16)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="5MB")
    assert len(list(copy.glob("*.safetensors"))) > 1
    with Reranker(copy) as other:
        assert other.score("q", ["a b c"]).tolist() == reranker.score("q", ["a b c"]).tolist()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "there is no folder"),
        ("/no/such", "there is no folder"),
        ("bundled:huge", "the only bundled model is 'bundled:tiny'"),
    ],
)
def test_missing_models(name: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"model='{name}'") as caught:
        resolve_model(name)
    assert message in str(caught.value)


def test_no_network_is_one_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A port where nothing listens stands for a machine without a network."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError) as caught:
        Reranker(DEFAULT_MODEL)
    for part in (DEFAULT_MODEL, "cannot be reached", "hf download Qwen/Qwen3-Reranker-0.6B", "bundled:tiny"):
        assert part in str(caught.value)


def test_weights_that_can_run_code_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"no \*\.safetensors weights \(only pytorch_model\.bin"):
        resolve_model(copy)


@pytest.mark.parametrize(
    ("file", "auto_map"),
    [
        ("config.json", {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
        ("config.json", {"AutoModel": "somebody/model--evil.Model"}),
        ("config.json", {"AutoTokenizer": ["evil.Model", None]}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "evil.Model"]}),
        ("tokenizer_config.json", ["evil.Model", None]),
    ],
)
def test_code_in_the_folder_is_neither_run_nor_ignored(file: str, auto_map: object, copy: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (copy / "evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass Model: ...\n")
    settings = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(settings | {"auto_map": auto_map}))
    with pytest.raises(UnsupportedModelError, match=rf"{file} says auto_map=.*evil\.Model.*remove auto_map if"):
        Reranker(copy)
    assert not ran.exists()


def test_the_path_of_a_file_or_a_folder_too_high_is_answered_with_the_folder(copy: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(ModelNotFoundError, match=rf"{name}' is a file: give its folder, '{copy}'"):
            resolve_model(copy / name)
    with pytest.raises(
        UnsupportedModelError, match=rf"has no config\.json: give the model's folder below it, '{copy}'"
    ):
        resolve_model(tmp_path)
    snapshot = tmp_path / "cache" / "models--x--y" / "snapshots" / "abc"
    shutil.copytree(copy, snapshot)
    with pytest.raises(UnsupportedModelError, match=rf"models--x--y has no config\.json: give .*, '{snapshot}'"):
        resolve_model(snapshot.parent.parent)
    with pytest.raises(UnsupportedModelError, match=r"cache has no config\.json: give the folder of a transformers"):
        resolve_model(tmp_path / "cache")


def test_code_of_a_configuration_is_not_run(copy: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (copy / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass Config: ...\nclass Model: ...\n"
    )
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config"}
    (copy / "config.json").write_text(json.dumps(config))
    with Reranker(copy) as safe:
        safe.score("q", ["d"])
    assert not ran.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "model_type='qwen3' and Qwen2ForCausalLM"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, r"without a readable score\.weight"),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM, and this package scores Qwen3ForCausalLM"),
        ({"architectures": None}, "None as architectures"),
    ],
)
def test_other_architectures_are_refused(copy: Path, change: dict[str, object], message: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnsupportedModelError, match=message):
        Reranker(copy)


def test_a_sliding_window_is_refused(copy: Path) -> None:
    """The packed layout has no windows; ignoring one would score long documents wrongly."""
    config = json.loads((copy / "config.json").read_text())
    layers = config["num_hidden_layers"]
    config |= {
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 0,
        "layer_types": ["sliding_attention"] * layers,
    }
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="full attention"):
        Reranker(copy)


def test_a_tokenizer_without_single_labels_is_refused(copy: Path) -> None:
    specification = json.loads((copy / "tokenizer.json").read_text())
    model = specification["model"]
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in ("yes", "no")]
    (copy / "tokenizer.json").write_text(json.dumps(specification))
    for read in (Reranker, lambda folder: load_tokenizer(folder).yes_id):  # the labels of its family, and vLLM's
        with pytest.raises(UnsupportedModelError, match=r"splits 'yes' into \d tokens"):
            read(copy)


def test_a_tokenizer_of_another_kind_is_refused(copy: Path) -> None:
    specification = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(specification | {"pre_tokenizer": None}))
    with pytest.raises(UnsupportedModelError, match="no pre-tokenizer"):
        load_tokenizer(copy)


def test_an_added_token_whose_id_is_not_its_place_is_refused(copy: Path) -> None:
    """The library numbers added tokens anew, so their embeddings would be those of other tokens."""
    specification = json.loads((copy / "tokenizer.json").read_text())
    usual = specification["added_tokens"]
    highest = max(each["id"] for each in usual)
    moved = [each | {"id": each["id"] + 1} for each in usual]  # as transformers writes it if a word has a low id
    for tokens in ([*usual, added(highest + 9, "added")], [added(usual[0]["id"], "added"), *moved]):
        (copy / "tokenizer.json").write_text(json.dumps(specification | {"added_tokens": tokens}))
        with pytest.raises(UnsupportedModelError, match=r"does not follow the ids of all other tokens: remove it"):
            load_tokenizer(copy)


def test_an_added_token_with_the_id_of_another_is_refused_with_what_helps(copy: Path) -> None:
    """Saving it again would keep the id, or give it the one of a control token."""
    path = copy / "tokenizer.json"
    whole = json.loads(path.read_text())
    for token_id in (9693, min(each["id"] for each in whole["added_tokens"])):
        specification = whole | {"added_tokens": [*whole["added_tokens"], added(token_id, "crust")]}
        path.write_text(json.dumps(specification))
        with pytest.raises(UnsupportedModelError, match=rf"'crust' the id {token_id}, which is that of .*: remove"):
            load_tokenizer(copy)
    path.write_text(json.dumps(whole))  # the remedy
    load_tokenizer(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, r"says added_tokens\.0\.id=None, which is not an id"),
        ({"id": -1}, r"says added_tokens\.0\.id=-1, which is not an id"),
        ({"id": True}, r"says added_tokens\.0\.id=True, which is not an id"),
        ({"content": 3.7}, r"says added_tokens\.0\.content=3\.7, which is not a text"),
        ({"content": ""}, r"says added_tokens\.0\.content='', which is not a text"),
        ({"special": "x"}, r"says added_tokens\.0\.special='x', which is not true or false"),
    ],
)
def test_an_added_token_of_another_type_is_named(change: dict[str, object], message: str, copy: Path) -> None:
    specification = json.loads((copy / "tokenizer.json").read_text())
    specification["added_tokens"][0] |= change
    (copy / "tokenizer.json").write_text(json.dumps(specification))
    with pytest.raises(UnsupportedModelError, match=message):
        load_tokenizer(copy)


def added(token_id: int, content: str, **settings: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": token_id, "content": content} | flags | settings


def add_tokens(folder: Path, *tokens: tuple[str, dict[str, bool]], **model: Any) -> None:
    """After the tokens that the tokenizer has, with the next ids."""
    specification = json.loads((folder / "tokenizer.json").read_text())
    following = 1 + max(each["id"] for each in specification["added_tokens"])
    ordinary, special = ([each for each in tokens if each[1].get("special", False) is kind] for kind in (False, True))
    listed = [added(following + at, word, **flags) for at, (word, flags) in enumerate([*special, *ordinary])]
    specification["added_tokens"] += listed
    specification["model"] |= model
    (folder / "tokenizer.json").write_text(json.dumps(specification))


def test_a_control_token_that_a_text_can_spell_is_refused(copy: Path) -> None:
    """`ignore_merges` makes a whole word its own token, so that a document could contain the control token."""
    add_tokens(copy, ("judged", {"special": True}), ("added", {}), ignore_merges=True)
    with pytest.raises(UnsupportedModelError, match="encodes the text 'judged' as the control token"):
        load_tokenizer(copy)


def test_a_cut_after_a_word_that_depends_on_what_follows_it(copy: Path) -> None:
    """Such a word counts only if no letter follows, or takes the white space after it: a cut would hide either."""
    add_tokens(copy, ("alone", {"single_word": True}), ("blanks", {"rstrip": True}))
    tokenizer = load_tokenizer(copy)
    for text, position, depends in (
        ("is alonely", 8, True),
        ("is alone here", 8, False),
        ("some blanks here", 11, True),
        ("some blanks.", 11, False),
    ):
        assert tokenizer.splits_vocabulary(text, position) is depends, text
        parts = tokenizer.encode(text[:position]) + tokenizer.encode(text[position:])
        assert (parts != tokenizer.encode(text)) is depends, text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LORA"}, "does not name its base"),
        ({"peft_type": "LORA", "base_model_name_or_path": ""}, "does not name its base"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused(tmp_path: Path, config: dict[str, str], message: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(UnsupportedModelError, match=message):
        Reranker(tmp_path)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {k: v for k, v in weights.items() if ".layers.3." not in k}, "missing keys: .*layers.3"),
        (lambda weights: {f"other.{k}": v for k, v in weights.items()}, "missing keys"),
        (
            lambda weights: weights | {"model.layers.9.mlp.up_proj.weight": torch.zeros(2)},
            "unexpected keys: .*layers.9",
        ),
        (
            lambda weights: weights | {"model.norm.weight": torch.zeros(3)},
            r"model\.norm\.weight should have the shape \[256\]",
        ),
    ],
    ids=["layer missing", "other names", "layer too many", "other shape"],
)
def test_weights_that_do_not_fit_are_refused(copy: Path, change: Any, message: str) -> None:
    """transformers would fill the gaps with random numbers, and they would pass for scores."""
    change_weights(copy, change)
    with pytest.raises(UnsupportedModelError, match=message):
        Reranker(copy)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "Validation error for field 'x':\n    TypeError: Field 'x' expected float",
            "'x': TypeError: Field 'x'",
        ),
        (
            "1 validation error for Config\nbits\n  Should be a bit [type=int, input_value={1: 2}, input_type=dict]",
            "Config: bits: Should be a bit, not {1: 2})",
        ),
        ("Error(s) in loading state_dict for M:\n\tsize mismatch for a.weight\n\tb", "M: size mismatch for a.weight)"),
        ("one line\nanother", "one line)"),
        ("", "no reason given)"),
    ],
)
def test_a_reason_in_several_lines_is_not_cut_at_a_colon(message: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(reason)), damage_explained(Path("folder")):
        raise ValueError(message)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (RuntimeError("Invalid thread pool!"), "set the environment variable OMP_NUM_THREADS"),
        (MemoryError(), "choose a smaller model"),
        (torch.OutOfMemoryError("CUDA out of memory."), "choose a smaller model"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "choose a smaller model"),
        (PermissionError(errno.EACCES, "Permission denied"), "make it readable"),
        (ValueError(""), "download it again"),
    ],
    ids=["after a fork", "memory", "memory of a GPU", "memory in torch", "not readable", "damaged"],
)
def test_a_load_that_fails_says_what_to_do(error: Exception, remedy: str) -> None:
    """A sound checkpoint does not have to be fetched again."""
    with pytest.raises(ModelError, match=remedy) as caught, damage_explained(Path("folder")):
        raise error
    assert ("download" in str(caught.value)) == (remedy == "download it again")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers_are_named(dtype: torch.dtype, copy: Path) -> None:
    """The margins of all documents are no numbers then, and no setting helps."""
    spoilt = torch.full((256,), 1.0)
    spoilt[7] = float("nan") if dtype == torch.float32 else float("inf")
    change_weights(copy, lambda weights: weights | {"model.norm.weight": spoilt.to(dtype)})
    with Reranker(copy) as reranker, pytest.raises(
        ScoringError, match=r"its margin is -?(nan|inf), because model\.norm\.weight in .*safetensors holds .*download"
    ):  # fmt: skip
        reranker.rerank("q", ["a", "b"])


def test_numbers_that_float16_cannot_hold_are_told_from_damage(copy: Path) -> None:
    change_weights(copy, lambda weights: weights | {"model.norm.weight": torch.full((256,), 1e30)})
    with Reranker(copy, dtype="float16") as reranker, pytest.raises(ScoringError, match="use dtype='bfloat16'"):
        reranker.rerank("q", ["a"])
    with Reranker(copy, dtype="bfloat16") as reranker:  # the remedy
        assert len(reranker.rerank("q", ["a"])) == 1


def test_untied_weights_need_their_output_matrix(copy: Path, reranker: Reranker) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(UnsupportedModelError, match=r"missing keys: lm_head\.weight"):
        Reranker(copy)
    change_weights(copy, lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    with Reranker(copy) as untied:
        assert untied.score("q", ["a b c"]).tolist() == pytest.approx(reranker.score("q", ["a b c"]).tolist())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"", "is empty"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{not json", "is damaged"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("config.json", b"[]", "no JSON object"),
        ("config.json", b"{", "cannot be read"),
        ("tokenizer.json", b"{", "cannot be read"),
        ("tokenizer.json", b"{}", "cannot be read"),
    ],
)
def test_damaged_files_are_named(copy: Path, file: str, content: bytes, message: str) -> None:
    (copy / file).write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        Reranker(copy)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 128}, r"config\.json says .*hidden_size=128, so model\.embed_tokens\.weight should have"),
        ({"vocab_size": 5000}, r"says vocab_size=5000, hidden_size=256, so model\.embed_tokens\.weight should have"),
        ({"hidden_size": "many"}, r"config\.json says hidden_size='many', which is not a positive whole number"),
        ({"num_hidden_layers": 10**9}, "says num_hidden_layers=1000000000, and the weights have 6 layers"),
        ({"num_key_value_heads": None}, r"k_proj\.weight has the shape \[128, 256\] in the weights, and by"),
        (
            {"num_key_value_heads": 4},
            r"num_key_value_heads=4, .*k_proj\.weight should have the shape \[256, 256\], and in",
        ),
        ({"intermediate_size": None}, "says intermediate_size=None, which is not a positive whole number"),
        ({"num_hidden_layers": 0}, "says num_hidden_layers=0, which is not a positive whole number"),
        ({"head_dim": 64.0}, "says head_dim=64.0, which is not a positive whole number"),
        ({"rms_norm_eps": "1e-6"}, "says rms_norm_eps='1e-6', which is not a positive number"),
        ({"rms_norm_eps": float("nan")}, "says rms_norm_eps=nan, which is not a positive number"),
        ({"rope_theta": True}, "says rope_theta=True, which is not a positive number"),
        ({"tie_word_embeddings": 1}, "says tie_word_embeddings=1, which is not true or false"),
        ({"max_position_embeddings": None}, r"config\.json says max_position_embeddings=None"),
        ({"rope_scaling": ["yarn"]}, r"says rope_scaling=\['yarn'\], which is not an object"),
        ({"rope_scaling": {"type": "foo"}}, r"says rope_scaling\.rope_type='foo', which is not one of default, linear"),
        ({"rope_scaling": {"rope_type": "yarn"}}, r"says rope_scaling\.factor=None, which is not the number that"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": "4"}},
            r"says rope_scaling\.factor='4', which is not",
        ),
        ({"quantization_config": {}}, r"quantization_config without a quant_method \({}\): if the weights are not"),
        (
            {"hidden_act": "gelu", "pad_token_id": "x"},
            r"config\.json: transformers refuses a setting \(.*'pad_token_id' with value 'x' .*\): write the",
        ),
        (
            {"problem_type": "single_label_classification", "id2label": {"0": "LABEL_0"}},
            "problem_type='single_label_classification', which .* a single label: remove it",
        ),
        ({"problem_type": "ranking"}, "problem_type='ranking', which transformers refuses: remove it"),
        ({"hidden_act": None}, "says hidden_act=None, which is not the name of an activation"),
        ({"hidden_act": "swish9"}, "cannot be loaded .*swish9"),
        ({"model_type": "llama"}, "model_type='llama' and Qwen3ForCausalLM"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}},
            "depend on the other prompts",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_refused(copy: Path, change: dict[str, object], message: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    config.pop("rope_scaling", None)
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnsupportedModelError, match=message):
        Reranker(copy)


def test_weights_written_anew_are_loaded_anew(copy: Path) -> None:
    with Reranker(copy) as before:
        scores = before.score("q", ["a b c"])
        change_weights(copy, lambda weights: {k: v * 0.5 if "mlp" in k else v for k, v in weights.items()})
        with Reranker(copy) as after:
            assert after.score("q", ["a b c"]) != scores
        assert before.score("q", ["a b c"]) == scores


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_incomplete_folders_are_refused(copy: Path, file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(UnsupportedModelError, match=f"no {file}"):
        Reranker(copy)
