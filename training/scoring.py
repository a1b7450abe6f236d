"""Score pairs one prompt at a time (right-padded batches, plain causal attention), as a user's engine does."""

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.model import TinyQwen3, causal

Ranking = dict[str, dict[str, float]]  # query id -> document id -> score


def no_attention_plans() -> None:
    """Keep cuDNN out of attention: it makes a plan for every new shape, and here nearly every batch has its own."""
    torch.backends.cuda.enable_cudnn_sdp(False)


@torch.no_grad()
def margins(
    model: TinyQwen3, prompts: list[list[int]], yes: int, no: int, dtype: torch.dtype, batch_tokens: int = 131_072
) -> Tensor:
    """logit(yes) - logit(no) after every prompt: (prompts,) float32 on the CPU."""
    device = model.model.embed_tokens.weight.device
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    found = torch.empty(len(prompts))
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(prompts[order[end]]) <= batch_tokens:
            end += 1
        chosen = order[start:end]
        width = len(prompts[chosen[-1]])
        ids = torch.tensor([prompts[n] + [0] * (width - len(prompts[n])) for n in chosen]).to(device)
        positions = torch.arange(width, device=device).expand(len(chosen), -1)
        states = model.hidden(ids, positions, causal, dtype)
        last = torch.tensor([len(prompts[n]) - 1 for n in chosen], device=device)
        logits = model.logits(states[torch.arange(len(chosen), device=device), last])
        found[torch.tensor(chosen)] = (logits[:, yes] - logits[:, no]).cpu()
        start = end
    return found


def read_lists(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Queries with candidate lists, in the format of the dev folder; evenly spread when limited."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return rows if limit is None or len(rows) <= limit else rows[:: -(-len(rows) // limit)]


def quick_ndcg(rows: list[dict[str, Any]], scores: list[list[float]]) -> float:
    """nDCG@10 with linear gains for checkpoint selection; the published table uses ir-measures."""
    total = 0.0
    for row, values in zip(rows, scores, strict=True):
        order = sorted(range(len(values)), key=lambda n: -values[n])[:10]
        discount = [1 / torch.log2(torch.tensor(rank + 2.0)).item() for rank in range(10)]
        gain = sum(discount[r] * max(row["docs"][n]["rel"] or 0, 0) for r, n in enumerate(order))
        ideal = sum(d * max(rel, 0) for d, rel in zip(discount, sorted(row["all_rels"], reverse=True), strict=False))
        total += gain / ideal if ideal else 0.0
    return total / len(rows)
