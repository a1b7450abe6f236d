"""Draw docs/images/speed.png, the chart of the README, from files in docs/results.

python tools/speed_chart.py
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "speed.png"
#: Cases of the result files, and what they are called in the chart.
CASES = {"1000 titles": "1000 titles", "100 chunks": "100 passages of about 230 tokens"}
#: What is compared, from the bottom up: a name, and the file and key of its times. Both files are runs on one machine.
SYSTEMS = {
    "sentence-transformers CrossEncoder": ("gpu_bench.json", "cross-encoder"),
    "vLLM, copied LLM.score": ("gpu_vllm.json", "copied_llm_score"),
    "transformers, padded batches": ("gpu_bench.json", "padded"),
    "vLLM, copied generate": ("gpu_vllm.json", "copied_generate"),
    "ours: vllm_score": ("gpu_vllm.json", "vllm_score"),
    "ours: vllm_packed": ("gpu_vllm.json", "vllm_packed"),
    "ours: packed": ("gpu_vllm.json", "packed"),
}


def milliseconds() -> dict[str, dict[str, float]]:
    """Case -> system -> median milliseconds from texts to scores."""
    files = {name: json.loads((ROOT / "docs" / "results" / name).read_text("utf-8")) for name, _ in SYSTEMS.values()}
    return {
        case: {name: files[file]["results"][key]["rows"][case]["median_ms"] for name, (file, key) in SYSTEMS.items()}
        for case in CASES
    }


def main() -> None:
    figure = Figure(figsize=(10, 3.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (case, times) in zip(figure.subplots(1, 2, sharey=True), milliseconds().items(), strict=True):
        names = list(times)
        bars = axes.barh(
            names, list(times.values()), color=["#2f6fb5" if name.startswith("ours") else "#aab2ba" for name in names]
        )
        axes.bar_label(bars, [f"{value:.0f} ms" for value in times.values()], padding=4, fontsize=9)
        axes.set_title(CASES[case], loc="left", fontsize=11)
        axes.set_xlim(0, max(times.values()) * 1.18)
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(left=False)
        axes.margins(y=0.02)
    footer = "One query on one H100, from texts to scores. Shape of Qwen3-Reranker-0.6B, random weights, bfloat16."
    figure.supxlabel(footer, fontsize=9, color="#50575e")
    figure.savefig(PICTURE, metadata={"Software": None})


if __name__ == "__main__":
    main()
