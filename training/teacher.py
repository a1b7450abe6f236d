"""The two teacher bi-encoders (all-MiniLM-L6-v2, all-mpnet-base-v2) in plain PyTorch.

Texts are batched by exact token count, so nothing is padded and no mask is needed; on one H100 this encodes
the whole training corpus in about a minute. `python -m training.teacher` packs a teacher's weights for
carrying: matrices as 7-bit integers per row, small enough to travel in two calls.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training.passages import ragged

# The names that BERT and MPNet give to the same projections.
ATTENTION_NAMES = {
    "bert": ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    "mpnet": ("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
}
ATTENTION_NORM = {"bert": "attention.output.LayerNorm", "mpnet": "attention.LayerNorm"}


def relative_buckets(length: int, buckets: int = 32, max_distance: int = 128) -> Tensor:
    """MPNet's (T5's) bidirectional bucket of every pair of positions: (length, length)."""
    positions = torch.arange(length)
    distance = positions[:, None] - positions[None, :]
    half = buckets // 2
    bucket = (distance < 0).long() * half
    distance = distance.abs()
    exact = half // 2
    scaled = exact + (torch.log(distance.clamp(min=1) / exact) / math.log(max_distance / exact) * (half - exact)).long()
    return bucket + torch.where(distance < exact, distance, scaled.clamp(max=half - 1))


class Teacher:
    """A post-norm encoder with mean pooling; `encode` returns unit vectors."""

    def __init__(self, config: Mapping[str, int | float | str], weights: Mapping[str, Tensor], device: str) -> None:
        self.config = config
        self.kind = str(config["model_type"])
        self.heads = int(config["num_attention_heads"])
        self.layers = int(config["num_hidden_layers"])
        self.epsilon = float(config["layer_norm_eps"])
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        self.device = device
        self.weights = {
            name: weight.to(device, dtype) for name, weight in weights.items() if weight.is_floating_point()
        }

    def to(self, device: str) -> "Teacher":
        """A copy on another device."""
        return Teacher(self.config, self.weights, device)

    @property
    def size(self) -> int:
        return self.weights["embeddings.word_embeddings.weight"].shape[1]

    def _linear(self, name: str, states: Tensor) -> Tensor:
        return functional.linear(states, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, states: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(states, weight.shape, weight, bias, self.epsilon)

    def _bias(self, length: int) -> Tensor | None:
        if self.kind != "mpnet":
            return None
        table = self.weights["encoder.relative_attention_bias.weight"]
        return table[relative_buckets(length).to(self.device)].permute(2, 0, 1)[None]

    @torch.no_grad()
    def hidden_states(self, ids: Tensor) -> Tensor:
        """Last hidden states of an unpadded batch of ids: (texts, tokens, size)."""
        texts, length = ids.shape
        offset = 2 if self.kind == "mpnet" else 0
        states = functional.embedding(ids, self.weights["embeddings.word_embeddings.weight"])
        states = states + self.weights["embeddings.position_embeddings.weight"][offset : offset + length]
        if self.kind == "bert":
            states = states + self.weights["embeddings.token_type_embeddings.weight"][0]
        states = self._norm("embeddings.LayerNorm", states)
        bias = self._bias(length)
        bias = None if bias is None else bias.expand(texts, -1, -1, -1)
        for layer in range(self.layers):
            base = f"encoder.layer.{layer}."
            query, key, value, output = (base + name for name in ATTENTION_NAMES[self.kind])
            q, k, v = (
                self._linear(name, states).view(texts, length, self.heads, -1).transpose(1, 2)
                for name in (query, key, value)
            )
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            mixed = mixed.transpose(1, 2).reshape(texts, length, -1)
            states = self._norm(base + ATTENTION_NORM[self.kind], states + self._linear(output, mixed))
            inner = functional.gelu(self._linear(base + "intermediate.dense", states))
            states = self._norm(base + "output.LayerNorm", states + self._linear(base + "output.dense", inner))
        return states

    def encode(self, token_ids: list[list[int]]) -> Tensor:
        """Unit vectors (texts, size), float16 on a GPU, of texts given as ids with special tokens."""
        values, starts = ragged(token_ids)
        return self.encode_rows(values, starts, torch.arange(len(token_ids)))

    @torch.no_grad()
    def encode_rows(self, values: Tensor, starts: Tensor, numbers: Tensor, batch_tokens: int = 65_536) -> Tensor:
        """The same of the rows `numbers` of a ragged vector of ids."""
        dtype = self.weights["embeddings.LayerNorm.weight"].dtype
        result = torch.empty(len(numbers), self.size, device=self.device, dtype=dtype)
        lengths = starts.diff()[numbers]
        here, begins = values.to(self.device), starts[numbers].to(self.device)
        for length in torch.unique(lengths).tolist():
            inside = torch.arange(length, device=self.device)
            for chosen in torch.split(torch.nonzero(lengths == length).flatten(), max(1, batch_tokens // length)):
                places = chosen.to(self.device)
                ids = here[begins[places][:, None] + inside].long()
                pooled = self.hidden_states(ids).float().mean(1)
                result[places] = functional.normalize(pooled, dim=1).to(dtype)
        return result


def pack(weights: Mapping[str, Tensor], parts: list[Path]) -> None:
    """Write matrices as 7-bit integers with a scale per row, spread evenly over compressed files."""
    shares: list[dict[str, np.ndarray]] = [{} for _ in parts]
    filled = [0] * len(parts)
    for name, weight in sorted(weights.items(), key=lambda item: -item[1].numel()):
        if not weight.is_floating_point():
            continue
        target = filled.index(min(filled))
        filled[target] += weight.numel()
        values = weight.float().numpy()
        if values.ndim == 2 and values.shape[0] > 32:
            scale = np.abs(values).max(1, keepdims=True) / 63 + 1e-12
            shares[target][name] = np.round(values / scale).astype(np.int8)
            shares[target][name + ":scale"] = scale.astype(np.float32)
        else:
            shares[target][name] = values
    for path, share in zip(parts, shares, strict=True):
        np.savez_compressed(path, **share)  # type: ignore[arg-type]


def unpack(parts: list[Path]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in parts:
        with np.load(path) as share:
            for name in share.files:
                if name.endswith(":scale"):
                    continue
                values = share[name].astype(np.float32)
                scale = share[f"{name}:scale"] if f"{name}:scale" in share.files else 1.0
                weights[name] = torch.from_numpy(values * scale)
    return weights


def load_teacher(folder: Path, device: str) -> tuple[Teacher, Tokenizer]:
    """A teacher from its original folder, or from packed parts (`*.npz`) beside its configuration."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    original = folder / "model.safetensors"
    weights = load_file(original) if original.exists() else unpack(sorted(folder.glob("*.npz")))
    return Teacher(config, weights, device), load_tokenizer(folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    """A teacher's tokenizer, which cuts texts where its sentence-transformers configuration does."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    bert = json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == "bert"
    tokenizer.enable_truncation(max_length=256 if bert else 384)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="folder with the original model.safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (arguments.out / name).write_bytes((arguments.teacher / name).read_bytes())
    parts = [arguments.out / f"part{index}.npz" for index in range(arguments.parts)]
    pack(load_file(arguments.teacher / "model.safetensors"), parts)
    for path in parts:
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
