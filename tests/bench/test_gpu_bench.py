"""What benchmarks/gpu_bench.py makes of its parts' results, and the arithmetic of its alternatives.

The rest the script proves itself, on a CPU: its own first lines have the command.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.gpu_alternatives import flash, merged, pack_shared
from benchmarks.gpu_bench import split_by_kind
from benchmarks.gpu_report import markdown, with_differences
from qwen3_ranker_plugins.engines.attention.layout import pack
from qwen3_ranker_plugins.prompt import EncodedRequest


def report() -> dict[str, Any]:
    reference = {
        "100 titles": {"documents": 100, "packed_tokens": 2000, "margins": [0.5, -1.0]},
        "1000 titles": {"documents": 1000, "packed_tokens": 20000, "margins": [0.25, 0.75]},
    }
    row = {"tokenization_ms": 1.0, "packing_ms": 0.5, "pass_ms": 41.0, "padded_tokens": 20480}
    return {
        "about": {
            "device": "a GPU",
            "shape": "0.6B",
            "cores": 16,
            "versions": {"torch": "2.11"},
            "commit": "0123456789",
            "date": "2026-11-26",
            "repeat": 10,
            "scale": 1,
            "flops_per_token": 1e9,
            "floor_flops_per_second": 1e15,
        },
        "results": {
            "reference": {"rows": reference},
            "goals": {
                "rows": {
                    "about": {"describe": {}},
                    "100 titles": row | {"median_ms": 8.0, "margins": [0.5, -1.02]},
                    "1000 titles": row | {"median_ms": 50.0, "margins": [0.25, 0.75]},
                }
            },
            "concurrent": {"rows": {"8 x 100 titles": {"median_ms": 5.5, "ratio": 1.1}}},
            "memory": {"rows": {"10000 documents": {"tokens_per_document": 500, "peak": {"reserved_gib": 21.0}}}},
            "profile": {
                "rows": {
                    "1000 titles": {
                        "linear_ms": 30.0,
                        "attention_ms": 8.0,
                        "rest_ms": 2.0,
                        "kernels": [{"ms": 30.0, "kind": "linear", "name": "nvjet | x"}],
                    }
                }
            },
            "cold": {"rows": {"eager": {"size_classes": 0, "import_s": 1.0, "start_s": 2.0, "first_request_s": 3.0}}},
            "alternative shared-beginning": {
                "rows": {
                    "each head whole": {"median_ms": 3.0, "margins": [1.0]},
                    "their beginning once": {"median_ms": 2.5, "margins": [1.125]},
                }
            },
            "alternative float8": {"failed": "exit code 1"},
        },
    }


def test_the_tables_say_what_was_measured_and_what_was_not() -> None:
    made = report()
    with_differences(made)
    text = markdown(made)
    for line in (
        "| 10 titles, end to end | 8 ms | - | - | not measured |",
        "| 100 titles, end to end | 10 ms | 8.0 | 0.02 | yes |",
        "| 1000 titles, end to end | 45 ms | 50.0 | 0.0 | no |",
        "| 1000 titles, a pass | 40 ms | 41.0 | 0.0 | no |",
        "| 8 x 100 titles at once, of 1 x 800 | 1.15 | 1.1 | - | yes |",
        "| 10000 documents of 500 tokens | 20 GiB | 21.0 | - | no |",
        "| 1000 titles | goals | 50.0 | 0.4 | 0.0 |",
        "| their beginning once | alternative shared-beginning | 2.5 | - | 0.125 |",
        "| 1000 titles | 30.0 | 8.0 | 2.0 | 20.00 |",
        "| 30.0 | linear | `nvjet / x` |",
        "- alternative float8: exit code 1",
    ):
        assert line in text.splitlines()


def test_kernels_are_sorted_by_name() -> None:
    split = split_by_kind(
        {
            "nvjet_hsh_192x192_64x4": 20.0,
            "triton_tem_fused_flex_attention_1": 7.0,
            "triton_red_fused_mean_mul_pow_rsqrt_0": 3.0,
            "sm90_xmma_gemm_bf16": 1.0,
        }
    )
    assert (split["linear_ms"], split["attention_ms"], split["rest_ms"]) == (21.0, 7.0, 3.0)
    assert [each["ms"] for each in split["kernels"]] == [20.0, 7.0, 3.0, 1.0]


def test_merging_by_log_sum_exp_is_attention_over_both_sets_of_keys() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(6, 4, 8), torch.randn(9, 2, 8), torch.randn(9, 2, 8)
    ends = [torch.tensor([0, 6]), torch.tensor([0, 9])]
    whole, _ = flash(query, key, value, *ends, 6, 9, causal=False, scale=0.3)
    parts = [
        flash(query, key[keys], value[keys], ends[0], torch.tensor([0, len(key[keys])]), 6, 9, causal=False, scale=0.3)
        for keys in (slice(0, 5), slice(5, 9))
    ]
    together = merged(*parts[0], *parts[1], torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(together, whole)
    torch.testing.assert_close(merged(*parts[0], *parts[1], torch.zeros(6, dtype=torch.bool)), parts[0][0])


def test_a_shared_beginning_is_in_the_pass_once() -> None:
    requests = [EncodedRequest([1, 2, 3, 10 + n], [[20, 21, 9], [22, 9]], [0, 0]) for n in range(3)]
    packed, shared = pack_shared(requests)
    assert shared == 3
    assert packed.num_tokens == pack(requests).num_tokens - 2 * shared
    assert packed.token_ids[:9].tolist() == [1, 2, 3, 10, 22, 9, 20, 21, 9]
    assert packed.position_ids[:9].tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6]
    np.testing.assert_array_equal(packed.last_positions[:2], [8, 5])
