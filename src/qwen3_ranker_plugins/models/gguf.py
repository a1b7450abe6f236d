"""GGUF files of Qwen3 rerankers, unpacked once into the folder of a checkpoint, which every engine can load.

A GGUF file holds weights, configuration and vocabulary in one file, usually quantised. `unpack` reads them with ggml's
own library, dequantises the weights to float32, and writes safetensors, config.json and tokenizer.json into the assets
cache of huggingface_hub. A setting that is ignored could change scores, so a file with an unknown one is refused.

Two kinds of files are supported:

- With a score head, as llama.cpp's convert_hf_to_gguf.py writes rerankers: cls.output.weight has the rows of "yes" and
  "no". The checkpoint becomes a Qwen3ForSequenceClassification with the difference of the rows as its head.
- Without one: a Qwen3ForCausalLM, whose labels are rows of its output matrix. Such a file may hold any language model,
  so its name, or the name that it states, must have "rerank" in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..content import THOROUGH, add_content
from ..errors import MissingDependencyError, UnsupportedModelError
from ..model_files import check_file, find_files
from ..pip_command import pip_install
from ..prompt.tokenizer import QWEN_SPLIT
from .config_settings import check_settings, check_weights, max_positions
from .gguf_prompt import FILE, KEY, as_template

_log = logging.getLogger(__name__)
#: Part of the cache's key: raise it when the same file is unpacked differently.
_VERSION = 2
#: Bytes of a safetensors file, so that a large model need not fit into memory.
_SHARD = 4 * 2**30
_INSTEAD = "use the checkpoint that it was made from, such as Qwen/Qwen3-Reranker-0.6B"
_AGAIN = "download it again"
# Keys of the architecture that are positive whole numbers.
_WHOLE = {
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.original_context_length",
}
# Keys of the architecture that are understood; the others would be ignored in silence.
_KNOWN = _WHOLE | {
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "vocab_size",
    "pooling_type",
    "classifier.output_labels",
}
# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: tokenizer.ggml.token_type
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
# How tokenizer.json describes added tokens that are found wherever their text stands.
_AS_WRITTEN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
# llama.cpp's enum llama_pooling_type
_NO_POOLING, _RANK = 0, 4


def find_gguf(place: Path) -> Path | None:
    """The GGUF file of a path: itself, or the only one in a folder without safetensors; None if there is none.

    Raises:
        UnsupportedModelError: a folder has several.
    """
    if place.suffix.lower() == ".gguf" and place.is_file():
        return place
    if not place.is_dir() or find_files(place, "*.safetensors"):
        return None
    files = find_files(place, "*.[gG][gG][uU][fF]")
    if len(files) > 1:
        raise UnsupportedModelError(
            f"{place} holds {len(files)} GGUF files, {', '.join(each.name for each in files[:3])}: give the path of "
            "one as model, and merge a split one with llama-gguf-split --merge"
        )
    return files[0] if files else None


def unpack(path: Path) -> Path:
    """The folder of the checkpoint that a GGUF file holds; written at the first call, found at later ones.

    The folder takes 4 bytes per weight on disk. If several processes unpack the same file, one does it and the others
    wait.

    Raises:
        MissingDependencyError: gguf is not installed.
        UnsupportedModelError: the file is damaged, holds another kind of model, or has a setting that is not
            understood; or the disk has too little room.
    """
    if find_spec("gguf") is None:
        raise MissingDependencyError(f"{path} is a GGUF file, and reading it needs gguf: {pip_install('gguf')}")
    check_file(path)
    import filelock
    from huggingface_hub import cached_assets_path

    digest = hashlib.sha256(f"{_VERSION} {path.stat().st_size} ".encode())
    with path.open("rb") as stream:
        add_content(digest, stream, path.stat().st_size, THOROUGH)
    key = digest.hexdigest()[:16]
    parent = cached_assets_path("qwen3-ranker-plugins", namespace="gguf", subfolder=key)
    folder = parent / path.stem
    with filelock.FileLock(parent / "lock"):
        if not folder.is_dir():
            unfinished = Path(tempfile.mkdtemp(dir=parent))
            try:
                _GgufFile(path).write(unfinished)
                unfinished.rename(folder)
            except BaseException:
                shutil.rmtree(unfinished)
                raise
            _log.info("%s was unpacked into %s", path, folder)
    return folder


class _GgufFile:
    """A GGUF file that is known to be a Qwen3 reranker.

    Raises:
        UnsupportedModelError: it is not, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._damage_explained():
            self._read()

    def _read(self) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(self._path)
        self._fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        architecture = self._fields.get("general.architecture")
        if architecture != "qwen3":
            raise self._refused(f"its architecture is {architecture!r}, and only 'qwen3' can be read")
        if int(self._fields.get("split.count", 1)) > 1:
            raise self._refused("it is one part of a split model", "merge the parts with llama-gguf-split --merge")
        self._own = {
            name.removeprefix("qwen3."): value for name, value in self._fields.items() if name.startswith("qwen3.")
        }
        if unknown := sorted(self._own.keys() - _KNOWN):
            raise self._refused(f"it states qwen3.{unknown[0]}={self._own[unknown[0]]!r}, which is not understood here")
        for name in _WHOLE & self._own.keys():
            if type(self._own[name]) is not int or self._own[name] < 1:
                raise self._refused(f"its qwen3.{name}={self._own[name]!r} is not a positive whole number", _AGAIN)
        if self._own["block_count"] > len(self._tensors):
            raise self._refused(
                f"it states qwen3.block_count={self._own['block_count']} and has {len(self._tensors)} tensors", _AGAIN
            )
        self._has_head = "cls.output.weight" in self._tensors
        self._check_kind()
        self._names = self._names_of_tensors()

    def write(self, folder: Path) -> None:
        """Write config.json, tokenizer.json, tokenizer_config.json and the weights into an empty folder."""
        with self._damage_explained():
            contents = {"config.json": self._config(), "tokenizer.json": self._tokenizer()}
        self._check(contents["config.json"])
        contents["tokenizer_config.json"] = {"tokenizer_class": "Qwen2Tokenizer"}
        # A checkpoint's own chat template, for chats or for pairs. Those with names, besides "rerank", are for chats.
        if (chat := self._text("tokenizer.chat_template")) is not None:
            contents["tokenizer_config.json"]["chat_template"] = chat
        if (prompt := self._text(KEY)) is not None:
            try:
                as_template(prompt)
            except ValueError as error:
                raise self._refused(f"its {KEY} cannot be followed, because {error}") from error
            (folder / FILE).write_text(prompt, encoding="utf-8", newline="")
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        self._write_weights(folder)

    def _check(self, config: dict[str, Any]) -> None:
        """Make sure that the settings fit the tensors. `read_spec` does it too, but would name the unpacked folder."""
        check_settings(self._path, config)
        max_positions(self._path, config)
        shapes = {ours: self._tensors[name].shape.tolist()[::-1] for name, ours in self._names.items()}
        headers = {name: (self._path, {"dtype": "F32", "shape": shape}) for name, shape in shapes.items()}
        check_weights(self._path, config, headers, plain=True)

    def _refused(self, why: str, remedy: str = _INSTEAD) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self._path} cannot be scored: {why}; {remedy}")

    def _text(self, name: str) -> str | None:
        found = self._fields.get(name)
        if found is not None and not isinstance(found, str):
            raise self._refused(f"its {name}={found!r} is not a text", _AGAIN)
        return found

    @contextmanager
    def _damage_explained(self) -> Iterator[None]:
        try:
            yield
        except UnsupportedModelError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as error:
            raise UnsupportedModelError(
                f"{self._path} cannot be read as GGUF ({type(error).__name__}: {error}): download it again"
            ) from error

    def _check_kind(self) -> None:
        pooling = self._own.get("pooling_type", _RANK if self._has_head else _NO_POOLING)
        if pooling not in (_NO_POOLING, _RANK):
            raise self._refused(f"it is an embedding model (pooling_type={pooling})", "use the reranker of its series")
        named = [str(self._fields.get(name, "")) for name in ("general.name", "general.basename")]
        called = " ".join([self._path.name, *named]).lower()
        for family in ("zerank", "mxbai", "ctxl"):
            if family in called:
                raise self._refused(f"GGUF files of {family} do not state how it judges", "use its own checkpoint")
        labels = self._own.get("classifier.output_labels")
        if self._has_head:
            if labels != ["yes", "no"]:
                raise self._refused(f"the labels of its score head are {labels!r} instead of 'yes' and 'no'")
        elif pooling == _RANK or labels is not None:
            raise self._refused("it states that it is a reranker, but its score head, cls.output.weight, is missing")
        elif "rerank" not in called:
            raise self._refused(
                "neither a score head nor a name with 'rerank' says that it is a reranker",
                "if it is one, write 'rerank' into the file's name",
            )

    def _names_of_tensors(self) -> dict[str, str]:
        """Name of each tensor of the file -> its name in the checkpoint."""
        from gguf import MODEL_ARCH, get_tensor_name_map

        known = get_tensor_name_map(MODEL_ARCH.QWEN3, int(self._own["block_count"]))
        parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn.q_norm"]
        parts += ["self_attn.k_norm", "input_layernorm", "post_attention_layernorm"]
        parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
        ours = [f"model.layers.{layer}.{part}" for layer in range(int(self._own["block_count"])) for part in parts]
        ours += ["model.embed_tokens", "model.norm"]
        if "output.weight" in self._tensors:
            ours.append("lm_head")
        names = {f"{known.get_name(name)}.weight": f"{name}.weight" for name in ours}
        if self._has_head:
            names["cls.output.weight"] = "score.weight"
        if strangers := sorted(names.keys() ^ self._tensors.keys()):
            has = "has" if strangers[0] in self._tensors else "lacks"
            raise self._refused(f"it {has} the tensor {strangers[0]}, unlike a Qwen3 model")
        if self._has_head:
            names.pop("output.weight", None)  # a classifier has no output matrix
        return names

    def _config(self) -> dict[str, Any]:
        own = self._own
        heads = int(own["attention.head_count"])
        head_dim = int(own.get("attention.key_length", int(own["embedding_length"]) // heads))
        for name in ("attention.value_length", "rope.dimension_count"):
            if int(own.get(name, head_dim)) != head_dim:
                raise self._refused(f"its qwen3.{name}={own[name]} is not the size of its heads, {head_dim}")
        config: dict[str, Any] = {
            "architectures": ["Qwen3ForSequenceClassification" if self._has_head else "Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "hidden_size": int(own["embedding_length"]),
            "intermediate_size": int(own["feed_forward_length"]),
            "max_position_embeddings": int(own["context_length"]),
            "num_attention_heads": heads,
            "num_hidden_layers": int(own["block_count"]),
            "num_key_value_heads": int(own.get("attention.head_count_kv", heads)),
            "rms_norm_eps": float(own["attention.layer_norm_rms_epsilon"]),
            "rope_theta": float(own.get("rope.freq_base", 10_000.0)),
            "rope_scaling": self._rope_scaling(),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "torch_dtype": "float32",
            "use_sliding_window": False,
            "vocab_size": int(self._tensors["token_embd.weight"].shape[-1]),
        }
        for name in ("bos", "eos", "pad"):
            found = self._fields.get(f"tokenizer.ggml.{'padding' if name == 'pad' else name}_token_id")
            config[f"{name}_token_id"] = None if found is None else int(found)
        if self._has_head:
            config["num_labels"] = 1
        return config

    def _rope_scaling(self) -> dict[str, Any] | None:
        kind = self._own.get("rope.scaling.type", "none")
        if kind == "none":
            return None
        factor, original = (self._own.get(f"rope.scaling.{name}") for name in ("factor", "original_context_length"))
        if kind != "yarn" or factor is None or original is None:
            raise self._refused(f"its rotary embeddings are scaled by {kind!r} with factor {factor} from {original}")
        return {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": int(original)}

    def _tokenizer(self) -> dict[str, Any]:
        from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
        from tokenizers.models import BPE

        stated = self._fields
        kind = (stated.get("tokenizer.ggml.model"), stated.get("tokenizer.ggml.pre"))
        if kind != ("gpt2", "qwen2"):
            raise self._refused(f"its tokenizer is {kind!r} instead of Qwen's ('gpt2', 'qwen2')")
        # add_eos_token has no effect: llama.cpp's server adds no special tokens to the prompt of a reranker either.
        for name in ("add_bos_token", "add_space_prefix"):
            if stated.get(f"tokenizer.ggml.{name}"):
                raise self._refused(f"it states tokenizer.ggml.{name}=true, unlike Qwen's tokenizer")
        texts, types = stated["tokenizer.ggml.tokens"], stated["tokenizer.ggml.token_type"]
        if other := set(types) - {_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED}:
            raise self._refused(f"its vocabulary has tokens of type {min(other)}, which Qwen's has not")
        vocabulary = {text: number for number, text in enumerate(texts) if types[number] == _NORMAL}
        merges = [(left, right) for left, _, right in (each.partition(" ") for each in stated["tokenizer.ggml.merges"])]
        try:
            tokenizer = Tokenizer(BPE(vocabulary, merges))
        except Exception as error:  # tokenizers raises Exception itself
            raise ValueError(str(error)) from error
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        content: dict[str, Any] = json.loads(tokenizer.to_str())
        content["added_tokens"] = [
            {"id": number, "content": text, "special": types[number] == _CONTROL, **_AS_WRITTEN}
            for number, text in enumerate(texts)
            if types[number] in (_CONTROL, _USER_DEFINED)
        ]
        return content

    def _write_weights(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        sizes = {name: 4 * int(np.prod(self._tensors[name].shape)) for name in self._names}
        if (free := shutil.disk_usage(folder).free) < sum(sizes.values()):
            raise self._refused(
                f"unpacking it needs {sum(sizes.values()) / 2**30:.1f} GiB in {folder.parent}, which has "
                f"{free / 2**30:.1f} GiB left",
                "make room, or let HF_HOME name a larger disk",
            )
        shards: list[list[str]] = [[]]
        size = 0
        for name in self._names:
            if size + sizes[name] > _SHARD and shards[-1]:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size += sizes[name]
        files: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
            save_file({self._names[name]: self._values(name) for name in names}, folder / file, {"format": "pt"})
            files |= {self._names[name]: file for name in names}
        if len(shards) > 1:
            index: Mapping[str, Any] = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

    def _values(self, name: str) -> NDArray[np.float32]:
        from gguf import dequantize

        tensor = self._tensors[name]
        with self._damage_explained():
            values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if not np.isfinite(values).all():
            raise self._refused(f"its tensor {name} holds values that are not finite", "download it again")
        if name == "cls.output.weight":
            if len(values) != 2:
                raise self._refused(f"its score head has {len(values)} rows instead of those of 'yes' and 'no'")
            return values[:1] - values[1:]
        return values
