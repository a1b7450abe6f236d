"""The CUDA path's attention where there is no GPU: FlexAttention compiled for the CPU, on a whole padded pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
from qwen3_ranker_plugins.engines.flex import build_block_mask, padded_length
from qwen3_ranker_plugins.engines.packed import PackedEngine
from qwen3_ranker_plugins.packing import PackedPass
from qwen3_ranker_plugins.prompt import ModelTokenizer, PromptEncoder


class FlexEngine(PackedEngine):
    """The packed engine with the layout that it has on a GPU."""

    def _layout(self, packed: PackedPass) -> tuple[object, int]:
        length = padded_length(packed.num_tokens)
        return build_block_mask(packed, length, self.device), length - packed.num_tokens


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile for a CPU needs g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own code, which differ by release
def test_flex_attention_gives_the_margins_of_the_cpu_path(tiny: Path, tiny_tokenizer: ModelTokenizer) -> None:
    encoder = PromptEncoder(tiny_tokenizer)
    rng = np.random.default_rng(3)
    words = "the with statement closes a file when block ends exception".split()
    requests = [
        encoder.encode(query, [" ".join(rng.choice(words, size=n)) for n in lengths], DEFAULT_INSTRUCTION)
        for query, lengths in (("a", [1, 5, 90]), ("how to close a file " * 30, rng.integers(1, 90, size=12).tolist()))
    ]
    expected = PackedEngine(tiny, device="cpu").score(requests)
    margins = FlexEngine(tiny, device="cpu").score(requests)
    for one, other in zip(margins, expected, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=0, atol=1e-4)
