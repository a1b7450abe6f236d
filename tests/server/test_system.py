from __future__ import annotations

import importlib
import sys
import threading
import time
from pathlib import Path

import pytest

from qwen3_ranker_plugins.server import system


def test_a_module_that_another_thread_is_importing_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/health looks at torch, which the engine's thread imports for seconds; half of it has no `cuda`."""
    (tmp_path / "slow_to_import.py").write_text(
        "import pathlib, time\nwhile not pathlib.Path(__file__).with_name('go').exists():\n    time.sleep(0.01)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert system.imported("slow_to_import") is None
    thread = threading.Thread(target=importlib.import_module, args=("slow_to_import",))
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while "slow_to_import" not in sys.modules and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "slow_to_import" in sys.modules
        assert system.imported("slow_to_import") is None
    finally:
        (tmp_path / "go").touch()
        thread.join()
    assert system.imported("slow_to_import") is sys.modules.pop("slow_to_import")
