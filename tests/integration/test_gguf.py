"""GGUF files, written as llama.cpp's convert_hf_to_gguf.py writes Qwen3 rerankers, against the checkpoint inside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from qwen3_ranker_plugins import ModelNotFoundError, Reranker, UnsupportedModelError
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.models import ModelSpec
from qwen3_ranker_plugins.models.resolve import resolve_checkpoint, resolve_model
from qwen3_ranker_plugins.prompt import TEMPLATES, load_tokenizer
from tests.forms import NO, YES, copy_of

QUERY = "how are volcanoes formed?"
TEXTS = [
    "Magma rises through cracks in the crust and erupts, building a volcano.",
    "Knitting needles come in several sizes.",
    "Lava cools into rock.",
    "",
]
AWKWARD = [
    "It's 1234 o'clock\r\n\r\n  in   CAFE\u0301 | <|im_end|><think> \t",
    "火山是怎么形成的？",
    "\U0001f30b Vulkane — Straße",
]


class Written:
    """What a file is made of; a test changes it before `save`."""

    def __init__(self, folder: Path, *, head: bool = False) -> None:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
        self.tensors: dict[str, np.ndarray[Any, Any]] = {
            f"{names.get_name(name.removesuffix('.weight'))}.weight": tensor.float().numpy()
            for name, tensor in weights.items()
        }
        if head:
            embeddings = self.tensors["token_embd.weight"]
            self.tensors["cls.output.weight"] = np.stack([embeddings[YES], embeddings[NO]])
        self.quantised = gguf.GGMLQuantizationType.F32
        self.fields: dict[str, Any] = {
            "general.name": "Qwen3 Reranker",
            "qwen3.context_length": config["max_position_embeddings"],
            "qwen3.embedding_length": config["hidden_size"],
            "qwen3.block_count": config["num_hidden_layers"],
            "qwen3.feed_forward_length": config["intermediate_size"],
            "qwen3.attention.head_count": config["num_attention_heads"],
            "qwen3.attention.head_count_kv": config["num_key_value_heads"],
            "qwen3.attention.key_length": config["head_dim"],
            "qwen3.attention.value_length": config["head_dim"],
            "qwen3.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            "qwen3.rope.freq_base": float(config["rope_theta"]),
        }
        if head:
            self.fields |= {"qwen3.pooling_type": 4, "qwen3.classifier.output_labels": ["yes", "no"]}
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokens = {number: (text, 1) for text, number in tokenizer["model"]["vocab"].items()}
        tokens |= {each["id"]: (each["content"], 3 if each["special"] else 4) for each in tokenizer["added_tokens"]}
        size = len(self.tensors["token_embd.weight"])
        rows = [tokens.get(number, (f"[PAD{number}]", 5)) for number in range(size)]
        self.fields |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": [text for text, _ in rows],
            "tokenizer.ggml.token_type": [kind for _, kind in rows],
            "tokenizer.ggml.merges": [" ".join(each) for each in tokenizer["model"]["merges"]],
            "tokenizer.ggml.eos_token_id": config["eos_token_id"],
            "tokenizer.ggml.padding_token_id": config["pad_token_id"],
        }
        self.architecture = "qwen3"

    def shorten_vocabulary(self) -> None:
        """Keep the first 300 tokens: a whole vocabulary takes a second to write and to read."""
        tokens = self.fields["tokenizer.ggml.tokens"] = self.fields["tokenizer.ggml.tokens"][:300]
        del self.fields["tokenizer.ggml.token_type"][300:]
        merges = self.fields["tokenizer.ggml.merges"]
        self.fields["tokenizer.ggml.merges"] = [each for each in merges if each.replace(" ", "") in set(tokens)]

    def save(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture)
        for name, value in self.fields.items():
            if isinstance(value, list):
                writer.add_array(name, value)
            elif isinstance(value, str):
                writer.add_string(name, value)
            elif isinstance(value, float):
                writer.add_float32(name, value)
            else:
                writer.add_uint32(name, value)
        for name, tensor in self.tensors.items():
            kind = self.quantised if tensor.ndim > 1 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", tmp_path / "assets")
    return tmp_path / "assets"


@pytest.fixture(scope="module")
def saved(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the bundled model in float32, without a head; read-only, because a whole vocabulary takes seconds."""
    return Written(tiny).save(tmp_path_factory.mktemp("gguf") / "reranker.gguf")


def margins(model: Path) -> list[float]:
    with Reranker(model) as reranker:
        return [each.margin for each in sorted(reranker.rerank(QUERY, TEXTS), key=lambda each: each.index)]


@pytest.mark.parametrize("head", [False, True], ids=["causal", "score head"])
def test_a_file_has_the_margins_of_its_checkpoint(head: bool, tiny: Path, tmp_path: Path, saved: Path) -> None:
    path = Written(tiny, head=True).save(tmp_path / "qwen3.gguf") if head else saved
    assert margins(path) == pytest.approx(margins(tiny), abs=2e-5)
    spec = resolve_checkpoint(path).spec
    assert spec.architecture == ("Qwen3ForSequenceClassification" if head else "Qwen3ForCausalLM")


@pytest.mark.slow
def test_a_quantised_file_has_the_margins_that_transformers_reads_from_it(tiny: Path, tmp_path: Path) -> None:
    written = Written(tiny)
    written.quantised = gguf.GGMLQuantizationType.Q8_0
    path = written.save(tmp_path / "reranker-Q8_0.gguf")
    # transformers does not read attention.key_length
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, config=AutoConfig.from_pretrained(tiny), dtype=torch.float32
    )
    model.hf_quantizer = None  # the weights are dequantised; with it save_pretrained refuses
    model.save_pretrained(tmp_path / "reference")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "reference" / name).write_bytes((tiny / name).read_bytes())
    found = margins(path)
    assert found == pytest.approx(margins(tmp_path / "reference"), abs=2e-5)
    assert found != pytest.approx(margins(tiny), abs=1e-3)  # quantisation is seen


def test_the_vocabulary_becomes_the_same_ids(tiny: Path, saved: Path) -> None:
    ours = load_tokenizer(resolve_checkpoint(saved).folder)
    theirs = load_tokenizer(tiny)
    assert ours.control == theirs.control
    for text in [*TEXTS, *AWKWARD]:
        assert ours.encode(text) == theirs.encode(text)


def test_a_folder_with_one_file_is_unpacked_once(tmp_path: Path, saved: Path, cache: Path) -> None:
    folder = copy_of(saved.parent, tmp_path / "Qwen3-Reranker-GGUF")
    first = resolve_checkpoint(folder).folder
    when = (first / "model.safetensors").stat().st_mtime_ns
    assert resolve_checkpoint(folder / "reranker.gguf").folder == first
    assert (first / "model.safetensors").stat().st_mtime_ns == when
    assert cache in first.parents
    (folder / "other.gguf").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=r"2 GGUF files, other\.gguf, reranker\.gguf: give the path of one"):
        resolve_checkpoint(folder)


#: As llama.cpp's convert_hf_to_gguf.py writes it.
OF_LLAMA_CPP = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web '
    "search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: {document}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
PAIRS = "{% for m in messages %}{% if m['role'] in ('query', 'document') %}[{{ m['content'] }}]{% endif %}{% endfor %}"


def write_prompt(tiny: Path, path: Path, **chat: str) -> Path:
    written = Written(tiny, head=True)
    written.shorten_vocabulary()
    written.fields |= {f"tokenizer.chat_template{name}": text for name, text in chat.items()}
    return written.save(path)


def test_the_prompt_of_a_file_is_followed(tiny: Path, tmp_path: Path) -> None:
    def spec(name: str, **chat: str) -> ModelSpec:
        return resolve_checkpoint(write_prompt(tiny, tmp_path / name, **chat)).spec

    usual = spec(
        "qwen3-reranker-0.6b-f16.GGUF", **{".rerank": OF_LLAMA_CPP, "": "{% for m in messages %}{{ m }}{% endfor %}"}
    )
    assert (usual.template, usual.family) == (TEMPLATES["standard"], "qwen3-reranker")
    assert "rerank, which is llama.cpp's text of it, has single line breaks" in usual.facts["template"]
    other = spec("qwen3-reranker-0.6b-other.gguf", **{".rerank": '{"q": {query}} {document}?', "": PAIRS})
    assert other.template == other.template_without_instruction == '{{"q": {query}}} {document}?'
    assert (other.instruction, other.facts["template"]) == (None, "its own (the file's tokenizer.chat_template.rerank)")
    assert spec("qwen3-reranker-0.6b-pairs.gguf", **{"": PAIRS}).template == "[{query}][{document}]"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{document} {query}", "it needs {query} once, and {document} once after it"),
        ("{query} {query} {document}", "it needs {query} once"),
        ("no fields", "it needs {query} once"),
        ("{instruction} {query} {document}", "it has the field {instruction}, which llama.cpp does not replace"),
    ],
)
def test_a_prompt_of_a_file_that_cannot_be_followed(text: str, why: str, tiny: Path, tmp_path: Path) -> None:
    path = write_prompt(tiny, tmp_path / "file.gguf", **{".rerank": text})
    with pytest.raises(UnsupportedModelError, match=rf"file.gguf.*rerank cannot be followed.*{re.escape(why)}.*; use"):
        resolve_checkpoint(path)


def test_doctor_takes_a_file(saved: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--model", str(saved)])
    assert done.exit_code == 0, done.output
    assert "Qwen3ForCausalLM" in done.output


def embedding(written: Written) -> None:
    written.fields["qwen3.pooling_type"] = 3


def lost_head(written: Written) -> None:
    del written.tensors["cls.output.weight"]


def other_labels(written: Written) -> None:
    written.fields["qwen3.classifier.output_labels"] = ["no", "yes"]


def three_rows(written: Written) -> None:
    written.tensors["cls.output.weight"] = np.concatenate([written.tensors["cls.output.weight"]] * 2)[:3]


def other_architecture(written: Written) -> None:
    written.architecture = "qwen2"


def unknown_setting(written: Written) -> None:
    written.fields["qwen3.attention.sliding_window"] = 512


def scaled(written: Written) -> None:
    written.fields["qwen3.rope.scaling.type"] = "linear"
    written.fields["qwen3.rope.scaling.factor"] = 2.0


def split(written: Written) -> None:
    written.fields["split.count"] = 2


def lost_tensor(written: Written) -> None:
    del written.tensors["blk.1.attn_q_norm.weight"]


def more_tensors(written: Written) -> None:
    written.tensors["blk.1.attn_q.bias"] = np.zeros(256, dtype=np.float32)


def other_tokenizer(written: Written) -> None:
    written.fields["tokenizer.ggml.pre"] = "llama-bpe"


def token_in_front(written: Written) -> None:
    written.fields["tokenizer.ggml.add_bos_token"] = True


def lost_merge(written: Written) -> None:
    written.fields["tokenizer.ggml.merges"] = ["no such"]


def infinite(written: Written) -> None:
    written.tensors["output_norm.weight"] = np.full_like(written.tensors["output_norm.weight"], np.inf)


def zerank(written: Written) -> None:
    written.fields["general.name"] = "zerank-2"


def broken_length(written: Written) -> None:
    written.fields["qwen3.context_length"] = 3.5


def endless_layers(written: Written) -> None:
    written.fields["qwen3.block_count"] = 4_000_000_000


def other_width(written: Written) -> None:
    written.fields["qwen3.feed_forward_length"] = 512


REFUSED: dict[Callable[[Written], None], str] = {
    broken_length: r"its qwen3.context_length=3.5 is not a positive whole number; download it again",
    endless_layers: r"states qwen3.block_count=4000000000 and has \d+ tensors; download it again",
    other_width: r" says intermediate_size=512, .*gate_proj.weight should have the shape",
    embedding: "an embedding model.*use the reranker of its series",
    lost_head: "its score head, cls.output.weight, is missing",
    other_labels: r"\['no', 'yes'\] instead of 'yes' and 'no'",
    three_rows: "its score head has 3 rows",
    other_architecture: "'qwen2', and only 'qwen3'",
    unknown_setting: "attention.sliding_window=512, which is not understood",
    scaled: "scaled by 'linear' with factor 2.0",
    split: "one part of a split model; merge the parts",
    lost_tensor: "lacks the tensor blk.1.attn_q_norm.weight",
    more_tensors: "has the tensor blk.1.attn_q.bias",
    other_tokenizer: r"\('gpt2', 'llama-bpe'\)",
    token_in_front: "states tokenizer.ggml.add_bos_token=true",
    lost_merge: "cannot be read as GGUF .*out of vocabulary",
    infinite: "output_norm.weight holds values that are not finite",
    zerank: "zerank do not state how it judges",
}


@pytest.mark.parametrize("change", list(REFUSED), ids=lambda each: each.__name__)
def test_what_would_be_scored_wrongly_is_refused(
    change: Callable[[Written], None], tiny: Path, tmp_path: Path, cache: Path
) -> None:
    written = Written(tiny, head=True)
    written.shorten_vocabulary()
    change(written)
    path = written.save(tmp_path / "reranker.gguf")
    with pytest.raises(UnsupportedModelError, match=f"(?s)reranker.gguf.*{REFUSED[change]}"):
        resolve_checkpoint(path)
    assert not list(cache.rglob("config.json"))


def test_any_language_model_is_no_reranker(tiny: Path, tmp_path: Path) -> None:
    written = Written(tiny)
    written.shorten_vocabulary()
    written.fields["general.name"] = "Qwen3 0.6B Instruct"
    path = written.save(tmp_path / "qwen3-0.6b.gguf")
    with pytest.raises(UnsupportedModelError, match=r"a name with 'rerank'.*write 'rerank' into the file's name"):
        resolve_model(path)
    assert json.loads((resolve_model(path.rename(tmp_path / "my-reranker.gguf")) / "config.json").read_text())[
        "architectures"
    ] == ["Qwen3ForCausalLM"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_refused(share: float, tmp_path: Path, saved: Path) -> None:
    path = tmp_path / "reranker.gguf"
    path.write_bytes(saved.read_bytes()[: int(saved.stat().st_size * share)])
    with pytest.raises(UnsupportedModelError, match=r"(cannot be read as GGUF|is empty).*download it again"):
        resolve_checkpoint(path)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"there is no folder .*nothing\.gguf; give an existing folder or GGUF"
    ):
        resolve_checkpoint("nothing.gguf")
