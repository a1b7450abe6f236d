"""Margins of checkpoints by vLLM's engines, one after the other; run by test_vllm_forms.py.

Arguments: folder, engine and dtype of the first, of the second, and so on. It prints a JSON list of margins for each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.contract.in_this_process import use_no_worker_processes
from tests.contract.test_forms import margins

if __name__ == "__main__":
    use_no_worker_processes()
    for folder, engine, dtype in zip(*[iter(sys.argv[1:])] * 3, strict=True):
        found = margins(Path(folder), engine=engine, dtype=dtype)
        sys.stdout.write(json.dumps(found.tolist()) + "\n")
