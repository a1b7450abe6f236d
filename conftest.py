"""How the suite spreads over the processes of pytest-xdist, which `-n 2` asks for."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

# These files share engines on vLLM, and a Python that has imported vLLM, which session fixtures start.
_SHARE_VLLM = (
    "tests/contract/test_engines.py",
    "tests/contract/test_vllm.py",
    "tests/contract/test_vllm_packed.py",
    "tests/contract/test_vllm_forms.py",
    "tests/contract/test_vllm_decoder.py",
    "tests/remote/test_vllm.py",
    "tests/server/test_engine.py",
)
# Tests of these files share nothing, and some take a minute: any process may take the next one.
_SHARE_NOTHING = ("tests/examples/test_notebooks.py",)
_READ_BY_ENGINES = ("HF_", "OMP_", "QWEN3_RANKER_", "TRITON_", "VLLM_")
# What takes minutes begins first, so that no process is left alone with it at the end.
_ORDER = (
    *_SHARE_VLLM,
    "tests/examples/",
    "tests/contract/",
    "tests/bench/",
    "tests/server/",
    "tests/deploy/test_ray_serve.py",
    "tests/demo/",
    "tests/offline/",
    "tests/remote/",
    "tests/training/",
    "tests/integration/",
    "",
)


# A shell starts a background job with SIGINT ignored, and so would be the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Modules and tests are objects that stay. Searching them for cycles would take a tenth of the time of the suite.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish() -> None:
    """Take what is there before the first test out of the garbage collector's sight."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Extension modules report objects that are still there when the process ends."""
    gc.unfreeze()


def _group(nodeid: str) -> str:
    """Name of the group whose tests one process runs: a file, because its tests share fixtures."""
    path = nodeid.partition("::")[0]
    if path in _SHARE_VLLM:
        return "vllm"
    return nodeid if path in _SHARE_NOTHING else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """A scheduler that knows the groups.

    `--dist loadgroup` of pytest-xdist 3.8 writes a test's group into an attribute that pytest 9.2 no longer reads.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False  # keep the order of the collection
    return ByGroup(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests into the order of `_ORDER` where several processes run them."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: next(i for i, start in enumerate(_ORDER) if item.nodeid.startswith(start)))


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
