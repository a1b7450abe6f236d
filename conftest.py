"""How the suite spreads over the processes of pytest-xdist: `pytest -n 2 --dist loadgroup --no-loadscope-reorder`."""

from __future__ import annotations

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
)
# What takes minutes begins first, so that no process is left alone with it at the end.
_ORDER = (*_HEAVY, "tests/contract/", "tests/examples/", "tests/docs/", "tests/demo/", "")


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
