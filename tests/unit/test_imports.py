"""What importing the packages exports, loads and needs: in fresh processes, since this one has loaded everything."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import qwen3_ranker_plugins

HEAVY = ("torch", "transformers", "vllm", "haystack", "langchain", "langchain_core", "fastapi", "rich")
# Python on Windows has none of these. Haystack imports torch where it is installed, and torch for Linux forks.
WITHOUT_POSIX = "import os, sys; del os.fork, os.register_at_fork; sys.modules.update(fcntl=None, torch=None); "


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["qwen3_ranker_plugins", "qwen3_ranker_plugins.cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    loaded = run_python(f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])")
    assert ast.literal_eval(loaded) == (["rich"] if module.endswith("cli") else [])


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("qwen3_ranker_plugins", "Reranker"),
        ("qwen3_ranker_plugins.cli", "main"),
        ("qwen3_ranker_plugins.offline", "RerankJob"),
        ("haystack_integrations.components.rankers.qwen3", "Qwen3Ranker"),
        ("langchain_qwen3_ranker", "Qwen3Rerank"),
    ],
)
def test_importing_needs_no_fork_and_no_posix_locks(module: str, name: str) -> None:
    assert run_python(f"{WITHOUT_POSIX}from {module} import {name}; print({name}.__name__)").strip() == name


def test_garbage_is_collected_again_after_an_engine_was_imported() -> None:
    code = (
        "import gc, sys; from qwen3_ranker_plugins.engines import engine_module; sys.modules['torch'] = None\n"
        "try: engine_module('packed')\nexcept ImportError: print(gc.isenabled())"
    )
    assert run_python(code).strip() == "True"


def test_all_names_what_is_public() -> None:
    """Everything without an underscore that is no submodule, and each of it exists."""
    names = {
        name
        for name, value in vars(qwen3_ranker_plugins).items()
        if not name.startswith("_") and getattr(value, "__name__", "") != f"qwen3_ranker_plugins.{name}"
    }
    assert set(qwen3_ranker_plugins.__all__) == names | {"__version__"}
    assert len(set(qwen3_ranker_plugins.__all__)) == len(qwen3_ranker_plugins.__all__)
