from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from qwen3_ranker_plugins.bench.titles import generate_queries, generate_titles, read_titles, sample
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.errors import InvalidInputError
from qwen3_ranker_plugins.prompt import ModelTokenizer


@pytest.mark.parametrize(("language", "mean", "p95"), [("zh", 23.3, 31), ("en", 17.9, 36)])
def test_lengths_are_near_those_of_real_titles(
    qwen3_tokenizer: ModelTokenizer, language: str, mean: float, p95: float
) -> None:
    """In tokens of Qwen3; the figures of 1,000 real titles each."""
    lengths = [len(ids) for ids in qwen3_tokenizer.encode_batch(generate_titles(1000, language=language, seed=0))]
    assert np.mean(lengths) == pytest.approx(mean, rel=0.06)
    assert np.percentile(lengths, 95) == pytest.approx(p95, rel=0.16)


def test_seed_decides() -> None:
    assert generate_titles(50, seed=1) == generate_titles(50, seed=1)
    assert generate_titles(50, seed=1) != generate_titles(50, seed=2)
    both = generate_titles(2000, language="both", seed=3)
    assert len(set(both)) == 2000
    assert both[1].isascii()
    assert not both[0].isascii()


@pytest.mark.parametrize("language", ["zh", "en", "both"])
def test_queries_are_all_different(language: str) -> None:
    assert len(set(generate_queries(3000, language=language))) == 3000


def test_command_prints_one_a_line() -> None:
    done = CliRunner().invoke(app, ["bench", "titles", "7", "--seed", "5"])
    assert done.stdout.splitlines() == generate_titles(7, seed=5)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "titles.txt"
    path.write_bytes("\ufeffone\r\n\r\n two \nthree".encode())
    titles = read_titles(path)
    assert titles == ["one", "two", "three"]
    assert sorted(sample(titles, 3, random.Random(0))) == ["one", "three", "two"]
    with pytest.raises(InvalidInputError, match="fewer than the 4"):
        sample(titles, 4, random.Random(0))
    path.write_bytes(b"\n \n")
    with pytest.raises(InvalidInputError, match="no line with text"):
        read_titles(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match="not UTF-8 at byte 0"):
        read_titles(path)
