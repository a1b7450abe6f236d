"""What the stages `training.read` and `training.mine` have in common: their arguments and their log."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path


def stage_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tokenizer", type=Path, required=True, help="trimmed tokenizer.json")
    parser.add_argument(
        "--teacher",
        dest="teachers",
        type=Path,
        action="append",
        default=[],
        help="teacher folder; MiniLM first, then mpnet",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def stage_log(stage: str) -> Callable[[str], None]:
    """Prints lines with the seconds since now."""
    started = time.time()

    def log(message: str) -> None:
        print(f"[{stage} {time.time() - started:6.1f}s] {message}", flush=True)

    return log
