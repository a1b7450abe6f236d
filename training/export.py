"""Write a checkpoint as a folder that transformers and vLLM load unchanged: bf16 weights, configuration, tokenizer."""

import argparse
import json
from pathlib import Path
from typing import Any

from training.model import ModelShape, TinyQwen3
from training.train import load, save_weights

MAX_BYTES = 15 * 2**20
MAX_POSITIONS = 8192


def configuration(shape: ModelShape, im_end: int, endoftext: int) -> dict[str, Any]:
    values = shape.as_dict()
    theta = values.pop("rope_theta")
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": endoftext,
        "eos_token_id": im_end,
        "pad_token_id": endoftext,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": shape.num_hidden_layers,
        "rope_scaling": None,
        "rope_theta": theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        **values,
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def export(state: dict[str, Any], tokenizer: Path, out: Path) -> None:
    """`state` as saved by training; `tokenizer` is the folder written by training.trim_tokenizer."""
    shape = ModelShape(**state["shape"])
    target = out / "model.safetensors"
    save_weights(state["model"], target)
    if target.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{target} holds {target.stat().st_size} bytes, more than {MAX_BYTES}; use a smaller vocabulary"
        )
    content = json.loads((tokenizer / "tokenizer.json").read_text("utf-8"))
    ids = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    write_json(out / "config.json", configuration(shape, ids["<|im_end|>"], ids["<|endoftext|>"]))
    generation = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"], "max_new_tokens": 1}
    write_json(out / "generation_config.json", generation)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((tokenizer / name).read_bytes())
    print(f"{target}: {target.stat().st_size} bytes, step {state.get('step', 0)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder that training saved to")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the trimmed tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--untrained", action="store_true", help="export random weights, to develop against")
    arguments = parser.parse_args()
    state = load(arguments.checkpoint, "cpu") if not arguments.untrained else None
    if state is None:
        if not arguments.untrained:
            raise FileNotFoundError(f"no checkpoint in {arguments.checkpoint}; run training.train first")
        model = TinyQwen3(ModelShape())
        model.initialise(None, 0)
        state = {"model": model.state_dict(), "shape": model.shape.as_dict()}
    export(state, arguments.tokenizer, arguments.out)


if __name__ == "__main__":
    main()
