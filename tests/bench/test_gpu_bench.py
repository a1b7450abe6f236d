"""The tables that benchmarks/gpu_bench.py makes of the results of its parts."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_bench import split_by_kind
from benchmarks.gpu_report import markdown, with_differences


def report() -> dict[str, Any]:
    reference = {
        "100 titles": {"documents": 100, "packed_tokens": 2000, "margins": [0.5, -1.0]},
        "1000 titles": {"documents": 1000, "packed_tokens": 20000, "margins": [0.25, 0.75]},
    }
    row = {"tokenization_ms": 1.0, "packing_ms": 0.5, "pass_ms": 41.0}
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
            "packed": {
                "rows": {
                    "about": {"describe": {}},
                    "100 titles": row | {"median_ms": 8.0, "margins": [0.5, -1.02]},
                    "1000 titles": row | {"median_ms": 50.0, "margins": [0.25, 0.75]},
                }
            },
            "concurrent": {"rows": {"8 x 100 titles": {"median_ms": 5.5, "ratio": 1.1}}},
            "memory": {
                "rows": {
                    "10000 documents": {
                        "tokens_per_document": 500,
                        "seconds": 10.5,
                        "tokens_per_second": 476000,
                        "peak": {"reserved_gib": 2.9},
                    }
                }
            },
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
            "float8": {"failed": "exit code 1"},
        },
    }


def test_the_tables_say_what_was_measured_and_what_was_not() -> None:
    made = report()
    with_differences(made)
    text = markdown(made)
    for line in (
        "| 100 titles | packed | 8.0 | 0.25 | 0.02 |",
        "| 1000 titles | packed | 50.0 | 0.4 | 0.0 |",
        "| 8 x 100 titles | concurrent | 5.5 | - | - |",
        "| 1000 titles | packed | 20000 | 1.0 | 0.5 | 41.0 | 50.0 |",
        "- 8 x 100 titles at once take 1.1 of the time of 1 x 800.",
        "- 10000 documents of 500 tokens in one call: 10.5 s, 476000 tokens/s, 2.9 GiB reserved.",
        "| 1000 titles | 30.0 | 8.0 | 2.0 | 20.00 |",
        "| 30.0 | linear | `nvjet / x` |",
        "- float8: exit code 1",
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
