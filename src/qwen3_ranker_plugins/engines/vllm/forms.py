"""Which forms of checkpoints the engines on vLLM score rightly; the others are refused and the packed engine named."""

from __future__ import annotations

from ...errors import UnsupportedModelError
from ...models import Checkpoint, Scoring
from ...models.spec import read_json
from ...models.weights import read_headers


def check_form(engine: str, checkpoint: Checkpoint) -> None:
    """Refuse what vLLM would score otherwise than the checkpoint says.

    Raises:
        UnsupportedModelError: names the engine that takes it.
    """
    spec, folder = checkpoint.spec, checkpoint.folder
    if checkpoint.adapter is not None:
        reason = "an adapter, which vLLM would apply at a lower precision: merge it into its base with peft"
    elif read_json(folder / "config.json").get("attention_bias"):
        reason = "attention_bias=true, which vLLM's Qwen3 leaves out"
    elif engine == "vllm_score" and spec.architecture == "Qwen3ForSequenceClassification":
        if spec.scoring.divisor == 1 and "score.bias" not in read_headers(folder):
            return
        reason = "a classifier with a bias, or whose score is divided, which vLLM leaves out"
    elif spec.architecture != "Qwen3ForCausalLM":
        reason = f"{spec.architecture}"
    elif spec.scoring != Scoring("yes", "no"):
        reason = f"a model that is scored as {str(spec.scoring)!r}"
    else:
        return
    raise UnsupportedModelError(f"{folder} holds {reason}; engine {engine!r} does not take it: use engine='packed'")
