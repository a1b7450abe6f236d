"""Which forms of checkpoints the engines on vLLM score correctly; for others, the error names the packed engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import UnsupportedModelError
from ...models import Checkpoint, Scoring
from ...models.json_files import read_json
from ...models.weights import read_headers, read_rows
from ...prompt import load_tokenizer


def check_form(engine: str, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that vLLM would score differently than the checkpoint specifies.

    Raises:
        UnsupportedModelError: the checkpoint is refused; the message names an engine that scores it correctly.
    """
    spec, folder = checkpoint.spec, checkpoint.folder
    if checkpoint.adapter is not None:
        reason = "an adapter, which vLLM would apply at a lower precision: merge it into its base with peft"
    elif read_json(folder / "config.json").get("attention_bias"):
        reason = "attention_bias=true, which vLLM's Qwen3 ignores"
    elif engine == "vllm_score" and spec.architecture == "Qwen3ForSequenceClassification":
        if spec.scoring.divisor == 1 and "score.bias" not in read_headers(folder):
            return
        reason = "a classifier that has a bias or divides its score, which vLLM ignores"
    elif spec.architecture != "Qwen3ForCausalLM":
        reason = f"{spec.architecture}"
    elif spec.scoring != Scoring("yes", "no"):
        reason = f"a model that is scored as {str(spec.scoring)!r}"
    elif _has_another_output_matrix(folder):
        reason = "an lm_head.weight that differs from the embeddings it is tied to, which vLLM ignores"
    else:
        return
    raise UnsupportedModelError(f"{folder} holds {reason}; engine {engine!r} cannot score it: use engine='packed'")


def _has_another_output_matrix(folder: Path) -> bool:
    """Whether the rows of yes and no in lm_head.weight, which transformers reads, differ from the embeddings."""
    if not read_json(folder / "config.json").get("tie_word_embeddings"):
        return False
    tokenizer = load_tokenizer(folder)
    labels = [tokenizer.yes_id, tokenizer.no_id]
    output, embeddings = (
        read_rows(folder, name, labels) for name in ("lm_head.weight", "model.embed_tokens.weight")
    )  # fmt: skip
    return output is not None and embeddings is not None and not np.array_equal(output, embeddings)
