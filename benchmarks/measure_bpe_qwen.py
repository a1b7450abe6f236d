"""Compare the package bpe-qwen with the tokenizers library: ids, and speed -> docs/results/bpe_qwen.json.

    pip install --target FOLDER --no-deps bpe-qwen
    PYTHONPATH=src:.:FOLDER python benchmarks/measure_bpe_qwen.py

Ids are compared on titles of the benchmark, on random sequences of the motifs of tests/unit/test_beginnings.py, and on
random characters of all planes. Times are medians over 1000 titles, by one thread and by two.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from benchmarks.systems import documents_of
from qwen3_ranker_plugins.bench.machine import environment
from qwen3_ranker_plugins.prompt import load_tokenizer
from tests.qwen3_tokenizer import write_qwen3_tokenizer
from tests.unit.test_beginnings import MOTIFS

ROOT = Path(__file__).parents[1]
REPEAT, SHOWN = 15, 5


def texts() -> dict[str, list[str]]:
    rng = random.Random(5)
    motifs = [each for each in MOTIFS if "\ud83d" not in each]  # bpe-qwen takes no lone surrogates
    mixed = ["".join(rng.choices(motifs, k=rng.randint(1, 30))) for _ in range(2000)]
    points = [*range(0xD800), *range(0xE000, 0x30000)]
    wild = ["".join(map(chr, rng.choices(points, k=20))) for _ in range(2000)]
    return {"titles": documents_of("1000 titles", 1), "motifs": mixed, "random characters": wild}


def median_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEAT):
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(times), 2)


def main() -> None:
    from bpe_qwen import QwenTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_qwen3_tokenizer(Path(folder))
        ours = load_tokenizer(Path(folder))
        model = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        (Path(folder) / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
        merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
        (Path(folder) / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
        other = QwenTokenizer(folder)
    rows = {}
    for name, group in texts().items():
        expected = ours.encode_batch(group)
        found = [list(other.encode(text)) for text in group]
        different = [text for text, one, two in zip(group, expected, found, strict=True) if one != two]
        rows[name] = {"texts": len(group), "different": len(different), "examples": different[:SHOWN]}
        print(name, len(different), "of", len(group), "differ")
    titles = documents_of("1000 titles", 1)
    speed = {
        "tokenizers, TOKENIZERS_PARALLELISM=" + os.environ.get("TOKENIZERS_PARALLELISM", "unset"): median_ms(
            lambda: ours.encode_batch(titles)
        ),
        "bpe-qwen, 1 worker": median_ms(lambda: other.encode_batch_parallel(titles, 1)),
        "bpe-qwen, 2 workers": median_ms(lambda: other.encode_batch_parallel(titles, 2)),
    }
    print(speed)
    result = {
        "environment": environment(),
        "versions": {name: version(name) for name in ("tokenizers", "bpe-qwen")},
        "ids": rows,
        "milliseconds of 1000 titles": speed,
    }
    output = ROOT / "docs/results/bpe_qwen.json"
    output.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
