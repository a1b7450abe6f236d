"""How the suite spreads over the processes of pytest-xdist: `pytest -n 2 --dist loadgroup --no-loadscope-reorder`."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

# Tests that start vLLM or Ray share one process: session fixtures start each engine once, and two engines at a time
# would not fit into the memory of a small machine.
_HEAVY = (
    "tests/bench/test_latency.py",
    "tests/contract/test_engines.py",
    "tests/contract/test_vllm",
    "tests/deploy/test_ray_serve.py",
    "tests/offline/test_runners.py",
    "tests/remote/test_vllm.py",
    "tests/server/test_engine.py",
)
_READ_BY_ENGINES = ("HF_", "OMP_", "QWEN3_RANKER_", "TRITON_", "VLLM_")
# What takes minutes begins first, so that no process is left alone with it at the end.
_ORDER = (
    *_HEAVY,
    "tests/examples/",
    "tests/contract/",
    "tests/docs/",
    "tests/demo/",
    "tests/training/",
    "tests/server/",
    "",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Name the group of each test: a file stays together, because its tests share fixtures."""
    if not hasattr(config, "workerinput"):  # one process: pytest's own order
        return

    def place(item: pytest.Item) -> str:
        return item.path.relative_to(config.rootpath).as_posix()

    for item in items:
        item.add_marker(pytest.mark.xdist_group("heavy" if place(item).startswith(_HEAVY) else place(item)))
    items.sort(key=lambda item: next(i for i, start in enumerate(_ORDER) if place(item).startswith(start)))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Refuse a test module that sets variables of an engine when it is imported.

    Every engine that a test of this process starts would inherit them.
    """
    before = dict(os.environ)
    report = yield
    changed = sorted(name for name, _ in os.environ.items() - before.items() if name.startswith(_READ_BY_ENGINES))
    if changed and isinstance(collector, pytest.Module):
        report.outcome = "failed"
        report.longrepr = f"importing {collector.nodeid} sets {', '.join(changed)}: set it in a fixture"
    return report
