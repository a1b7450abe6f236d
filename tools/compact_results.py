"""Make the JSON files of docs/results small: `python tools/compact_results.py [FILE ...]`, by default all of them.

Short values share a line. Files of `qwen3-ranker bench` and `tune` keep all values and digits, because `bench report`
computes from them. In the files of benchmarks/*.py, numbers are rounded to six significant digits, and margins are
removed, because the pages quote only their largest difference.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "results"
WIDTH = 120


def compacted(text: str) -> str:
    value = json.loads(text)
    if "kind" not in value:
        value = without_margins(json.loads(text, parse_float=lambda digits: float(f"{float(digits):.6g}")))
    return laid_out(value) + "\n"


def without_margins(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_margins(each) for key, each in value.items() if key != "margins"}
    return [without_margins(each) for each in value] if isinstance(value, list) else value


def laid_out(value: Any, indent: int = 0, used: int = 0) -> str:
    """`used` is what stands in front of the value on its line."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list) or indent + used + len(line) < WIDTH:
        return line
    inner = " " * (indent + 1)
    if isinstance(value, dict):
        keys = [json.dumps(key, ensure_ascii=False) + ": " for key in value]
        items = [key + laid_out(each, indent + 1, len(key)) for key, each in zip(keys, value.values(), strict=True)]
        return "{\n" + ",\n".join(inner + item for item in items) + "\n" + " " * indent + "}"
    if all(isinstance(each, int | float) for each in value):
        lines = textwrap.fill(line[1:-1], WIDTH, initial_indent=inner, subsequent_indent=inner)
        return f"[\n{lines}\n{' ' * indent}]"
    return "[\n" + ",\n".join(inner + laid_out(each, indent + 1) for each in value) + "\n" + " " * indent + "]"


def main() -> None:
    for path in [Path(name) for name in sys.argv[1:]] or sorted(RESULTS.rglob("*.json")):
        before = path.read_text(encoding="utf-8")
        path.write_text(compacted(before), encoding="utf-8")
        print(f"{path.name}: {len(before)} to {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
