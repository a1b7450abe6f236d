"""Compare margins of the packed engine with float32 references, for every form of checkpoint on one device.

    python benchmarks/gpu_forms.py OUTPUT.json --commit COMMIT [--device cuda] [--dtype bfloat16] [--seconds 240]
    python benchmarks/gpu_forms.py OUTPUT.json --commit COMMIT --smoke

The second command runs every row on the CPU in float32, to check the script before it is run on a GPU.

The script writes small models with the libraries with which users write theirs (tests/forms.py), from the bundled model
or random weights. It scores the same documents with transformers on the CPU in float32 and with the packed engine on
the device. If a form fails or its library is not installed, the table contains the error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from qwen3_ranker_plugins import Reranker  # noqa: E402
from qwen3_ranker_plugins.models import resolve_model  # noqa: E402
from tests import forms  # noqa: E402

QUERY = "how are volcanoes formed?"
DOCUMENTS = [
    "Magma rises through cracks in the crust and erupts, building a volcano.",
    "Knitting needles come in several sizes.",
    "Lava cools into rock.",
    "",
]


@dataclass
class Row:
    """What one form did.

    Attributes:
        form: its name.
        reference: float32 margins of transformers, or of the packed engine on the CPU where `source` says so.
        source: what made the reference.
        margins: of the packed engine on the device.
        difference: the largest between the two.
        layers: what ran, as `describe` says.
        seconds: for writing, loading and scoring.
        error: why there is nothing; empty otherwise.
    """

    form: str
    reference: list[float]
    source: str
    margins: list[float]
    difference: float | None
    layers: str
    seconds: float
    error: str = ""


def measured(folder: Path, device: str, dtype: str, **settings: Any) -> tuple[list[float], dict[str, str]]:
    with Reranker(folder, device=device, dtype=dtype, **settings) as reranker:
        result = reranker.rerank(QUERY, DOCUMENTS)
        return [hit.margin for hit in sorted(result, key=lambda hit: hit.index)], reranker.describe().as_dict()


@torch.inference_mode()
def by_transformers(folder: Path, kind: Any, prompt: str, read: Callable[[torch.Tensor], torch.Tensor]) -> list[float]:
    """Margins of transformers on the CPU in float32, one whole prompt at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # Without the placement, bitsandbytes would load its weights on a GPU, in half precision.
    model = kind.from_pretrained(folder, dtype=torch.float32, device_map="cpu").eval()
    model.config.pad_token_id = 0
    texts = [prompt.format(query=QUERY, document=document) for document in DOCUMENTS]
    return [
        float(read(model(**tokenizer(each, add_special_tokens=False, return_tensors="pt")).logits[0])) for each in texts
    ]


def forms_of(tiny: Path, tmp: Path) -> dict[str, Callable[[], tuple[Path, str | None, dict[str, Any]]]]:
    """Name -> writes it: (folder, kind of reference or None for the packed engine on the CPU, settings)."""

    def padded() -> Path:
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        model.resize_token_embeddings(151_936, mean_resizing=False)
        model.save_pretrained(tmp / "padded", max_shard_size="20MB")
        transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp / "padded")
        return tmp / "padded"

    def yarn() -> Path:
        folder = forms.copy_of(tiny, tmp / "yarn")
        rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 8192}
        forms.edit_json(folder / "config.json", rope_parameters=rope, rope_scaling=None, max_position_embeddings=32_768)
        return folder

    def biased() -> Path:
        folder = forms.write_classifier(tiny, tmp / "biased")
        forms.change_weights(folder, score__bias=torch.tensor([0.75]))
        return folder

    def merged() -> Path:
        return forms.write_merged(tiny, forms.write_adapter(tiny, tmp / "merged_adapter"), tmp / "merged")

    def float8(style: str) -> Path:
        return forms.write_float8(tiny, tmp / style, style, tmp / f"{style}_plain")

    words = ["volcanoes", "crust"]
    found: dict[str, Callable[[], tuple[Path, str | None, dict[str, Any]]]] = {
        "plain": lambda: (tiny, "causal", {}),
        "padded vocabulary, sharded": lambda: (padded(), "causal", {}),
        "yarn": lambda: (yarn(), "causal", {}),
        "added words": lambda: (forms.write_with_added_words(tiny, tmp / "words", words), "causal", {}),
        "classifier": lambda: (forms.write_classifier(tiny, tmp / "classifier", noise=0.01), "classifier", {}),
        "classifier with a bias": lambda: (biased(), None, {}),
        "LoRA adapter": lambda: (tiny, None, {"adapter": forms.write_adapter(tiny, tmp / "adapter")}),
        "merged adapter": lambda: (merged(), "causal", {}),
        "sentence-transformers, yes alone": lambda: (
            forms.write_cross_encoder(tiny, tmp / "st", forms.YES, None),
            None,
            {},
        ),
        "zerank": lambda: (forms.copy_of(tiny, tmp / "zerank-2"), None, {}),
        "mxbai-rerank-v2": lambda: (forms.write_qwen2(tiny, tmp / "mxbai-rerank-base-v2"), None, {}),
        "Qwen3-VL-Reranker, texts": lambda: (forms.write_qwen3_vl(tiny, tmp / "vl"), None, {}),
        "float8 block": lambda: (float8("block"), None, {}),
        "float8 fbgemm": lambda: (float8("fbgemm"), None, {}),
        "bitsandbytes nf4": lambda: (forms.write_bitsandbytes(tiny, tmp / "nf4", "nf4"), "causal", {}),
        "bitsandbytes int8": lambda: (forms.write_bitsandbytes(tiny, tmp / "int8", "int8"), "causal", {}),
    }  # fmt: skip
    for scheme in forms.COMPRESSED:
        found[f"compressed-tensors {scheme}"] = lambda scheme=scheme: (  # type: ignore[misc]
            forms.write_compressed(tiny, tmp / scheme.replace(" ", "_"), scheme), "causal", {}
        )  # fmt: skip
    return found


def score(
    name: str, write: Callable[[], tuple[Path, str | None, dict[str, Any]]], arguments: argparse.Namespace
) -> Row:
    started = time.monotonic()
    row = Row(name, [], "", [], None, "", 0.0)
    try:
        folder, kind, settings = write()
        if kind is None:
            row.source = "packed, float32, CPU"
            row.reference, _ = measured(folder, "cpu", "float32", **settings)
        else:
            from qwen3_ranker_plugins.models import read_spec

            spec = read_spec(folder)
            prompt = spec.template.replace("{instruction}", spec.instruction or "")
            row.source = "transformers, float32, CPU"
            if kind == "classifier":
                model_class, read = transformers.AutoModelForSequenceClassification, lambda logits: logits[0]
            else:
                model_class = transformers.AutoModelForCausalLM
                read = lambda logits: logits[-1, forms.YES] - logits[-1, forms.NO]  # noqa: E731
            row.reference = by_transformers(folder, model_class, prompt, read)
        row.margins, facts = measured(folder, arguments.device, arguments.dtype, **settings)
        row.layers = facts.get("layers", "")
        pairs = zip(row.margins, row.reference, strict=True)
        row.difference = max(abs(one - other) for one, other in pairs)
    except Exception as error:  # noqa: BLE001 - a form that fails must not cost the others
        traceback.print_exc()
        row.error = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"
    row.seconds = round(time.monotonic() - started, 1)
    return row


def report(rows: list[Row]) -> str:
    lines = ["| form | largest difference | reference | layers | s |", "|---|---|---|---|---|"]
    for row in rows:
        shown = row.error or (f"{row.difference:.4f}" if row.difference is not None else "-")
        lines.append(f"| {row.form} | {shown} | {row.source} | {row.layers} | {row.seconds} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=240, help="begin no form after this time")
    parser.add_argument("--smoke", action="store_true", help="on the CPU, in float32, without a limit of time")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.device, arguments.dtype, arguments.seconds = "cpu", "float32", float("inf")
    ends = time.monotonic() + arguments.seconds
    gpu = torch.cuda.get_device_name(0) if arguments.device.startswith("cuda") and torch.cuda.is_available() else "none"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, write in forms_of(resolve_model("bundled:tiny"), Path(folder)).items():
            if time.monotonic() > ends:
                rows.append(Row(name, [], "", [], None, "", 0.0, "not begun: out of time"))
            else:
                rows.append(score(name, write, arguments))
            about = {
                "commit": arguments.commit,
                "device": arguments.device,
                "gpu": gpu,
                "dtype": arguments.dtype,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
            arguments.output.write_text(json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1))
            print(f"{rows[-1].form}: {rows[-1].error or rows[-1].difference} ({rows[-1].seconds} s)", flush=True)
    print(report(rows))
    return 1 if any(row.error for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
