"""Figures that others published. They are printed next to ours for orientation, and labelled as published."""

from __future__ import annotations

QUALITY_SOURCE = (
    "Published by the Qwen team (arXiv 2506.05176), not measured here: other data, the top 100 of Qwen3-Embedding-0.6B "
    "reranked. For orientation only; compare a model with itself on the same data before you trust either."
)

QUALITY_COLUMNS = ("MTEB-R", "CMTEB-R", "MMTEB-R", "MLDR", "MTEB-Code", "FollowIR")

QUALITY: dict[str, tuple[float, ...]] = {
    "first stage (Qwen3-Embedding-0.6B)": (61.82, 71.02, 64.64, 50.26, 75.41, 5.09),
    "bge-reranker-v2-m3": (57.03, 72.16, 58.36, 59.51, 41.38, -0.01),
    "Qwen3-Reranker-0.6B": (65.80, 71.31, 66.36, 67.28, 73.42, 5.41),
    "Qwen3-Reranker-4B": (69.76, 75.94, 72.74, 69.97, 81.20, 14.84),
    "Qwen3-Reranker-8B": (69.02, 77.45, 72.94, 70.19, 81.22, 8.05),
}

LATENCY_SOURCE = (
    "Published on 2026-03-25, not measured here: one Tesla T4, Qwen3-Reranker-0.6B in float16, vLLM, "
    "max_model_len 160, client wall time of POST /rerank, mean of 5. "
    "Another device, model and title file: for orientation only."
)

LATENCY_DOCUMENTS = (100, 200, 400, 600, 800, 1000)

#: Backend and format -> mean milliseconds for each of LATENCY_DOCUMENTS.
LATENCY: dict[str, tuple[float, ...]] = {
    "Tesla T4 generate / compact": (213.5, 418.0, 861.4, 1263.4, 1744.3, 2162.2),
    "Tesla T4 generate / standard": (254.9, 475.4, 909.7, 1353.2, 1912.5, 2406.7),
    "Tesla T4 score / compact": (239.2, 480.2, 966.2, 1433.5, 1937.2, 2428.4),
    "Tesla T4 score / standard": (299.6, 591.8, 1178.9, 1773.7, 2341.6, 2931.7),
    "Tesla T4 score / compact, auto attention": (178.5, 351.7, 688.2, 1024.0, 1375.8, 1752.4),
    "Tesla T4 score / standard, auto attention": (198.4, 386.4, 762.8, 1174.6, 1540.1, 1970.1),
}

ITEMS_WORKLOAD = "120+180x10"

ITEMS_SOURCE = (
    "Published figures of multi-item scoring on an H100 with requests of this size, not measured here. Another device "
    "and server: for orientation only."
)

#: System -> items per second, and P99 in milliseconds at that rate if it was published.
ITEMS_PER_SECOND: dict[str, tuple[str, str]] = {
    "SGLang, multi-item scoring": ("1,200", "511"),
    "LinkedIn": ("2,200", "-"),
}
