"""Files of a checkpoint that cannot be read: each message names the file, says what is wrong, and has the remedy."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from qwen3_ranker_plugins import RankerError, Reranker, model_files
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.models import resolve_checkpoint
from tests.forms import QWEN3_CHAT, ZERANK_CHAT, copy_of

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.LogitScore"},
]
LORA = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
#: Files whose content decides a score, by the folder in which they are.
FILES = {
    "model": [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        "modules.json",
        "1_LogitScore/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "chat_template.jinja",
    ],
    "divided": ["model.safetensors.index.json", "model-00001-of-00001.safetensors"],
    "adapter": ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"],
}


def link(path: Path) -> str:
    path.symlink_to(path.parent / "gone")
    return r"is a link to .*gone, which is not there: copy .*or download it again"


def loop(path: Path) -> str:
    path.symlink_to(path.name)
    return rf"is a link to {path.name}, which leads back to it: copy .*or download it again"


def folder_instead(path: Path) -> str:
    path.mkdir()
    return "is a folder instead of a file: remove it, and download"


def pointer(path: Path) -> str:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    return "is a git-lfs pointer.*git lfs pull"


def empty(path: Path) -> str:
    path.touch()
    return "is empty: download it again"


def write_form(form: str, tiny: Path, folder: Path) -> Path:
    """A folder whose files link to those of the bundled model, as in the hub's cache."""
    folder.mkdir()
    for path in tiny.iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    if form == "model":
        (folder / "modules.json").write_text(json.dumps(MODULES))
        (folder / "1_LogitScore").mkdir()
        (folder / "1_LogitScore" / "config.json").write_text('{"true_token_id": 9693, "false_token_id": 2152}')
        (folder / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
        (folder / "sentence_bert_config.json").write_text('{"modality_config": {"message": {}}}')
        settings = json.loads((tiny / "tokenizer_config.json").read_text()) | {"chat_template": QWEN3_CHAT}
        (folder / "tokenizer_config.json").unlink()
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    elif form == "divided":
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        names = {"model.norm.weight": "model-00001-of-00001.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    elif form == "adapter":
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
        (folder / "adapter_config.json").write_text(json.dumps(LORA | {"base_model_name_or_path": str(tiny)}))
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        save_file({name: np.zeros((1, 256), np.float32)}, folder / "adapter_model.safetensors")
    return folder


def check_refused(folder: Path, file: str, content: str, message: str) -> None:
    """With this content of a file, the folder is refused."""
    (folder / file).unlink(missing_ok=True)
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(RankerError, match=message):
        resolve_checkpoint(folder)


@pytest.mark.parametrize("damage", [link, loop, folder_instead, pointer, empty], ids=lambda each: each.__name__)
@pytest.mark.parametrize(("form", "file"), [(form, file) for form, files in FILES.items() for file in files])
def test_a_file_that_is_none_is_named(
    form: str, file: str, damage: Callable[[Path], str], tiny: Path, tmp_path: Path
) -> None:
    folder = write_form(form, tiny, tmp_path / "folder")
    resolve_checkpoint(folder)
    (folder / file).unlink(missing_ok=True)
    message = damage(folder / file)
    with pytest.raises(RankerError, match=rf"(?s)folder/{file} {message}"):
        resolve_checkpoint(folder)


def test_every_way_to_a_model_says_the_same(tiny: Path, tmp_path: Path) -> None:
    folder = write_form("model", tiny, tmp_path / "folder")
    (folder / "tokenizer.json").unlink()
    link(folder / "tokenizer.json")
    with pytest.raises(RankerError, match=r"tokenizer\.json is a link to") as caught:
        Reranker(folder)
    for command in (["doctor"], ["rank", "-q", "x", __file__], ["serve", "--port", "0"]):
        done = CliRunner().invoke(app, [*command, "--model", str(folder)])
        assert done.exit_code == 1, command
        assert str(caught.value) in f"{done.output} {done.exception}", command


@pytest.mark.parametrize("suffix", ["", ".gguf"])
def test_a_model_that_is_a_link_to_nothing(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(RankerError, match=rf"model{suffix} is a link to .*gone, which is not there"):
        resolve_checkpoint(path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "{}", r"modules\.json holds \{\} instead of a list of modules"),
        ("modules.json", '["a"]', "instead of a list of modules"),
        ("modules.json", json.dumps([MODULES[0], MODULES[1] | {"path": None}]), "says path=None of module 1"),
        ("modules.json", json.dumps([MODULES[0], MODULES[1] | {"path": "../x"}]), r"says path='\.\./x' of module 1"),
        ("modules.json", json.dumps([MODULES[0], MODULES[1] | {"path": "/x"}]), "says path='/x' of module 1"),
        ("modules.json", json.dumps([{"path": ""}]), "says type=None of module 0"),
        ("modules.json", json.dumps([MODULES[0], MODULES[1] | {"path": "2_X"}]), r"2_X/config\.json is missing: "),
        ("tokenizer_config.json", '{"chat_template": [1]}', r"tokenizer_config\.json says chat_template=\[1\]"),
        ("tokenizer_config.json", '{"chat_template": 3}', r"tokenizer_config\.json says chat_template=3"),
        ("config.json", "\ufeff{}", r"config\.json cannot be read .*BOM"),
        ("config.json", '{"a": ' * 100_000, r"config\.json cannot be read .*download it again"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_named(file: str, content: str, message: str, tiny: Path, tmp_path: Path) -> None:
    check_refused(write_form("model", tiny, tmp_path / "folder"), file, content, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 0}, "says r=0, which is no rank"),
        ({"r": "4"}, "says r='4', which is not a positive whole number"),
        ({"lora_alpha": "16"}, "says lora_alpha='16', which is not a finite number"),
        ({"lora_alpha": float("nan")}, "says lora_alpha=nan, which is not a finite number"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, r"says alpha_pattern=\{'q_proj': inf\}, which is not an object"),
        ({"rank_pattern": {"q_proj": 1.5}}, r"says rank_pattern=\{'q_proj': 1.5\}, which is not .* whole numbers"),
        ({"alora_invocation_tokens": [3, 4]}, r"says alora_invocation_tokens=\[3, 4\]: an activated LoRA changes only"),
        ({"layer_replication": [[0, 4], [2, 6]]}, "says layer_replication=.*more layers than its base has"),
        ({"init_lora_weights": "pissa_niter_4"}, "says init_lora_weights='pissa_niter_4', .*weight_conversion="),
        ({"revision": 3}, "says revision=3, which is not a revision of its base"),
        ({"target_modules": [1]}, r"says target_modules=\[1\], which is not a list of modules' names"),
        ({"rank_pattern": 0}, "says rank_pattern=0, which is not an object"),
        ({"use_dora": "true"}, "says use_dora='true', which is not true or false"),
        ({"base_model_name_or_path": [1]}, r"says base_model_name_or_path=\[1\]\): give the base as model"),
    ],
)
def test_a_setting_of_an_adapter_is_named(change: dict[str, object], message: str, tiny: Path, tmp_path: Path) -> None:
    folder = write_form("adapter", tiny, tmp_path / "folder")
    settings = LORA | {"base_model_name_or_path": str(tiny)} | change
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(RankerError, match=rf"adapter_config\.json {message}"):
        resolve_checkpoint(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "OFT", "r": 0, "oft_block_size": 32},  # which decides the number of blocks
        {"peft_type": "ADALORA", "rank_pattern": {"q_proj.lora_E": [True, False]}},
    ],
)
def test_other_kinds_of_adapters_have_settings_of_their_own(
    settings: dict[str, object], tiny: Path, tmp_path: Path
) -> None:
    folder = write_form("adapter", tiny, tmp_path / "folder")
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(tiny)}))
    assert resolve_checkpoint(folder).adapter == folder


def test_weights_with_a_part_of_an_adapter(tiny: Path, tmp_path: Path) -> None:
    """A pickle is not read, so whether the weights contain it is unknown. From the hub, it is not even fetched."""
    adapter = write_form("adapter", tiny, tmp_path / "adapter")
    folder = write_form("plain", tiny, tmp_path / "folder")
    (folder / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    for message in (
        r"and adapter_config\.json but not both .*adapter='none', or remove .*remove adapter_config\.json here",
        r"and adapter_config\.json and adapter_model\.bin, which can run code .*adapter='none', or remove .*of its own",
    ):
        with pytest.raises(RankerError, match=message):
            resolve_checkpoint(folder)
        (folder / "adapter_model.bin").write_bytes(b"pickle")
    assert resolve_checkpoint(folder, adapter="none").adapter is None
    assert resolve_checkpoint(folder, adapter=adapter).adapter == adapter  # which was trained on these weights
    (tmp_path / "quantised").mkdir()
    tensors = {"model.layers.0.self_attn.q_proj.weight": np.zeros((256, 256), np.int8)}
    save_file(tensors, tmp_path / "quantised" / "model.safetensors")
    settings = LORA | {"base_model_name_or_path": str(tmp_path / "quantised")}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(RankerError, match=r"unclear .*quantised; compared with it, of 1 tensors .*cannot be compared"):
        resolve_checkpoint(folder, adapter=adapter)


def test_an_adapter_that_is_not_there_is_named_as_adapter(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for name in ("./nowhere", "somebody/nowhere"):
        with pytest.raises(RankerError, match=rf"^adapter='{name}': (?!.*bundled)"):
            resolve_checkpoint(tiny, adapter=name)


def test_the_base_of_an_adapter_has_the_revision_of_its_training(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--base"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    revisions = {"main": "a" * 40, "v1": "b" * 40}
    for name, commit in revisions.items():
        (repository / "refs" / name).write_text(commit)
        write_form("plain", tiny, repository / "snapshots" / commit)
    adapter = write_form("adapter", tiny, tmp_path / "adapter")
    for revision, due in ((None, "main"), ("v1", "v1"), ("b" * 40, "v1")):
        settings = LORA | {"base_model_name_or_path": "somebody/base", "revision": revision}
        (adapter / "adapter_config.json").write_text(json.dumps(settings))
        assert resolve_checkpoint(adapter).folder.name == revisions[due]
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"revision": "v2"}))
    with pytest.raises(RankerError, match=r"somebody/base' with revision 'v2'.*--revision v2"):
        resolve_checkpoint(adapter)


def test_an_adapter_without_its_settings(tiny: Path, tmp_path: Path) -> None:
    folder = write_form("adapter", tiny, tmp_path / "folder")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(RankerError, match=r"is an adapter without adapter_config\.json, .*: download that file"):
        resolve_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("sentence_bert_config.json", "{}", r"no 'message' in its modality_config.*CrossEncoder"),
        ("sentence_bert_config.json", '{"modality_config": {"message": {"format": "x"}}}', "format='x' instead of"),
        (
            "config_sentence_transformers.json",
            '{"model_type": "CrossEncoder", "default_prompt_name": ["q"]}',
            r"names the default prompt \['q'\]",
        ),
        ("config_sentence_transformers.json", "{}", "has no model_type, so sentence-transformers ignores the modules"),
        ("chat_template.jinja", "<html>", "jinja holds '<html>', which is no template: download"),
        ("chat_template.jinja", "{{", "chat template .*cannot be rendered"),
    ],
)  # fmt: skip
def test_files_that_sentence_transformers_reads_otherwise(
    file: str, content: str, message: str, tiny: Path, tmp_path: Path
) -> None:
    check_refused(write_form("model", tiny, tmp_path / "folder"), file, content, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"index\.json says weight_map=None"),
        ('{"weight_map": {"a": 1}}', r"says weight_map=\{'a': 1\}"),
        ('{"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}', r"x\.safetensors is missing, .* a and 1"),
    ],
)  # fmt: skip
def test_an_index_names_the_files_of_a_model(content: str, message: str, tiny: Path, tmp_path: Path) -> None:
    folder = write_form("divided", tiny, tmp_path / "folder")
    check_refused(folder, "model.safetensors.index.json", content, message)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(RankerError, match=r"00001\.safetensors, but neither model\.safetensors nor .*download"):
        resolve_checkpoint(folder)


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [1]}}', b'{"a": {"data_offsets": [0, 4]}}']
)
def test_weights_without_a_header_are_damaged(header: bytes, tiny: Path, tmp_path: Path) -> None:
    folder = write_form("model", tiny, tmp_path / "folder")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(RankerError, match=r"model\.safetensors is damaged .*download it again"):
        resolve_checkpoint(folder)


def test_names_of_files_and_tensors(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "folder")
    weights = folder / "model.safetensors"
    (folder / "._model.safetensors").write_bytes(b"\x00\x05\x16\x07")  # as macOS writes it
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizer"}')
    resolve_checkpoint(folder)
    other = weights.rename(folder / "model (1).safetensors")
    with pytest.raises(
        RankerError, match=r"has model \(1\)\.safetensors, .* holds all weights, rename it to model.safe"
    ):
        resolve_checkpoint(folder)
    other.unlink()
    embeddings = np.zeros((2, 2), np.float32)
    save_file({"_orig_mod.model.embed_tokens.weight": embeddings}, weights)
    with pytest.raises(RankerError, match=r"is named _orig_mod\.model\.embed_.*save the model inside the wrapper with"):
        resolve_checkpoint(folder)


def test_an_adapter_whose_base_is_an_adapter(tiny: Path, tmp_path: Path) -> None:
    itself = write_form("adapter", tiny, tmp_path / "itself")
    (itself / "adapter_config.json").write_text(json.dumps(LORA | {"base_model_name_or_path": str(itself)}))
    with pytest.raises(RankerError, match=r"names as base_model_name_or_path the adapter itself: give the model"):
        resolve_checkpoint(itself)
    other = write_form("adapter", tiny, tmp_path / "other")
    (other / "adapter_config.json").write_text(json.dumps(LORA | {"base_model_name_or_path": str(itself)}))
    with pytest.raises(RankerError, match=r"itself, which is an adapter too: give the model"):
        resolve_checkpoint(other)
    with pytest.raises(RankerError, match=r"other is an adapter, not a model: give the model"):
        resolve_checkpoint(other, adapter=other)
    assert resolve_checkpoint(tiny, adapter=itself).adapter == itself  # the remedy
    (itself / "chat_template.jinja").write_text(ZERANK_CHAT)
    assert resolve_checkpoint(tiny, adapter=itself).spec.family == "zerank"  # on which it was trained


def test_only_a_damaged_file_has_to_be_fetched_again() -> None:
    sound = (PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EMFILE, "Too many open files"))
    assert all("download" not in model_files.remedy_of_reading(error) for error in sound)
    damaged = (ValueError("no JSON"), OSError("not a safetensors file"), FileNotFoundError(errno.ENOENT, "gone"))
    assert {model_files.remedy_of_reading(error) for error in damaged} == {"download it again"}
