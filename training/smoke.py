"""Run every stage of the recipe at a tiny size on the CPU, to see that it still works; the result ranks nothing.

    python -m training.smoke --train FOLDER --qwen3 FOLDER --out FOLDER

A few dozen pairs, no teacher (targets come from BM25 coverage alone), two layers, a dozen steps.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer

from training.evaluate import main as evaluate
from training.export import export
from training.mine import mine
from training.prepare_data import prepare, read_jsonl, write_jsonl
from training.read import read
from training.train import load, parse, train
from training.trim_tokenizer import han_by_frequency, tokenizer_config, trim

ROWS = 12
OPTIONS = ("--dropout", "0.1", "--renamed", "0.2", "--neighbours", "0.5", "--squared-error", "0.1")


def smoke(train_folder: Path, qwen3: Path, out: Path, steps: int = 6, rows: int = ROWS) -> Path:
    """All stages below `out`; returns the folder of the exported model."""
    for path in sorted(train_folder.glob("*.jsonl.gz")):
        write_jsonl(out / "train" / path.name, (row for row, _ in zip(read_jsonl(path), range(rows), strict=False)))
    data = out / "data"
    prepare(out / "train", [], data, seed=0, requests=True)
    source = json.loads((qwen3 / "tokenizer.json").read_text("utf-8"))
    texts = [row["text"] for row in read_jsonl(data / "texts.jsonl.gz") if row["lang"] != "en"]
    trimmed = trim(source, han_by_frequency(texts), prefix=2500, vocabulary=3200)
    tokenizer = out / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    (tokenizer / "tokenizer.json").write_text(json.dumps(trimmed, ensure_ascii=False), "utf-8")
    config = json.loads((qwen3 / "tokenizer_config.json").read_text("utf-8"))
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(config, trimmed)), "utf-8")
    mined = out / "mined.pt"
    ids = out / "read.pt"
    read(data, tokenizer / "tokenizer.json", [], ids, seed=0, processes=1, window_cap=500, head_tokens=192)
    mine(ids, tokenizer / "tokenizer.json", [], mined, ["cpu"], seed=0)
    common = [
        "--mined",
        str(mined),
        "--tokenizer",
        str(tokenizer / "tokenizer.json"),
        "--checkpoint",
        str(out / "checkpoint"),
        *OPTIONS,
    ]
    for until in (steps // 2, steps):  # the second call resumes
        train(parse([*common, "--steps", str(until), "--smoke", "--device", "cpu"]))
    state = load(out / "checkpoint", "cpu")
    if state is None or state["step"] != steps:
        raise RuntimeError("the smoke run did not resume from its checkpoint")
    model = out / "model"
    export(state, tokenizer, model)
    lists = [str(path) for path in sorted((data / "heldout").glob("*.jsonl.gz"))[:2]]
    scores = str(out / "scores.json")
    evaluate(["score", "--model", str(model), "--device", "cpu", "--limit", "2", "--lists", *lists, "--out", scores])
    Tokenizer.from_file(str(model / "tokenizer.json"))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="folder of labelled pairs (*.jsonl.gz)")
    parser.add_argument("--qwen3", type=Path, required=True, help="folder with Qwen3's tokenizer files")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    print(smoke(arguments.train, arguments.qwen3, arguments.out))


if __name__ == "__main__":
    main()
