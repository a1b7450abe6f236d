"""Folders that no score can be computed from, and what the commands say of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwen3_ranker_plugins import RankerError
from qwen3_ranker_plugins.cli.app import app
from tests.conftest import Ended
from tests.forms import copy_of, edit_json, write_adapter


def dangling(folder: Path, _: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "gone")


def dangling_config(folder: Path, _: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "gone")


def dangling_tokenizer(folder: Path, _: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(folder / "gone")


def pickled_adapter(folder: Path, _: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.bin").write_bytes(b"pickle")


def adapter_of_a_model_elsewhere(folder: Path, tiny: Path) -> None:
    shutil.rmtree(folder)
    write_adapter(tiny, folder)
    edit_json(folder / "adapter_config.json", base_model_name_or_path="/somewhere/else/base")


def gguf(folder: Path, _: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model-Q8_0.gguf").write_bytes(b"GGUF")


def embedding_model(folder: Path, _: Path) -> None:
    (folder / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},'
        ' {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]'
    )


def two_labels(folder: Path, _: Path) -> None:
    edit_json(folder / "config.json", architectures=["Qwen3ForSequenceClassification"])


def gptq(folder: Path, _: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 3})


def unknown_architecture(folder: Path, _: Path) -> None:
    edit_json(folder / "config.json", architectures=["BertForSequenceClassification"])


def no_architecture(folder: Path, _: Path) -> None:
    edit_json(folder / "config.json", architectures=None)


REFUSED: dict[Callable[[Path, Path], None], str] = {
    dangling: r"model\.safetensors is a link to .*gone, which is not there",
    dangling_config: r"config\.json",
    dangling_tokenizer: r"tokenizer\.json",
    pickled_adapter: r"adapter without adapter_model\.safetensors.*save_pretrained",
    adapter_of_a_model_elsewhere: r"is an adapter, and its base is not here.*else/base.*this folder as adapter",
    gguf: r"model-Q8_0\.gguf cannot be read as GGUF.*download it again",
    embedding_model: r"embedding model.*Pooling.*use the reranker",
    two_labels: r"score\.weight",
    gptq: r"'gptq'.*use the unquantised checkpoint",
    unknown_architecture: r"BertForSequenceClassification",
    no_architecture: r"names None as architectures",
}


@pytest.mark.parametrize("damage", list(REFUSED), ids=lambda each: each.__name__)
def test_doctor_says_what_is_wrong_with_a_folder(
    damage: Callable[[Path, Path], None], tiny: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    damage(folder, tiny)
    done = CliRunner().invoke(app, ["doctor", "--model", str(folder)])
    assert isinstance(done.exception, RankerError), done.exception
    with pytest.raises(type(done.exception), match=f"(?s){REFUSED[damage]}"):
        raise done.exception


@pytest.mark.parametrize("command", [["doctor"], ["rank", "-q", "x", __file__]])
def test_no_command_answers_a_dangling_link_with_a_traceback(
    command: list[str], tiny: Path, tmp_path: Path, call: Callable[..., Ended]
) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    dangling(folder, tiny)
    done = call(*command, "--model", folder)
    assert done.code == 1
    assert "which is not there" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_server_does_not_answer_a_dangling_link_with_a_traceback(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    dangling(folder, tiny)
    done = subprocess.run(
        [sys.executable, "-m", "qwen3_ranker_plugins.cli", "serve", "--port", "0", "--model", str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "which is not there" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_architecture_written_as_a_text_is_read(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    edit_json(folder / "config.json", architectures="Qwen3ForCausalLM")
    assert CliRunner().invoke(app, ["rank", "-q", "x", __file__, "--model", str(folder)]).exit_code == 0
